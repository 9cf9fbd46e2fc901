"""Keys: everything a value depends on is in them, so nothing is found that should not be."""

from __future__ import annotations

import dataclasses

import pytest

from services.common.errors import InvalidInput
from services.gateway.keys import RegionSpace, region_key, stage_ref

SPACE = RegionSpace("default", "1" * 64, "2" * 64, "3" * 64)
ITEM = "a" * 64


@pytest.mark.parametrize(
    "field", ["project", "encoder_digest", "preprocessing_digest", "region_digest"]
)
def test_a_region_key_changes_with_everything_its_value_depends_on(field: str) -> None:
    other = "other" if field == "project" else "9" * 64
    assert region_key(dataclasses.replace(SPACE, **{field: other}), ITEM) != region_key(SPACE, ITEM)


def test_a_region_key_names_full_digests_and_the_element_type() -> None:
    parts = region_key(SPACE, ITEM).split(":")
    assert {ITEM, "1" * 64, "2" * 64, "3" * 64, "default", "f2"} <= set(parts)
    assert region_key(SPACE, "b" * 64) != region_key(SPACE, ITEM)


@pytest.mark.parametrize("bad", ["", "A" * 64, "a" * 63, "a" * 63 + ":", "../" + "a" * 61])
def test_a_key_is_never_built_from_what_is_not_a_digest(bad: str) -> None:
    with pytest.raises(InvalidInput):
        region_key(SPACE, bad)
    with pytest.raises(InvalidInput):
        RegionSpace("default", bad, "2" * 64, "3" * 64).check()


def test_a_project_that_is_not_one_is_refused() -> None:
    with pytest.raises(InvalidInput):
        RegionSpace("a:b", "1" * 64, "2" * 64, "3" * 64).check()


def test_a_stage_ref_depends_on_every_input_and_not_on_their_order() -> None:
    inputs = {"model": "m", "items": ["x", "y"], "cross_fitted": True}
    same = stage_ref("teacher_outputs", dict(reversed(inputs.items())))
    assert same == stage_ref("teacher_outputs", inputs)
    others = [{**inputs, "model": "n"}, {**inputs, "items": ["y", "x"]}, {**inputs, "more": 1}]
    refs = {stage_ref("teacher_outputs", other) for other in others}
    assert len(refs | {same, stage_ref("regions", inputs)}) == 5
