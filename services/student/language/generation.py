"""Answers of a model in training or under test, a few prompts at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from stillhouse.common.v1 import language_pb2
from torch.distributed.fsdp import FSDPModule

from services.common.errors import InvalidInput
from services.torch_common.language.packing import Encoder, Ids

DEFAULT_TOKENS = 128
MAX_STOPS = 8
BATCH = 8


@dataclass(frozen=True)
class SamplingOptions:
    """How answers are made; temperature 0 is greedy."""

    temperature: float
    top_p: float
    max_tokens: int
    stop: tuple[str, ...]
    seed: int


def read_sampling(
    message: language_pb2.Sampling, *, temperature: float, field: str
) -> SamplingOptions:
    """The options of a request, `temperature` where it gives none. Raises InvalidInput."""
    in_range = (
        0 <= message.temperature <= 100
        and 0 <= message.top_p <= 1
        and 0 <= message.max_tokens <= 1 << 16
        and len(message.stop) <= MAX_STOPS
        and all(message.stop)
    )
    if not in_range:
        raise InvalidInput(f"{field}: temperature, top_p, max_tokens or stop is out of range")
    return SamplingOptions(
        temperature=message.temperature or temperature,
        top_p=message.top_p or 1.0,
        max_tokens=message.max_tokens or DEFAULT_TOKENS,
        stop=tuple(message.stop),
        seed=message.seed & 0x7FFF_FFFF,
    )


@torch.no_grad()
def generate(
    model: Any,
    encoder: Encoder,
    prompts: Sequence[Ids],
    sampling: SamplingOptions,
    *,
    dtype: torch.dtype,
    seed: int = 0,
) -> list[Ids]:
    """Ids of the answer to each prompt, its end-of-text token included where it came.

    Nothing is drawn from torch's generators but what `sampling.seed + seed` decides. A prompt that
    fills the context gets no answer.
    """
    training, device = model.training, next(model.parameters()).device
    context = int(model.config.max_position_embeddings)
    fitting = (i for i, prompt in enumerate(prompts) if 0 < len(prompt) < context)
    order = sorted(fitting, key=lambda i: (len(prompts[i]), i))
    answers: list[Ids] = [np.zeros(0, np.int32)] * len(prompts)
    devices = [device] if device.type == "cuda" else []
    model.eval()
    with (
        torch.random.fork_rng(devices=devices),
        torch.autocast(device.type, dtype, enabled=dtype != torch.float32),
    ):
        torch.manual_seed(sampling.seed + seed)
        for at in range(0, len(order), BATCH):
            some = order[at : at + BATCH]
            made = _batch(model, encoder, [prompts[i] for i in some], sampling)
            answers = [
                made[some.index(i)] if i in some else answer for i, answer in enumerate(answers)
            ]
    model.train(training)
    return answers


def text_of(encoder: Encoder, answer: Ids, stop: Sequence[str]) -> str:
    """An answer's text up to the first stop text."""
    text = encoder.decode(answer)
    ends = [at for at in (text.find(one) for one in stop) if at >= 0]
    return text[: min(ends)] if ends else text


def _batch(
    model: Any, encoder: Encoder, prompts: Sequence[Ids], sampling: SamplingOptions
) -> list[Ids]:
    """Answers to prompts of like length, padded on the left."""
    device = next(model.parameters()).device
    longest = max(len(prompt) for prompt in prompts)
    room = int(model.config.max_position_embeddings) - longest
    end = encoder.eos_id if encoder.eos_id is not None else 0
    ids = torch.full((len(prompts), longest), end, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :] = torch.from_numpy(prompt.astype(np.int64))
        mask[row, longest - len(prompt) :] = 1
    made = model.generate(
        input_ids=ids.to(device),
        attention_mask=mask.to(device),
        synced_gpus=isinstance(model, FSDPModule),  # ranks wait for one another at every token
        generation_config=_config(sampling, encoder, room, int(model.config.vocab_size)),
    )
    return [_to_end(row, encoder.eos_id) for row in made[:, longest:].cpu().numpy()]


def _config(sampling: SamplingOptions, encoder: Encoder, room: int, outputs: int) -> Any:
    from transformers import GenerationConfig

    # Named, because transformers would take what is not from the model's own generation_config.
    options: dict[str, Any] = {"repetition_penalty": 1.0, "no_repeat_ngram_size": 0}
    if outputs > encoder.vocab_size:  # padding of the output layer: ids that are no text
        options["suppress_tokens"] = list(range(encoder.vocab_size, outputs))
    if sampling.temperature:
        options |= {"temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0}
    return GenerationConfig(  # type: ignore[no-untyped-call]
        do_sample=bool(sampling.temperature),
        max_new_tokens=min(sampling.max_tokens, room),
        eos_token_id=encoder.eos_id,
        pad_token_id=encoder.eos_id if encoder.eos_id is not None else 0,
        **options,
    )


def _to_end(row: Any, eos_id: int | None) -> Ids:
    """The ids up to and with the first end-of-text token; padding follows it."""
    ends = np.flatnonzero(row == eos_id) if eos_id is not None else np.zeros(0, np.int64)
    return np.asarray(row[: ends[0] + 1] if len(ends) else row, np.int32)
