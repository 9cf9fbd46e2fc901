"""Text records to sequences of tokens, alike for the teacher and every student.

A record with a prompt and an answer becomes one sequence: the two tokenized each by itself, so that
the same prompt and answer always meet at the same token, then the end-of-text token; the answer and
the end are its targets. Plain texts are joined, an end-of-text token behind each, and cut into
sequences of one length; every token but a sequence's first is a target.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from services.common.errors import InvalidInput, Precondition
from services.common.targets import sequence_digest
from services.common.texts import MAX_TEXT_CHARS, TextRecord

Ids = npt.NDArray[np.int32]
MIN_SEQUENCE = 8
"""A last sequence of joined texts that is shorter, in tokens, is dropped."""
MAX_SKIPPED = 20


@dataclass(frozen=True)
class PackedSequence:
    """`tokens` int32 [t], and `is_target` uint8 [t]: 1 where a token is one to predict."""

    tokens: Ids
    is_target: npt.NDArray[np.uint8]
    record: bytes = b""
    """Digest of the one text record that it comes from, 32 bytes; empty where there is none."""

    @cached_property
    def digest(self) -> bytes:
        """SHA-256, 32 bytes; it finds the sequence's targets."""
        return sequence_digest(self.tokens, self.is_target)

    @property
    def target_count(self) -> int:
        """Tokens to predict."""
        return int(self.is_target.sum())


@dataclass
class Packed:
    """Sequences (those of prompts first, in order of the records), and records that became none."""

    sequences: list[PackedSequence] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    """At most 20: `record 17: 5,120 tokens, the limit is 2,048`."""
    skipped_count: int = 0

    def skip(self, at: int, why: str) -> None:
        """Note that the record at `at` became no sequence."""
        self.skipped_count += 1
        if len(self.skipped) < MAX_SKIPPED:
            self.skipped.append(f"record {at}: {why}")


class Encoder:
    """Text to token ids by a fast tokenizer of transformers. Thread-safe."""

    def __init__(self, tokenizer: Any) -> None:
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise InvalidInput("the model has no tokenizer.json", field="model")
        backend.no_truncation()
        backend.no_padding()
        self._backend, self.tokenizer = backend, tokenizer
        self.vocab_size = len(tokenizer)
        """Ids of the vocabulary, added tokens included."""
        self.eos_id: int | None = tokenizer.eos_token_id
        lead = backend.encode("", add_special_tokens=True).ids[:1]
        self.prefix: tuple[int, ...] = tuple(i for i in lead if i == tokenizer.bos_token_id)
        """What the tokenizer itself puts before a text: its first token, or nothing."""

    @property
    def has_chat_template(self) -> bool:
        """Whether `chat` works."""
        return bool(getattr(self.tokenizer, "chat_template", None))

    def ids(self, text: str) -> Ids:
        """Ids of `text` by itself, without special tokens around it. Raises InvalidInput."""
        if len(text) > MAX_TEXT_CHARS:
            raise InvalidInput(f"text: over {MAX_TEXT_CHARS:,} characters", field="text")
        try:
            found = self._backend.encode(text, add_special_tokens=False).ids
        except (TypeError, UnicodeEncodeError):  # a lone surrogate
            raise InvalidInput("text: not valid Unicode", field="text") from None
        return np.array(found, np.int32)

    def prompt(self, text: str) -> Ids:
        """Ids of a prompt: the tokenizer's own first token where it has one, then the text."""
        return np.concatenate([np.array(self.prefix, np.int32), self.ids(text)])

    def chat(self, messages: Sequence[tuple[str, str]]) -> Ids:
        """Ids of a conversation, (role, content) oldest first, up to where the answer begins.

        Raises Precondition where the model has no chat template, InvalidInput where the template
        refuses the conversation.
        """
        if not self.has_chat_template:
            raise Precondition("the model has no chat template; give the prompt as text")
        turns = [{"role": role, "content": content} for role, content in messages]
        try:
            text = self.tokenizer.apply_chat_template(
                turns, tokenize=False, add_generation_prompt=True
            )
        except Exception as error:  # a template is a program of its own
            raise InvalidInput(f"chat: {error}"[:300], field="chat") from None
        return self.ids(str(text))

    def end(self) -> Ids:
        """The end-of-text token, int32 [1]. Raises Precondition where the tokenizer has none."""
        if self.eos_id is None:
            raise Precondition("the model's tokenizer has no end-of-text token")
        return np.array([self.eos_id], np.int32)

    def decode(self, ids: Iterable[int]) -> str:
        """Text of token ids, special tokens left out."""
        return str(self._backend.decode([int(i) for i in ids], skip_special_tokens=True))


def tokenizer_digest(tokenizer: Any) -> str:
    """SHA-256 of a fast tokenizer's canonical JSON, truncation and padding left out: equal digests
    give equal ids for every text."""
    raw = json.loads(tokenizer.backend_tokenizer.to_str())
    raw.pop("truncation", None)
    raw.pop("padding", None)
    text = json.dumps(raw, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def prompt_ids(encoder: Encoder, record: TextRecord) -> Ids:
    """Ids of a record's prompt, as text or as a user turn of the chat template."""
    if record.chat:
        return encoder.chat([("user", record.prompt)])
    return encoder.prompt(record.prompt)


def answered(prompt: Ids, answer: Ids) -> PackedSequence:
    """The sequence of a prompt and its answer (its end-of-text token included): the answer's tokens
    are the targets, but never a sequence's first."""
    is_target = np.concatenate([np.zeros(len(prompt), np.uint8), np.ones(len(answer), np.uint8)])
    is_target[:1] = 0
    return PackedSequence(np.concatenate([prompt, answer]).astype(np.int32), is_target)


def pack(records: Sequence[TextRecord], encoder: Encoder, sequence_length: int) -> Packed:
    """Turn records into sequences of at most `sequence_length` tokens.

    An answer is never cut: a record that does not fit is skipped, as is a prompt without an answer.
    Raises InvalidInput where `sequence_length` is below 8.
    """
    if sequence_length < MIN_SEQUENCE:
        raise InvalidInput(f"sequence_length: below {MIN_SEQUENCE}", field="sequence_length")
    packed, texts = Packed(), []
    for at, record in enumerate(records):
        try:
            if record.text:
                texts.append(np.concatenate([encoder.ids(record.text), encoder.end()]))
            else:
                _pack_answer(packed, at, record, encoder, sequence_length)
        except InvalidInput as error:
            packed.skip(at, error.message)
    packed.sequences += cut(texts, sequence_length)
    return packed


def _pack_answer(
    packed: Packed, at: int, record: TextRecord, encoder: Encoder, sequence_length: int
) -> None:
    if not record.answer:
        packed.skip(at, "a prompt without an answer")
        return
    answer = np.concatenate([encoder.ids(record.answer), encoder.end()])
    one = answered(prompt_ids(encoder, record), answer)
    one = replace(one, record=bytes.fromhex(record.digest))
    if len(one.tokens) > sequence_length:
        packed.skip(at, f"{len(one.tokens):,} tokens, the limit is {sequence_length:,}")
    else:
        packed.sequences.append(one)


def cut(texts: Sequence[Ids], sequence_length: int) -> list[PackedSequence]:
    """Join token ids and cut them into sequences of `sequence_length`, the last one shorter."""
    joined = np.concatenate(texts) if texts else np.zeros(0, np.int32)
    parts = [joined[at : at + sequence_length] for at in range(0, len(joined), sequence_length)]
    found = []
    for tokens in parts:
        if len(tokens) >= MIN_SEQUENCE:
            is_target = np.ones(len(tokens), np.uint8)
            is_target[0] = 0
            found.append(PackedSequence(tokens, is_target))
    return found
