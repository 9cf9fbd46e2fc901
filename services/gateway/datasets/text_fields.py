"""What a row of a text source means: fields under their usual names become one text record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from services.common.errors import InvalidInput
from services.common.texts import TextRecord
from services.gateway.datasets.entries import MAX_ID_CHARS, split_of

_PROMPT = ("prompt", "instruction", "question", "problem", "input")
_ANSWER = ("answer", "output", "completion", "response")
_NAMES: dict[str, tuple[str, ...]] = {
    "text": ("text", "content"),
    "reference": ("reference", "expected"),
    "group": ("group",),
    "split": ("split",),
    "id": ("id", "record_id"),
    "choice_index": ("choice_index",),
}
MAX_GROUP_CHARS = 200
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
KNOWN = frozenset(
    (*_PROMPT, *_ANSWER, *(n for many in _NAMES.values() for n in many))
    + ("choices", "messages", "chat")
)
"""All fields that are read; a source may have others."""


class Unfit(Exception):
    """A row that does not become a record, and why, for people."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True)
class Row:
    """A record as its source gives it: `split` is empty where the source has none, and `is_own`
    says that it comes from the row itself, not from the name of its file."""

    record: TextRecord
    split: str
    is_own: bool = False


def to_row(raw: Mapping[str, Any], fallback_id: str, file_split: str) -> Row:
    """Return the record of a row. Raises Unfit.

    Known are `text`; `prompt` with `answer`, `reference`, `choices`, `choice_index`, `group`,
    `split`, `id`, `chat`; `instruction`, `input` and `output`; `question`; `completion`,
    `response`; and `messages`, a conversation of one user turn and at most one answer.
    """
    own = split_of(_text(raw, _NAMES["split"], "split"))
    given = _text(raw, _NAMES["id"], "id").strip()
    name = given if given and given.isprintable() and len(given) <= MAX_ID_CHARS else fallback_id
    record = TextRecord(
        record_id=name,
        group=_text(raw, _NAMES["group"], "group").strip()[:MAX_GROUP_CHARS],
        reference=_text(raw, _NAMES["reference"], "reference"),
    )
    if raw.get("messages") is not None:
        record = _conversation(record, raw["messages"])
    else:
        record = _plain(record, raw)
    try:
        record.check()
    except InvalidInput as error:
        raise Unfit(error.message.partition(": ")[2] or error.message) from None
    return Row(record, own or file_split, bool(own))


def _plain(record: TextRecord, raw: Mapping[str, Any]) -> TextRecord:
    prompt = _prompt(raw)
    text = "" if prompt else _text(raw, _NAMES["text"], "text")
    if not prompt.strip() and not text.strip():
        raise Unfit("it has neither a text nor a prompt")
    record = replace(
        record, text=text, prompt=prompt, chat=bool(prompt) and raw.get("chat") is True
    )
    if raw.get("choices") is not None:
        if not prompt:
            raise Unfit("its choices have no prompt")
        choices = _choices(raw["choices"])
        return replace(record, choices=choices, choice_index=_choice_index(raw, choices))
    return replace(record, answer=_text(raw, _ANSWER, "answer") if prompt else "")


def _prompt(raw: Mapping[str, Any]) -> str:
    """Return the prompt; an instruction is followed by its input after a blank line."""
    prompt = _text(raw, _PROMPT, "prompt")
    extra = raw.get("input") if raw.get("instruction") and not raw.get("prompt") else None
    if isinstance(extra, str) and extra.strip():
        return f"{prompt}\n\n{extra}"
    return prompt


def _conversation(record: TextRecord, turns: Any) -> TextRecord:
    """Return the record of a conversation of one user turn, with or without its answer."""
    if not isinstance(turns, Sequence) or isinstance(turns, str) or not turns:
        raise Unfit("its messages are not a list of turns")
    if not all(isinstance(turn, Mapping) for turn in turns):
        raise Unfit("its messages are not a list of turns with role and content")
    roles = [turn.get("role") for turn in turns]
    if roles not in (["user"], ["user", "assistant"]):
        said = ", ".join(str(role)[:20] for role in roles[:6])
        raise Unfit(f"a conversation is one user turn and its answer; this one has {said}")
    contents = [turn.get("content") for turn in turns]
    if not all(isinstance(content, str) and content.strip() for content in contents):
        raise Unfit("a turn of its conversation has no text")
    return replace(record, prompt=contents[0], answer="".join(contents[1:]), chat=True)


def _choices(value: Any) -> tuple[str, ...]:
    if not isinstance(value, Sequence) or isinstance(value, str) or len(value) < 2:
        raise Unfit("its choices are not a list of two or more")
    found = tuple(_scalar(one, "choices") for one in value)
    if not all(one.strip() for one in found):
        raise Unfit("one of its choices is empty")
    return found


def _choice_index(raw: Mapping[str, Any], choices: Sequence[str]) -> int:
    """Return which choice is right: a position from 0, a letter, or the choice itself."""
    values = [raw[name] for name in ("choice_index", *_ANSWER) if raw.get(name) is not None]
    value = values[0] if values else None
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, str):
        if value in choices:
            return choices.index(value)
        letter = value.strip().upper()
        if len(letter) == 1 and letter in _LETTERS:
            return _LETTERS.index(letter)
    raise Unfit("it does not say which choice is right (choice_index)")


def _text(raw: Mapping[str, Any], names: Sequence[str], what: str) -> str:
    value = next((raw[name] for name in names if raw.get(name) not in (None, "")), "")
    return _scalar(value, what)


def _scalar(value: Any, what: str) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    raise Unfit(f"its {what} is not text")
