"""Records of a project's language models: they come back, and hostile ones are refused."""

from __future__ import annotations

import json
from typing import Any

import pytest

from services.common.errors import InvalidInput
from services.common.model_records import LanguageModelRecord

FILES = {"model.safetensors": "a" * 64, "config.json": "b" * 64}


def record(**more: Any) -> LanguageModelRecord:
    raw: dict[str, Any] = {
        "form": "checkpoint",
        "files": FILES,
        "weights_digest": "c" * 64,
        "tokenizer_digest": "d" * 64,
    }
    return LanguageModelRecord(**{**raw, **more})


def test_a_record_comes_back() -> None:
    found = record(card={"teacher": "ü"}, licence="Apache-2.0")
    assert LanguageModelRecord.from_bytes(found.to_bytes()) == found
    adapter = record(form="adapter", base="smollm2-135m", base_digest="e" * 64)
    assert LanguageModelRecord.from_bytes(adapter.to_bytes()) == adapter


@pytest.mark.parametrize(
    "more",
    [
        {"files": {"../model.safetensors": "a" * 64}},
        {"files": {"a/b.json": "a" * 64}},
        {"files": {".hidden.json": "a" * 64}},
        {"files": {"model.bin": "a" * 64}},
        {"files": {"model.pt": "a" * 64}},
        {"files": {"code.py": "a" * 64}},
        {"files": {"config.json": "../../etc/passwd"}},
        {"form": "pickle"},
        {"form": "adapter"},
        {"base": "x"},
    ],
)
def test_a_record_that_could_do_harm_is_refused(more: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput):
        LanguageModelRecord.from_bytes(record(**more).to_bytes())


@pytest.mark.parametrize("raw", [[], {}, {"kind": "linear_head"}, {"kind": "language_model"}, 3])
def test_what_is_no_record_is_refused(raw: object) -> None:
    with pytest.raises(InvalidInput):
        LanguageModelRecord.from_bytes(json.dumps(raw).encode())
    with pytest.raises(InvalidInput):
        LanguageModelRecord.from_bytes(b"\xff")
