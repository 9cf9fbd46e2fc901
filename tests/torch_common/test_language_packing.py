"""Tokens, sequences and digests, alike for the teacher and every student."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from services.common.errors import InvalidInput, Precondition
from services.common.texts import TextRecord
from services.torch_common.language.loading import load_tokenizer
from services.torch_common.language.packing import (
    Encoder,
    answered,
    pack,
    prompt_ids,
    tokenizer_digest,
)
from tests.teacher.language_models import TEXT, write_tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("packing")
    write_tiny(path / "plain")
    write_tiny(path / "bos", bos=True)
    return path


@pytest.fixture(scope="module")
def encoder(folder: Path) -> Encoder:
    return Encoder(load_tokenizer(folder / "plain"))


def test_texts_are_joined_and_cut(encoder: Encoder) -> None:
    texts = [TEXT, "a cat", TEXT + TEXT]
    packed = pack([TextRecord(str(n), text=t) for n, t in enumerate(texts)], encoder, 32)
    joined = [i for text in texts for i in [*encoder.ids(text), encoder.eos_id]]
    whole = np.concatenate([one.tokens for one in packed.sequences])
    np.testing.assert_array_equal(whole, joined[: len(whole)])
    assert len(joined) - len(whole) < 8
    assert {one.record for one in packed.sequences} == {b""}
    assert [len(one.tokens) for one in packed.sequences[:-1]] == [32] * (len(packed.sequences) - 1)
    for one in packed.sequences:
        assert one.is_target.tolist() == [0] + [1] * (len(one.tokens) - 1)
        data = one.tokens.astype("<i4").tobytes() + one.is_target.tobytes()
        assert one.digest == hashlib.sha256(data).digest()


def test_prompt_and_answer_are_tokenized_each_by_itself(encoder: Encoder) -> None:
    record = TextRecord("a", prompt="the qui", answer="ck brown")
    (one,) = pack([record], encoder, 64).sequences
    before, after = encoder.ids("the qui"), [*encoder.ids("ck brown"), encoder.eos_id]
    assert one.tokens.tolist() == [*before, *after]
    assert one.is_target.tolist() == [0] * len(before) + [1] * len(after)
    assert one.target_count == len(after)
    assert one.record.hex() == record.digest


def test_a_chat_record_goes_through_the_template(encoder: Encoder) -> None:
    record = TextRecord("a", prompt="the fox", answer="dog", chat=True)
    text = "<user>the fox\n<assistant>"
    assert prompt_ids(encoder, record).tolist() == encoder.ids(text).tolist()
    encoder.tokenizer.chat_template, kept = None, encoder.tokenizer.chat_template
    with pytest.raises(Precondition, match="no chat template"):
        pack([record], encoder, 64)
    encoder.tokenizer.chat_template = kept


def test_a_first_token_stands_before_prompts_where_the_tokenizer_has_one(folder: Path) -> None:
    encoder = Encoder(load_tokenizer(folder / "bos"))
    assert encoder.prefix == (0,)
    assert encoder.prompt("the")[0] == 0
    assert 0 not in encoder.ids("the")
    (one,) = pack([TextRecord("a", prompt="the", answer="cat")], encoder, 64).sequences
    assert one.tokens[0] == 0


def test_what_does_not_fit_is_named_and_never_cut(encoder: Encoder) -> None:
    records = [
        TextRecord("a", prompt="the", answer=TEXT * 2),
        TextRecord("b", prompt="the"),
        TextRecord("c", prompt="the", answer="x\ud800"),
        TextRecord("d", prompt="the", answer="cat"),
    ] + [TextRecord(str(n), prompt="the") for n in range(30)]
    packed = pack(records, encoder, 24)
    assert len(packed.sequences) == 1
    assert packed.skipped_count == 33
    assert len(packed.skipped) == 20
    assert packed.skipped[0].endswith("tokens, the limit is 24")
    assert packed.skipped[1:3] == [
        "record 1: a prompt without an answer",
        "record 2: text: not valid Unicode",
    ]
    with pytest.raises(InvalidInput, match="below 8"):
        pack(records, encoder, 4)


def test_a_sequence_without_a_prompt_does_not_predict_its_first_token() -> None:
    one = answered(np.zeros(0, np.int32), np.array([5, 6], np.int32))
    assert one.is_target.tolist() == [0, 1]


def test_the_tokenizers_digest_is_of_what_it_does(folder: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(folder / "plain")
    digest = tokenizer_digest(tokenizer)
    tokenizer.backend_tokenizer.enable_truncation(5)
    tokenizer.backend_tokenizer.enable_padding()
    assert tokenizer_digest(tokenizer) == digest != tokenizer_digest(load_tokenizer(folder / "bos"))
    assert Encoder(tokenizer).ids(TEXT).size > 5
    raw = json.loads((folder / "plain" / "tokenizer.json").read_text())
    (tmp_path / "tokenizer.json").write_text(json.dumps(raw, indent=7))
    (tmp_path / "tokenizer_config.json").write_bytes(
        (folder / "plain" / "tokenizer_config.json").read_bytes()
    )
    assert tokenizer_digest(load_tokenizer(tmp_path)) == digest
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(InvalidInput, match="tokenizer"):
        load_tokenizer(tmp_path)


def test_huge_texts_are_refused_before_they_are_read(encoder: Encoder) -> None:
    with pytest.raises(InvalidInput, match="over 1,000,000"):
        encoder.ids("a" * 1_000_001)
