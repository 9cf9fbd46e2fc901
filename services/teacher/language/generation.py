"""Write answers to a batch of prompts, one token of each a step, with one cache of keys and values.

Every answer draws from a generator of its own, seeded by the request's seed, the item's seed and
the prompt, one number a token, so that it does not matter beside whom it is written, but for the
last bits of the logits. Rows that have ended leave the batch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from services.common.tensors import Array
from services.teacher.language.cache import WrittenCache
from services.teacher.language.heads import Head
from services.teacher.language.stopping import AnswerText
from services.torch_common.language.loading import LoadedLanguageModel

_NUCLEUS = 1024
"""Most probable ids among which a nucleus is looked for first."""
_SPARSE = 0.75
"""Share of live rows below which the others leave the cache."""


@dataclass(frozen=True)
class SamplingOptions:
    """How tokens are chosen; `temperature` 0 takes the most probable one."""

    temperature: float = 0.0
    top_p: float = 1.0
    max_tokens: int = 128
    stops: tuple[str, ...] = ()
    seed: int = 0


@dataclass
class Answer:
    """One answer that is being written: `prompt` int32 [t], its text, and how it ended."""

    prompt: Array
    room: int
    """Tokens that may be made."""
    text: AnswerText
    uniform: Array
    """A number in 0..1 for each token, float64 [room]; empty where nothing is drawn."""
    log_probability: float = 0.0
    done: bool = False
    stopped: bool = False

    @cached_property
    def prompt_length(self) -> int:
        """Tokens of the prompt."""
        return len(self.prompt)


def new_answer(
    loaded: LoadedLanguageModel, prompt: Array, options: SamplingOptions, item_seed: int
) -> Answer:
    """An answer to `prompt`, int32 [t], not yet begun."""
    room = min(options.max_tokens, loaded.context_length - len(prompt))
    state = hashlib.sha256(np.ascontiguousarray(prompt, "<i4").tobytes())
    for seed in (options.seed, item_seed):
        state.update(seed.to_bytes(8, "little", signed=True))
    random = np.random.Generator(np.random.PCG64(int.from_bytes(state.digest(), "little")))
    uniform = random.random(room) if options.temperature > 0 else np.zeros(0)
    return Answer(prompt, room, AnswerText(loaded.encoder, options.stops), uniform)


@dataclass
class Batch:
    """Answers that are written side by side. `step` is called until `done`."""

    loaded: LoadedLanguageModel
    head: Head
    answers: Sequence[Answer]
    options: SamplingOptions
    chunk: int = 4096
    """Tokens of a forward pass while prompts are read."""
    _rows: list[int] = field(default_factory=list)
    _cache: WrittenCache | None = None
    _mask: Tensor | None = None
    _length: int = 0
    _next: Tensor | None = None

    @property
    def done(self) -> bool:
        """Whether every answer has ended."""
        return all(answer.done for answer in self.answers)

    @cached_property
    def ends(self) -> frozenset[int]:
        """Ids that end an answer."""
        model, encoder = self.loaded.model, self.loaded.encoder
        given = getattr(model.generation_config, "eos_token_id", None)
        more = given if isinstance(given, list) else [given]
        return frozenset(int(i) for i in [encoder.eos_id, *more] if i is not None)

    @torch.inference_mode()
    def step(self) -> list[int]:
        """Make one token of each answer that has not ended; returns the positions of the answers
        that got one. The first step reads the prompts."""
        with self.loaded.activated() as model:
            hidden = self._read(model) if self._cache is None else self._advance(model)
        logits = self.head(hidden)
        chosen = self._choose(logits)
        likely = torch.log_softmax(logits, dim=1).gather(1, chosen[:, None])[:, 0]
        got = []
        for at, token, value in zip(self._rows, chosen.tolist(), likely.tolist(), strict=True):
            if not self.answers[at].done:
                self._take(self.answers[at], token, value)
                got.append(at)
        self._next = chosen
        self._drop()
        return got

    def _read(self, model: object) -> Tensor:
        """Read the prompts, padded on the left, some columns at a time; [rows, d]."""
        self._rows = list(range(len(self.answers)))
        longest = max(answer.prompt_length for answer in self.answers)
        room = max(answer.room for answer in self.answers)
        ids = np.zeros((len(self._rows), longest), np.int64)
        mask = np.zeros((len(self._rows), longest + room), np.int64)
        for row, answer in enumerate(self.answers):
            ids[row, longest - answer.prompt_length :] = answer.prompt
            mask[row, longest - answer.prompt_length :] = 1
        device = self.loaded.device
        self._mask = torch.from_numpy(mask).to(device)
        config = self.loaded.model.config
        self._cache = WrittenCache(config.num_hidden_layers, longest + room)
        given = torch.from_numpy(ids).to(device)
        width = max(1, self.chunk // len(self._rows))
        for at in range(0, longest, width):
            hidden = self._forward(model, given[:, at : at + width])
        return hidden[:, -1]

    def _advance(self, model: object) -> Tensor:
        assert self._next is not None
        return self._forward(model, self._next[:, None])[:, -1]

    def _forward(self, model, ids: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        assert self._mask is not None
        begin, self._length = self._length, self._length + ids.shape[1]
        seen = self._mask[:, : self._length]
        places = (seen.cumsum(-1)[:, begin:] - 1).clamp_min(0)
        trunk = getattr(model, model.base_model_prefix)
        # Without padding no mask is needed, which is the quicker way through attention.
        mask = None if bool(seen.all()) else seen
        return trunk(  # type: ignore[no-any-return]
            input_ids=ids,
            attention_mask=mask,
            position_ids=places,
            past_key_values=self._cache,
            use_cache=True,
        ).last_hidden_state

    def _choose(self, logits: Tensor) -> Tensor:
        if self.options.temperature <= 0:
            return logits.argmax(dim=1)
        rows = [self.answers[at] for at in self._rows]
        points = [0.5 if one.done else one.uniform[len(one.text.ids)] for one in rows]
        uniform = torch.tensor(points, dtype=torch.float64, device=logits.device)
        return choose(logits / self.options.temperature, self.options.top_p, uniform)

    def _take(self, answer: Answer, token: int, log_probability: float) -> None:
        answer.log_probability += log_probability
        ended = token in self.ends
        if ended:
            answer.text.ids.append(token)
        else:
            answer.text.add(token)
        answer.stopped = ended or answer.text.stopped
        answer.done = answer.stopped or len(answer.text.ids) >= answer.room
        if answer.done:
            answer.text.finish()

    def _drop(self) -> None:
        """Let go of rows that have ended, once there are enough of them."""
        live = [row for row, at in enumerate(self._rows) if not self.answers[at].done]
        if not live or len(live) > _SPARSE * len(self._rows):
            return
        assert self._cache is not None
        assert self._mask is not None
        assert self._next is not None
        rows = torch.tensor(live, device=self.loaded.device)
        self._cache.keep(rows)
        self._mask, self._next = self._mask[rows], self._next[rows]
        self._rows = [self._rows[row] for row in live]


def choose(logits: Tensor, top_p: float, uniform: Tensor) -> Tensor:
    """Choose an id per row, int64 [rows], by inversion of its distribution.

    `logits` float32 [rows, vocabulary], `uniform` float64 [rows] in 0..1. With `top_p` below 1 the
    ids are those of the smallest set of the most probable ones that has at least this probability.
    """
    probabilities = torch.softmax(logits, dim=1)
    if top_p >= 1:
        return _invert(probabilities, uniform)
    count = min(_NUCLEUS, logits.shape[1])
    top = torch.topk(probabilities, count, dim=1)
    if bool((top.values.sum(1) < top_p).any()):
        top = torch.topk(probabilities, logits.shape[1], dim=1)
    before = top.values.double().cumsum(1) - top.values
    kept = torch.where(before < top_p, top.values, 0.0)
    return top.indices.gather(1, _invert(kept, uniform)[:, None])[:, 0]


def _invert(weights: Tensor, uniform: Tensor) -> Tensor:
    sums = torch.cumsum(weights, dim=1, dtype=torch.float64)
    found = torch.searchsorted(sums, (uniform * sums[:, -1])[:, None], right=True)[:, 0]
    return found.clamp_max_(weights.shape[1] - 1)
