"""Prompts and answers of a request, checked and turned into token ids."""

from __future__ import annotations

import numpy as np
from stillhouse.common.v1 import language_pb2, tensor_pb2
from stillhouse.teacher.v1 import teacher_pb2

from services.common.errors import InvalidInput
from services.common.inputs import MAX_ITEM_ID
from services.common.tensors import Array, expect, from_message
from services.teacher.language.scoring import ScoreInput
from services.torch_common.language.packing import Encoder

ROLES = ("system", "user", "assistant")
MAX_TURNS = 1000


def check_item_id(item_id: str) -> None:
    """Raise InvalidInput where an item's name is too long."""
    if len(item_id) > MAX_ITEM_ID:
        raise InvalidInput(f"item_id: longer than {MAX_ITEM_ID} characters", field="item_id")


def given_ids(message: tensor_pb2.Tensor, vocab_size: int, *, field: str) -> Array:
    """Return a request's token ids, int32 [t]. Raises InvalidInput for another dtype or shape, or
    an id outside the vocabulary."""
    ids = expect(from_message(message, field=field), shape=(None,), field=field)
    if ids.dtype != np.int32:
        raise InvalidInput(f"{field}: dtype {ids.dtype}, expected int32", field=f"{field}.dtype")
    if len(ids) and not (int(ids.min()) >= 0 and int(ids.max()) < vocab_size):
        raise InvalidInput(
            f"{field}: ids must be 0 to {vocab_size - 1}, got {int(ids.min())} to {int(ids.max())}",
            field=field,
        )
    return ids


def turns(chat: language_pb2.Chat) -> list[tuple[str, str]]:
    """Return (role, content) of a conversation. Raises InvalidInput."""
    if not 1 <= len(chat.messages) <= MAX_TURNS:
        raise InvalidInput(f"chat: 1 to {MAX_TURNS} messages are required", field="chat.messages")
    for message in chat.messages:
        if message.role not in ROLES:
            raise InvalidInput(
                f"chat: role {message.role[:20]!r} is none of {', '.join(ROLES)}",
                field="chat.messages.role",
            )
    return [(message.role, message.content) for message in chat.messages]


def prompt_ids(prompt: language_pb2.Prompt, encoder: Encoder, vocab_size: int) -> Array:
    """Return a prompt's token ids, int32 [t].

    Raises InvalidInput, or Precondition for a conversation where there is no chat template.
    """
    kind = prompt.WhichOneof("prompt")
    if kind == "text":
        return encoder.prompt(prompt.text)
    if kind == "chat":
        return encoder.chat(turns(prompt.chat))
    if kind == "token_ids":
        return given_ids(prompt.token_ids, vocab_size, field="prompt.token_ids")
    raise InvalidInput("prompt: one of text, chat, token_ids is required", field="prompt")


def score_input(
    item: teacher_pb2.ScoreItem, encoder: Encoder, vocab_size: int, *, context: int, budget: int
) -> ScoreInput:
    """Return what to score of an item. Raises InvalidInput where it is over a limit or empty, and
    what `prompt_ids` raises."""
    check_item_id(item.item_id)
    if item.HasField("prompt"):
        prompt = prompt_ids(item.prompt, encoder, vocab_size)
    else:
        prompt = np.array(encoder.prefix, np.int32)
    kind = item.WhichOneof("answer")
    if kind == "text":
        answer: Array = encoder.ids(item.text)
    elif kind == "token_ids":
        answer = given_ids(item.token_ids, vocab_size, field="token_ids")
    else:
        raise InvalidInput("answer: one of text, token_ids is required", field="text")
    if item.end_of_text:
        answer = np.concatenate([answer, encoder.end()])
    if not len(answer):
        raise InvalidInput("answer: has no tokens", field=kind)
    ids = np.concatenate([prompt, answer]).astype(np.int32)
    check_length(len(ids), context=context, budget=budget)
    return ScoreInput(ids, len(prompt))


def check_length(tokens: int, *, context: int, budget: int) -> None:
    """Raise InvalidInput where a sequence is over the context or over a batch."""
    if tokens > context:
        raise InvalidInput(f"{tokens:,} tokens, the model's context has {context:,}")
    if tokens > budget:
        raise InvalidInput(f"{tokens:,} tokens, the service takes {budget:,} (max_batch_tokens)")
