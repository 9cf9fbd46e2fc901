"""Directions among a trunk's features for attributes, from rendered scenes whose attributes are
known.

`scenes` draws what `attributes.toml` names; a trunk's pooled features of them, with the labels,
give one discriminant direction for each attribute (shrunken Fisher: inverse covariance times the
difference of means). The directions of a trunk are computed once by
`scripts/attribute_directions.py` and lie beside this module as safetensors, tied to the digest of
the weights they were made with.
"""

from __future__ import annotations

import functools
import json
import tomllib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from safetensors import safe_open

from services.common.tensors import Array, pack_arrays
from services.concepts import scenes as drawing
from services.concepts.alignment import Doubles, Rows
from services.concepts.scenes import Scene

SEED = 20240617
SCENES = 1000
OBJECT_SCENES = 20
SHRINKAGE = 0.6
_FOLDER = Path(__file__).with_name("attribute_directions")

Label = dict[str, str]


@dataclass(frozen=True)
class Directions:
    """Attribute directions of one trunk.

    Attributes:
        vectors: ``[k, F]`` contrasts among pooled features.
        phrases: for each direction the words and phrases it stands for.
        feature_mean: ``[F]`` mean pooled feature over the scenes.
    """

    vectors: Doubles
    phrases: tuple[tuple[str, ...], ...]
    feature_mean: Doubles


@functools.cache
def vocabulary() -> dict[str, Any]:
    """The tables of attributes.toml."""
    return tomllib.loads(Path(__file__).with_name("attributes.toml").read_text(encoding="utf-8"))


def scenes(
    seed: int = SEED, count: int = SCENES, per_object: int = OBJECT_SCENES
) -> Iterator[tuple[Image.Image, Label]]:
    """Yield scenes with their labels (colour, pattern, texture, shape, object); always the same for
    a seed.
    """
    generator = np.random.Generator(np.random.PCG64(seed))
    colours = list(vocabulary()["colours"])
    for at in range(count):
        yield _attribute_scene(generator, colours[at % len(colours)], colours)
    for name, options in vocabulary()["objects"].items():
        for _ in range(per_object):
            yield _object_scene(generator, name, options)


def _attribute_scene(
    generator: np.random.Generator, colour: str, colours: Sequence[str]
) -> tuple[Image.Image, Label]:
    decorated = [name for name in drawing.PATTERNS if name != "plain"]
    pattern = "plain" if generator.random() < 0.45 else _sample(generator, decorated)
    texture = _sample(generator, list(drawing.TEXTURES))
    shape = _sample(generator, list(drawing.SHAPES))
    layout = _sample(generator, drawing.LAYOUTS)
    first = _shade(generator, colour)
    if generator.random() < 0.5:
        second = np.array(vocabulary()["colours"][_sample(generator, colours)], dtype=np.float64)
    else:
        second = np.clip(first * generator.choice([0.5, 1.5]), 0, 255)
    fills = layout == "fill"
    label = {"colour": colour, "pattern": pattern, "shape": "" if fills else shape}
    label["texture"] = "smooth" if fills and texture == "shiny" else texture
    scene = Scene(_rgb(first), _rgb(second), pattern, texture, shape, layout)
    return drawing.draw(generator, scene), label


def _object_scene(
    generator: np.random.Generator, name: str, options: dict[str, list[str]]
) -> tuple[Image.Image, Label]:
    colour, pattern, texture, shape = (
        _sample(generator, options[kind]) for kind in ("colours", "patterns", "textures", "shapes")
    )
    first = _shade(generator, colour)
    second = np.clip(
        first * (0.5 if pattern == "striped" or generator.random() < 0.4 else 1.5), 0, 255
    )
    if pattern == "netted":
        second = np.array(vocabulary()["colours"]["cream color"], dtype=np.float64)
    if pattern == "two-toned":
        second = np.array(vocabulary()["colours"]["golden yellow"], dtype=np.float64)
    layout = _sample(generator, drawing.LAYOUTS[1:])
    label = {
        "colour": colour,
        "pattern": pattern,
        "texture": texture,
        "shape": shape,
        "object": name,
    }
    return drawing.draw(
        generator, Scene(_rgb(first), _rgb(second), pattern, texture, shape, layout)
    ), label


def _shade(generator: np.random.Generator, colour: str) -> Doubles:
    base = np.array(vocabulary()["colours"][colour], dtype=np.float64)
    return np.asarray(np.clip(base + generator.normal(size=3) * 8, 0, 255))


def _sample(generator: np.random.Generator, options: Sequence[str]) -> str:
    return options[int(generator.integers(len(options)))]


def _rgb(colour: Doubles) -> tuple[float, float, float]:
    red, green, blue = (float(v) for v in colour)
    return red, green, blue


def directions(features: npt.ArrayLike, labels: Sequence[Label]) -> Directions:
    """One direction for each attribute and object.

    Args:
        features: ``[n, F]`` pooled features of `scenes`, in their order.
        labels: of the same scenes.
    """
    matrix = np.asarray(features, dtype=np.float64)
    mean = matrix.mean(axis=0)
    centred = matrix - mean
    covariance = centred.T @ centred / len(matrix)
    typical = np.trace(covariance) / len(covariance)
    shrunken = (1 - SHRINKAGE) * covariance + SHRINKAGE * typical * np.eye(len(covariance))
    contrasts, phrases = [], []
    is_object = np.array(["object" in label for label in labels])
    # Objects are told from each other as much as from other scenes.
    between = (centred[is_object].mean(axis=0) if is_object.any() else np.zeros_like(mean)) / 2
    for member, names in _attribute_members(labels):
        contrasts.append(centred[member].mean(axis=0))
        phrases.append(names)
    for name, options in vocabulary()["objects"].items():
        member = np.array([label.get("object") == name for label in labels])
        if member.any():
            contrasts.append(centred[member].mean(axis=0) - between)
            phrases.append(tuple(options.get("phrases", [name])))
    vectors = np.linalg.solve(shrunken, np.array(contrasts).T).T
    return Directions(vectors, tuple(phrases), mean)


def _attribute_members(
    labels: Sequence[Label],
) -> Iterator[tuple[npt.NDArray[np.bool_], tuple[str, ...]]]:
    """Which scenes have an attribute, and its phrases; attributes of no scene are left out."""
    found = [(_having(labels, "colour", shades), names) for names, shades in _colours()]
    for kind in ("pattern", "texture", "shape"):
        for name, names in vocabulary()[kind + "s"].items():
            found.append((_having(labels, kind, {name}), tuple(names)))
    for name, (pattern, family) in vocabulary()["combinations"].items():
        shades = set(vocabulary()["families"][family])
        both = _having(labels, "pattern", {pattern}) & _having(labels, "colour", shades)
        found.append((both, (name,)))
    yield from ((member, names) for member, names in found if member.any())


def _colours() -> Iterator[tuple[tuple[str, ...], set[str]]]:
    families = vocabulary()["families"]
    for colour in vocabulary()["colours"]:
        if colour in families:
            plain = colour.removesuffix(" color")
            names = (colour, *(phrase.format(plain) for phrase in families["phrases"]))
            yield names, set(families[colour])
        else:
            yield (colour,), {colour}


def _having(labels: Sequence[Label], kind: str, values: set[str]) -> npt.NDArray[np.bool_]:
    return np.array([label.get(kind) in values for label in labels])


def rows(
    found: Directions, encode_texts: Callable[[list[str]], Doubles], text_origin: Doubles
) -> Rows:
    """Rows for `alignment.fit_head`: every phrase of a direction, together weighing as one row.

    ``text_origin`` is the mean text embedding ``[D]`` of everyday words, from which phrases are
    told apart.
    """
    counts = [len(names) for names in found.phrases]
    texts = encode_texts([name for names in found.phrases for name in names]) - text_origin
    unit = texts / np.maximum(np.linalg.norm(texts, axis=1, keepdims=True), 1e-12)
    share = 1 / np.sqrt(np.repeat(counts, counts))[:, None]
    scale = max(float(np.median(np.linalg.norm(found.vectors, axis=1))), 1e-12)
    return Rows(np.repeat(found.vectors / scale, counts, axis=0) * share, unit * share)


def pack(found: Directions, weights_digest: str) -> bytes:
    """The directions as safetensors bytes, rounded to float16."""
    arrays: dict[str, Array] = {
        "vectors": found.vectors.astype(np.float16),
        "feature_mean": found.feature_mean.astype(np.float32),
    }
    return pack_arrays(arrays, {"phrases": json.dumps(found.phrases), "weights": weights_digest})


def load(architecture: str, weights_digest: str) -> Directions | None:
    """The directions shipped for a trunk; None where there are none for these very weights."""
    path = _FOLDER / f"{architecture}.safetensors"
    if not path.is_file():
        return None
    with safe_open(path, framework="np") as file:
        metadata = file.metadata()
        if metadata["weights"] != weights_digest:
            return None
        phrases = tuple(tuple(names) for names in json.loads(metadata["phrases"]))
        vectors = file.get_tensor("vectors").astype(np.float64)
        return Directions(vectors, phrases, file.get_tensor("feature_mean").astype(np.float64))
