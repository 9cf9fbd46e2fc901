"""Rendered attributes: fixed by their seed, varied, and turned into directions that find them."""

from __future__ import annotations

import numpy as np
import pytest

from services.concepts import attributes
from services.concepts.alignment import Rows, fit_head
from services.concepts.concept_sets import built_in


def colours_of(found):
    """A stand-in for a trunk: mean and spread of the three channels."""
    features = []
    for image, _ in found:
        pixels = np.asarray(image, dtype=np.float64).reshape(-1, 3)
        features.append(np.concatenate([pixels.mean(axis=0), pixels.std(axis=0)]))
    return np.array(features)


@pytest.fixture(scope="module")
def rendered():
    return list(attributes.scenes(count=78, per_object=1))


def test_scenes_are_fixed_by_their_seed(rendered):
    again = next(iter(attributes.scenes(count=1)))
    assert again[0].tobytes() == rendered[0][0].tobytes()
    assert again[1] == rendered[0][1]
    other = next(iter(attributes.scenes(seed=1, count=1)))
    assert other[0].tobytes() != again[0].tobytes()
    assert again[0].size == (260, 260)


def test_every_colour_and_object_is_drawn(rendered):
    labels = [label for _, label in rendered]
    assert {label["colour"] for label in labels} == set(attributes.vocabulary()["colours"])
    objects = {label["object"] for label in labels if "object" in label}
    assert objects == set(attributes.vocabulary()["objects"])


def test_the_direction_of_red_points_at_red(rendered):
    features = colours_of(rendered)
    labels = [label for _, label in rendered]
    found = attributes.directions(features, labels)
    red = found.vectors[[names[0] for names in found.phrases].index("red")]
    shades = set(attributes.vocabulary()["families"]["red"])
    is_red = np.array([label["colour"] in shades for label in labels])
    scores = (features - found.feature_mean) @ red
    assert scores[is_red].mean() > scores[~is_red].mean() + scores.std()


def test_phrases_share_the_weight_of_their_direction():
    found = attributes.Directions(np.eye(2, 4), (("a", "b", "c", "d"), ("e",)), np.zeros(4))
    rows = attributes.rows(found, lambda texts: np.ones((len(texts), 3)), np.zeros(3))
    energy = (rows.vectors**2).sum(axis=1)
    assert energy[:4].sum() == pytest.approx(energy[4])
    assert rows.texts.shape == (5, 3)


def test_directions_survive_packing(tmp_path, monkeypatch):
    found = attributes.Directions(np.eye(2, 4), (("a", "b"), ("c",)), np.arange(4.0))
    monkeypatch.setattr(attributes, "_FOLDER", tmp_path)
    (tmp_path / "trunk.safetensors").write_bytes(attributes.pack(found, "digest"))
    back = attributes.load("trunk", "digest")
    assert back is not None
    assert back.phrases == found.phrases
    assert (back.vectors == found.vectors).all()
    assert (back.feature_mean == found.feature_mean).all()
    assert attributes.load("trunk", "other weights") is None
    assert attributes.load("other", "digest") is None


def test_shipped_directions_ground_words_of_the_corpus():
    path = attributes._FOLDER / "tf_efficientnet_lite2.safetensors"
    digest = attributes.safe_open(path, framework="np").__enter__().metadata()["weights"]
    found = attributes.load("tf_efficientnet_lite2", digest)
    assert found is not None
    phrases = {name for names in found.phrases for name in names}
    assert len(phrases & set(built_in()["everyday"].words)) > 80
    generator = np.random.default_rng(0)
    classes = Rows(generator.normal(size=(50, 1280)), generator.normal(size=(50, 16)))
    words = {name: generator.normal(size=16) for name in sorted(phrases)}
    rows = attributes.rows(found, lambda texts: np.stack([words[t] for t in texts]), np.zeros(16))
    head = fit_head(classes, rows, feature_mean=found.feature_mean)
    assert np.isfinite(head.weight).all()
    assert np.abs(head.bias).max() > 0
