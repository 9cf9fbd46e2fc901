"""Do concepts mean what they say? Three questions asked of the default encoder on the fruit photos.

(a) Does presence of a word rank the photos of the classes it describes above the others? Mean AUC
    over word to class-set pairs fixed in advance, beside the same words shuffled among the sets.
(b) Does the region that explains a class lie on it? 2 x 2 mosaics of test photos; chance is a
    quarter, and a whole-image student cannot do better.
(c) What share of centred cosines is positive? Between 20 and 80 % presence carries information.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as parquet
import torch
from PIL import Image, ImageOps
from rich.console import Console
from rich.table import Table

from services.common.assets import DEFAULT_CACHE
from services.common.blocks import block_bounds
from services.common.catalogue import ImageTextEncoder, load_catalogue
from services.common.fetch import ensure_all
from services.common.images import decode
from services.common.presence import positive_share, presence, region_cosines
from services.concepts import attributes
from services.concepts.concept_sets import built_in
from services.concepts.filters import filter_words
from services.concepts.loading import load_model
from services.concepts.model import EncoderModel
from services.student.path import fit_path

Floats = npt.NDArray[np.floating]
Mask = npt.NDArray[np.bool_]

BATCH = 16
DRAWS = 1000
NEC = 10
_APPLES = ("Royal-Gala", "Pink-Lady", "Granny-Smith", "Red-Delicious", "Golden-Delicious")
_PEARS = ("Conference", "Anjou", "Kaiser")
_MELONS = ("Cantaloupe", "Honeydew-Melon", "Galia-Melon", "Watermelon")
_CITRUS = ("Satsumas", "Orange")
_RED = ("Royal-Gala", "Pink-Lady", "Red-Delicious")
_NETTED = ("Cantaloupe", "Galia-Melon")

# Written down before any result was seen, from what the varieties look like.
PAIRS: dict[str, tuple[str, ...]] = {
    "red": _RED,
    "red skin": _RED,
    "red apple": _RED,
    "dark red": ("Red-Delicious",),
    "pink": ("Pink-Lady",),
    "green": ("Granny-Smith", "Conference", "Anjou", "Watermelon"),
    "green apple": ("Granny-Smith",),
    "green skin": ("Granny-Smith", "Anjou", "Conference"),
    "yellow": ("Golden-Delicious", "Honeydew-Melon", "Galia-Melon"),
    "yellow apple": ("Golden-Delicious",),
    "orange color": _CITRUS,
    "orange peel": _CITRUS,
    "brown": ("Kaiser",),
    "brown skin": ("Kaiser",),
    "striped": ("Watermelon",),
    "green stripes": ("Watermelon",),
    "netted": _NETTED,
    "netted rind": _NETTED,
    "citrus": _CITRUS,
    "citrus fruit": _CITRUS,
    "apple": _APPLES,
    "pear": _PEARS,
    "melon": _MELONS,
    "watermelon": ("Watermelon",),
    "orange": _CITRUS,
    "mandarin": _CITRUS,
    "tangerine": _CITRUS,
    "pear-shaped": _PEARS,
    "round": (*_APPLES, *_MELONS, *_CITRUS),
    "elongated": _PEARS,
    "rough": (*_NETTED, "Kaiser", "Orange"),
    "rind": _MELONS,
    "peel": _CITRUS,
    "cantaloupe": ("Cantaloupe",),
    "honeydew melon": ("Honeydew-Melon",),
    "beige": ("Cantaloupe",),
    "dimpled": _CITRUS,
    "large": _MELONS,
    "squash": _MELONS,
    "green pear": ("Anjou", "Conference"),
}


@dataclass(frozen=True)
class Photos:
    """The data set: JPEG bytes, split, coarse and fine class of each photo."""

    data: list[bytes]
    split: npt.NDArray[np.str_]
    coarse: npt.NDArray[np.str_]
    fine: npt.NDArray[np.str_]


@dataclass(frozen=True)
class Regions:
    """Rows of n images with the same count R of regions: float16 [n, R, D]; cells uint8 [n, h, w]
    from 1.
    """

    rows: npt.NDArray[np.float16]
    cells: npt.NDArray[np.uint8]

    def flat(self) -> npt.NDArray[np.float16]:
        return self.rows.reshape(-1, self.rows.shape[2])

    def offsets(self) -> npt.NDArray[np.int64]:
        return np.arange(len(self.rows) + 1) * self.rows.shape[1]


def get_parts(cache: Path) -> tuple[EncoderModel, Photos]:
    """The default encoder and the photos, fetched where they are not in the cache."""
    catalogue = load_catalogue([])
    paths = ensure_all(catalogue, ["effl2-minilm", "fruit"], cache)
    entry = catalogue.get("effl2-minilm")
    assert isinstance(entry, ImageTextEncoder)
    table = parquet.read_table(paths["fruit"]).to_pydict()
    # The parquet file holds every test photo twice; counted twice they make intervals too narrow.
    kept = list(
        {data: row for row, data in reversed(list(enumerate(table["image_data"])))}.values()
    )
    kept.sort()
    columns = (np.array(table[name])[kept] for name in ("dataset", "coarse_cat", "finegrained_cat"))
    photos = Photos([table["image_data"][row] for row in kept], *columns)
    return load_model(entry, catalogue, paths, cache), photos


def embed(model: EncoderModel, images: list[Image.Image]) -> Regions:
    """Regions of images, in batches of one shape."""
    rows, cells = [], []
    for start in range(0, len(images), BATCH):
        part = [model.preprocessing(image) for image in images[start : start + BATCH]]
        batch = torch.stack(part + [torch.zeros_like(part[0])] * (BATCH - len(part)))
        for row, cell in model.regions(batch, len(part)):
            rows.append(row)
            cells.append(cell)
    return Regions(np.stack(rows).astype(np.float16), np.stack(cells).astype(np.uint8))


def embed_photos(model: EncoderModel, photos: Photos) -> Regions:
    """Regions of all photos, decoding as little as possible at a time."""
    parts = [
        embed(model, [decode(data) for data in photos.data[at : at + 4 * BATCH]])
        for at in range(0, len(photos.data), 4 * BATCH)
    ]
    return Regions(
        np.concatenate([part.rows for part in parts]),
        np.concatenate([part.cells for part in parts]),
    )


def mosaics(photos: Photos, count: int, seed: int = 0) -> tuple[list[Image.Image], list[list[str]]]:
    """2 x 2 mosaics of test photos of four different coarse classes, which are listed in reading
    order.
    """
    generator = np.random.default_rng(seed)
    test = np.flatnonzero(photos.split == "test")
    names = sorted(set(photos.coarse))
    images, classes = [], []
    for _ in range(count):
        chosen = [str(name) for name in generator.permutation(names)[:4]]
        image = Image.new("RGB", (348, 348))
        for place, name in enumerate(chosen):
            photo = decode(photos.data[generator.choice(test[photos.coarse[test] == name])])
            tile = ImageOps.fit(photo, (174, 174), Image.Resampling.BICUBIC)
            image.paste(tile, (place % 2 * 174, place // 2 * 174))
        images.append(image)
        classes.append(chosen)
    return images, classes


def auc(scores: Floats, positive: Mask, weight: Floats | None = None) -> float:
    """Chance that a positive outranks a negative, ties half; weights count resampled images."""
    weight = np.ones(len(scores)) if weight is None else weight
    _, group = np.unique(scores, return_inverse=True)
    wins = np.bincount(group, weight * positive)
    losses = np.bincount(group, weight * ~positive)
    below = np.cumsum(losses) - losses
    total = wins.sum() * losses.sum()
    return float((wins * (below + losses / 2)).sum() / total) if total else 0.5


def grounded_words() -> set[str]:
    """Phrases that rendered scenes of the head's attribute rows stand for."""
    tables = attributes.vocabulary()
    families = [name for name in tables["families"] if name != "phrases"]
    found = {*tables["colours"], *tables["combinations"], *tables["objects"]}
    for name in families:
        plain = name.removesuffix(" color")
        found |= {phrase.format(plain) for phrase in tables["families"]["phrases"]}
    for kind in ("patterns", "textures", "shapes"):
        found |= {phrase for phrases in tables[kind].values() for phrase in phrases}
    for options in tables["objects"].values():
        found |= set(options.get("phrases", []))
    return found


def word_quality(values: Floats, words: list[str], fine: npt.NDArray[np.str_]) -> dict[str, object]:
    """Question (a) on the presence [n, words] of test photos."""
    columns = {word: values[:, words.index(word)] for word in PAIRS}
    member = {word: np.isin(fine, classes) for word, classes in PAIRS.items()}
    single = {word: auc(columns[word], member[word]) for word in PAIRS}
    generator = np.random.default_rng(0)
    resampled = []
    for _ in range(DRAWS // 5):
        weight = np.bincount(
            generator.integers(0, len(fine), len(fine)), minlength=len(fine)
        ).astype(float)
        resampled.append(np.mean([auc(columns[word], member[word], weight) for word in PAIRS]))
    low, high = np.percentile(resampled, [2.5, 97.5])
    shuffled = []
    for _ in range(20):
        order = generator.permutation(list(PAIRS))
        pairs = zip(PAIRS, order, strict=True)
        shuffled.append(np.mean([auc(columns[str(other)], member[word]) for word, other in pairs]))
    drawn = grounded_words()
    return {
        "pairs": len(PAIRS),
        # Words that were drawn to align the encoder, and words it never saw an image of.
        "mean_auc_drawn": float(np.mean([v for word, v in single.items() if word in drawn])),
        "mean_auc_not_drawn": float(
            np.mean([v for word, v in single.items() if word not in drawn])
        ),
        "not_drawn": [word for word in PAIRS if word not in drawn],
        "mean_auc": {
            "value": float(np.mean(list(single.values()))),
            "low": float(low),
            "high": float(high),
        },
        "shuffled_auc": {
            "value": float(np.mean(shuffled)),
            "low": float(np.percentile(shuffled, 2.5)),
            "high": float(np.percentile(shuffled, 97.5)),
        },
        "auc": {word: round(value, 3) for word, value in single.items()},
    }


@dataclass(frozen=True)
class Explainer:
    """A sparse concept student of the coarse classes, for scoring single regions."""

    texts: Floats
    text_mean: Floats
    region_mean: Floats
    scale: Floats
    weights: Floats
    classes: list[str]

    def region_scores(self, rows: Floats) -> Floats:
        """What each region alone would add to each class, [R, classes]."""
        cosines = region_cosines(rows, self.texts, self.region_mean, self.text_mean)
        return np.asarray(np.maximum(cosines, 0) / self.scale @ self.weights.T)


def train_explainer(
    train: Regions,
    coarse: npt.NDArray[np.str_],
    words: list[str],
    model: EncoderModel,
    region_mean: Floats,
) -> Explainer:
    """Fit at NEC 10 to the labels of the training photos, on words that are no class names."""
    classes = sorted({str(name) for name in coarse})
    texts = model.texts(words).astype(np.float32)
    text_mean = texts.mean(axis=0)
    values = presence(train.flat(), train.offsets(), texts, region_mean, text_mean).values
    found = filter_words(words, classes, texts, model.texts(classes).astype(np.float32), values)
    kept = list(found.kept)
    mean, scale = values[:, kept].mean(axis=0), np.maximum(values[:, kept].std(axis=0), 1e-6)
    targets = (coarse[:, None] == np.array(classes)).astype(np.float64)
    fit = fit_path((values[:, kept] - mean) / scale, targets, "softmax", [NEC])[NEC]
    return Explainer(texts[kept], text_mean, region_mean, scale, fit.weights, classes)


def inside_region(cells: npt.NDArray[np.uint8], region: int) -> Floats:
    """1 where a cell belongs to a region (a segment of the map, or a block behind them), else 0."""
    segments = int(cells.max())
    if region <= segments:
        return np.asarray((cells == region).astype(float))
    mask = np.zeros(cells.shape)
    top, bottom, left, right = block_bounds(*cells.shape)[region - segments - 1]
    mask[top:bottom, left:right] = 1
    return mask


def quarter_shares(cells: npt.NDArray[np.uint8], region: int) -> Floats:
    """Shares [4] of a region's area in each quarter, reading order; a middle row or column counts
    half.
    """
    inside = inside_region(cells, region)
    halves = []
    for size in cells.shape:
        first = np.clip(size / 2 - np.arange(size), 0, 1)
        halves.append(np.stack([first, 1 - first]))
    shares = halves[0] @ inside @ halves[1].T
    return np.asarray(shares.ravel() / max(inside.sum(), 1))


def localisation(
    explainer: Explainer, tiles: Regions, classes: list[list[str]]
) -> dict[str, object]:
    """Question (b): per class of a mosaic, the segment that speaks most for it."""
    hits = np.zeros((len(classes), 4))
    shares = np.zeros((len(classes), 4))
    for at, names in enumerate(classes):
        scores = explainer.region_scores(tiles.rows[at, 1:])
        for place, name in enumerate(names):
            best = int(scores[:, explainer.classes.index(name)].argmax()) + 1
            quarter = quarter_shares(tiles.cells[at], best)
            hits[at, place] = quarter.argmax() == place
            shares[at, place] = quarter[place]
    return {
        "mosaics": len(classes),
        "right_quarter": interval(hits.mean(axis=1)),
        "area_in_quarter": interval(shares.mean(axis=1)),
        # One region covers all quarters alike, whatever it says.
        "whole_image_only": {"value": 0.25, "low": 0.25, "high": 0.25},
        "chance": 0.25,
    }


def interval(values: Floats) -> dict[str, float]:
    """Mean with its 95 % bootstrap interval over images."""
    picks = np.random.default_rng(0).integers(0, len(values), (DRAWS, len(values)))
    low, high = np.percentile(values[picks].mean(axis=1), [2.5, 97.5])
    return {"value": float(values.mean()), "low": float(low), "high": float(high)}


def show(console: Console, result: dict[str, dict[str, object]]) -> None:
    table = Table("word", "AUC", title="presence on test photos, against the classes it describes")
    for word, value in sorted(result["words"]["auc"].items(), key=lambda item: -item[1]):  # type: ignore[attr-defined]
        table.add_row(word, f"{value:.3f}")
    console.print(table)
    summary = Table("question", "value", "95 % interval", "beside it")
    words, where = result["words"], result["localisation"]
    for name, found, beside in (
        ("mean AUC of words", words["mean_auc"], words["shuffled_auc"]),
        ("explained in the right quarter", where["right_quarter"], where["whole_image_only"]),
        ("area in the right quarter", where["area_in_quarter"], where["whole_image_only"]),
    ):
        span = f"{found['low']:.3f} to {found['high']:.3f}"  # type: ignore[index]
        summary.add_row(name, f"{found['value']:.3f}", span, f"{beside['value']:.3f}")  # type: ignore[index]
    summary.add_row("positive cosines", f"{result['positive']['share']:.3f}", "", "0.20 to 0.80")
    console.print(summary)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cache", type=Path, default=DEFAULT_CACHE)
    parser.add_argument("--mosaics", type=int, default=300)
    options = parser.parse_args()
    torch.set_num_threads(2)
    model, photos = get_parts(options.cache.expanduser())
    words = list(built_in()["everyday"].words)
    texts = model.texts(words).astype(np.float32)
    regions = embed_photos(model, photos)
    fitting = photos.split != "test"
    train = Regions(regions.rows[fitting], regions.cells[fitting])
    region_mean = train.flat().astype(np.float64).mean(axis=0).astype(np.float32)
    text_mean = texts.mean(axis=0)
    values = presence(regions.flat(), regions.offsets(), texts, region_mean, text_mean).values
    explainer = train_explainer(train, photos.coarse[fitting], words, model, region_mean)
    images, classes = mosaics(photos, options.mosaics)
    share = positive_share(train.flat(), texts, region_mean, text_mean)
    result: dict[str, dict[str, object]] = {
        "words": word_quality(values[~fitting], words, photos.fine[~fitting]),
        "localisation": localisation(explainer, embed(model, images), classes),
        "positive": {"share": share, "within_bounds": 0.2 <= share <= 0.8},
    }
    show(Console(), result)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
