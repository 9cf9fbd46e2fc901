"""Training on the student's own answers, which a teacher in another process scores (GKD).

In a share of the steps the student answers the prompts itself; in the others, and where the data
have an answer, the answer of the data is used. The teacher's most probable tokens are asked for
each batch, the rest being one tail. No gradient goes through the sampling (arXiv 2306.13649).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import grpc
import numpy as np
import torch
from stillhouse.student.v1 import student_pb2
from stillhouse.teacher.v1 import teacher_pb2, teacher_pb2_grpc

from services.common import callers, logs
from services.common.channels import open_blocking_channel, to_error
from services.common.errors import Overloaded, PeerUnavailable, Precondition
from services.common.targets import TargetShard
from services.common.tensors import to_message
from services.common.texts import TextRecord
from services.common.tls import TlsFiles
from services.student.language.data import TargetBank, by_length
from services.student.language.generation import SamplingOptions, generate, read_sampling
from services.student.ranks import ALONE, Ranks
from services.torch_common.language.packing import (
    Encoder,
    PackedSequence,
    answered,
    prompt_ids,
)

R = TypeVar("R")
_log = logs.get(__name__)
DEFAULT_SHARE = 0.5
DEFAULT_TEMPERATURE = 0.9
DEFAULT_TOP_K = 64
CALL_TIMEOUT_S = 300.0
GIVE_UP_S = 600.0
"""How long a teacher may be away before the run fails; it resumes when asked for again."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.2, 5.0
MOST_SEQUENCES = 64
"""Sequences of one call."""
_ID_BYTES = 6
"""What a probable id takes in a reply: a difference to the one before, and a float16."""


class TeacherClient:
    """A teacher service's SampleTargets for one model. Blocking."""

    def __init__(
        self, address: str, model: str, *, max_message_bytes: int, tls: TlsFiles | None = None
    ) -> None:
        self._model = model
        # The teacher's reply is at most half a message; who asks keeps well below.
        self._reply_bytes = max_message_bytes // 4
        self._channel = open_blocking_channel(
            address, max_message_bytes=max_message_bytes, tls=tls, service="teacher"
        )
        # The generated types know the asynchronous stub alone.
        self._stub: Any = teacher_pb2_grpc.TeacherServiceStub(self._channel)  # type: ignore[arg-type]

    def tokenizer_digest(self) -> str:
        """Digest of the teacher's tokenizer. Raises NotFound, Precondition, PeerUnavailable."""
        request = teacher_pb2.GetModelRequest(name=self._model)
        found = _retrying(lambda: self._call(self._stub.GetModel, request)).model
        if found.kind != teacher_pb2.MODEL_KIND_LANGUAGE_MODEL:
            raise Precondition(f"{self._model} is not a language model")
        return str(found.language_model.tokenizer_digest)

    def targets(
        self, sequences: Sequence[PackedSequence], *, top_k: int, temperature: float
    ) -> TargetBank:
        """The most probable tokens at each target. Raises what the teacher's status stands for."""
        shards = []
        for some in calls(sequences, self._reply_bytes // (_ID_BYTES * top_k)):
            request = teacher_pb2.SampleTargetsRequest(
                model=self._model,
                sequences=_message(some),
                kind=teacher_pb2.TARGET_KIND_TOP_K,
                top_k=top_k,
                temperature=temperature,
            )
            shards.append(TargetShard.from_bytes(self._ask(request)))
        return TargetBank(shards)

    def _ask(self, request: teacher_pb2.SampleTargetsRequest) -> bytes:
        return bytes(_retrying(lambda: self._call(self._stub.SampleTargets, request)).inline)

    def _call(self, method: Any, request: Any) -> Any:
        return method(request, timeout=CALL_TIMEOUT_S, metadata=callers.outgoing())

    def close(self) -> None:
        """Close the channel."""
        self._channel.close()


@dataclass(frozen=True)
class OnPolicyTeacher:
    """Turns planned prompts into answers, and asks the teacher for targets."""

    client: TeacherClient
    encoder: Encoder
    sampling: SamplingOptions
    share: float
    top_k: int
    temperature: float
    """Of teacher and student in the loss."""
    dtype: torch.dtype
    seed: int
    ranks: Ranks = ALONE
    replay: frozenset[bytes] = frozenset()
    """Digests of sequences that are learned as they are, by cross-entropy."""

    def sequences(
        self, model: Any, sequences: list[PackedSequence], step: int
    ) -> list[PackedSequence]:
        """What a step trains on, by rising length; the same on all ranks. Raises Precondition where
        no prompt got an answer.
        """
        own = int((step + 1) * self.share + 1e-9) > int(step * self.share + 1e-9)
        replay = [one for one in sequences if one.digest in self.replay]
        fresh = [one for one in sequences if one.digest not in self.replay]
        asked = [one for one in fresh if own or not one.target_count]
        given = [one for one in fresh if not own and one.target_count]
        found = given + self._answers(model, asked, step)
        if not found + replay:
            raise Precondition("the student gave no answer to any prompt of a step")
        return by_length(found + replay)

    def targets(self, sequences: Sequence[PackedSequence]) -> TargetBank | None:
        """The teacher's targets of those that are not replayed."""
        asked = [one for one in sequences if one.digest not in self.replay]
        if not asked:
            return None
        return self.client.targets(asked, top_k=self.top_k, temperature=self.temperature)

    def _answers(
        self, model: Any, sequences: Sequence[PackedSequence], step: int
    ) -> list[PackedSequence]:
        prompts = [prompt_of(one) for one in sequences]
        if not prompts:
            return []
        made = generate(
            model,
            self.encoder,
            prompts,
            self.sampling,
            dtype=self.dtype,
            seed=self.seed + 1_000_003 * step,
        )
        pairs = zip(prompts, self.ranks.told(made), strict=True)
        return [answered(prompt, answer) for prompt, answer in pairs if len(answer)]


def open_teacher(
    recipe: student_pb2.LanguageRecipe,
    encoder: Encoder,
    own_digest: str,
    *,
    address: str,
    tls: TlsFiles | None,
    max_message_bytes: int,
    temperature: float,
    dtype: torch.dtype,
    seed: int,
    ranks: Ranks,
) -> OnPolicyTeacher:
    """The teacher of a recipe. Raises Precondition where there is no teacher service or it has
    another tokenizer, so that one's tokens mean nothing to the other.
    """
    if not address:
        raise Precondition("on_policy: set STUDENT_TEACHER_ADDRESS to the teacher service")
    asked = recipe.on_policy
    sampling = read_sampling(
        asked.sampling, temperature=DEFAULT_TEMPERATURE, field="on_policy.sampling"
    )
    client = TeacherClient(address, asked.teacher, max_message_bytes=max_message_bytes, tls=tls)
    theirs = client.tokenizer_digest()
    if theirs != own_digest:
        raise Precondition(
            f"{asked.teacher} has another tokenizer than the student; let it teach by its answers",
            differences={"tokenizer": f"{theirs} of the teacher, {own_digest} of the student"},
        )
    return OnPolicyTeacher(
        client=client,
        encoder=encoder,
        sampling=sampling,
        share=asked.student_share or DEFAULT_SHARE,
        top_k=asked.top_k or DEFAULT_TOP_K,
        temperature=temperature,
        dtype=dtype,
        seed=seed,
        ranks=ranks,
    )


def pack_prompts(
    records: Sequence[TextRecord], encoder: Encoder, longest: int
) -> tuple[list[PackedSequence], list[str]]:
    """Prompts, with the answer of the data where there is one, of at most `longest` tokens; and why
    others were left out.
    """
    found, skipped = [], []
    for record in records:
        prompt = prompt_ids(encoder, record) if record.prompt else np.zeros(0, np.int32)
        answer = np.zeros(0, np.int32)
        if record.answer:
            answer = np.concatenate([encoder.ids(record.answer), encoder.end()])
        one = answered(prompt, answer)
        if not len(prompt):
            skipped.append(f"{record.record_id}: no prompt")
        elif len(one.tokens) >= longest:
            skipped.append(f"{record.record_id}: {len(one.tokens):,} tokens, of {longest:,}")
        else:
            found.append(one)
    return found, skipped


def prompt_of(sequence: PackedSequence) -> Any:
    """The tokens before the first target."""
    targets = np.flatnonzero(sequence.is_target)
    return sequence.tokens[: targets[0]] if len(targets) else sequence.tokens


def calls(sequences: Sequence[PackedSequence], most_tokens: int) -> list[list[PackedSequence]]:
    """Sequences in order, those of one call together: at most 64 of them, and `most_tokens` unless
    one alone has more."""
    found: list[list[PackedSequence]] = []
    tokens = 0
    for one in sequences:
        tokens += len(one.tokens)
        if not found or tokens > most_tokens or len(found[-1]) >= MOST_SEQUENCES:
            found.append([])
            tokens = len(one.tokens)
        found[-1].append(one)
    return found


def _message(sequences: Sequence[PackedSequence]) -> teacher_pb2.TokenSequences:
    offsets = np.cumsum([0, *(len(one.tokens) for one in sequences)]).astype(np.int64)
    return teacher_pb2.TokenSequences(
        token_ids=to_message(np.concatenate([one.tokens for one in sequences]).astype(np.int32)),
        offsets=to_message(offsets),
        is_target=to_message(np.concatenate([one.is_target for one in sequences])),
    )


def _retrying(call: Callable[[], R]) -> R:
    """Call again, with growing pauses, while the teacher is away or overloaded."""
    until_s, pause_s = time.monotonic() + GIVE_UP_S, FIRST_PAUSE_S
    while True:
        try:
            return call()
        except grpc.RpcError as failed:
            error = to_error(failed)  # type: ignore[arg-type]
            waits = isinstance(error, PeerUnavailable | Overloaded)
            if not waits or time.monotonic() + pause_s > until_s:
                raise error from None
            _log.info("waiting for the teacher", reason=error.message[:200], pause_s=pause_s)
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
