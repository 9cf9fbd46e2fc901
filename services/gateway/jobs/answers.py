"""Answers that language models write, and how probable models find answers, in shards that are
found again."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypedDict

import grpc.aio
from google.rpc import code_pb2
from stillhouse.common.v1 import items_pb2, language_pb2
from stillhouse.teacher.v1 import teacher_pb2

from services.common.blobs import digest_of
from services.common.channels import to_error
from services.common.errors import PeerUnavailable
from services.gateway.jobs.found import once
from services.gateway.jobs.job import Tools
from services.gateway.jobs.plans import ModelPlan
from services.gateway.jobs.shard_stage import in_flight, reason
from services.gateway.jobs.targets import check_same

SHARD_ITEMS = 32
Tell = Callable[[int], Awaitable[None]]


@dataclass(frozen=True)
class Ask:
    """A prompt; `seed` is added to the sampling's, so that one prompt gives several answers."""

    prompt: str
    chat: bool = False
    seed: int = 0


@dataclass(frozen=True)
class Pair:
    """A prompt and an answer to score; `ends` scores the end of the text after it too."""

    prompt: str
    answer: str
    chat: bool = False
    ends: bool = True


class Answer(TypedDict):
    """What a model wrote; `error` says why there is nothing."""

    text: str
    tokens: int
    finished: bool
    """It ended by itself, not at the limit of tokens."""
    error: str


class Score(TypedDict):
    """Log-probability (natural) of an answer and its tokens; `error` says why there is none."""

    log_probability: float
    tokens: int
    error: str


async def answer_all(
    tools: Tools,
    project: str,
    model: ModelPlan,
    asks: Sequence[Ask],
    sampling: language_pb2.Sampling,
    *,
    tell: Tell | None = None,
) -> list[Answer]:
    """Return an answer to every prompt, in order. `tell(n)` is called after n more."""

    async def compute(part: Sequence[Ask]) -> list[Answer]:
        request = teacher_pb2.GenerateRequest(
            model=model["name"],
            items=[
                teacher_pb2.GenerateItem(
                    item_id=str(at), prompt=prompt_of(one.prompt, chat=one.chat), seed=one.seed
                )
                for at, one in enumerate(part)
            ],
            sampling=sampling,
            execution=items_pb2.EXECUTION_SHARD,
        )
        return await tools.peers.persist(lambda: _generate(tools, request), what="answers")

    inputs = _inputs(model, sampling=sampling.SerializeToString(deterministic=True).hex())
    return await _in_shards(tools, project, "answers", inputs, asks, compute, tell)


async def score_all(
    tools: Tools,
    project: str,
    model: ModelPlan,
    pairs: Sequence[Pair],
    *,
    tell: Tell | None = None,
) -> list[Score]:
    """Return how probable the model finds every answer, in order."""

    async def compute(part: Sequence[Pair]) -> list[Score]:
        request = teacher_pb2.ScoreRequest(
            model=model["name"],
            items=[
                teacher_pb2.ScoreItem(
                    item_id=str(at),
                    prompt=prompt_of(one.prompt, chat=one.chat),
                    text=one.answer,
                    end_of_text=one.ends,
                )
                for at, one in enumerate(part)
            ],
            execution=items_pb2.EXECUTION_SHARD,
        )
        peers = tools.peers

        async def attempt() -> list[Score]:
            method = peers.teacher.Score
            reply = await peers.ask(method, request, timeout_s=peers.shard_timeout_s)
            check_same(model, reply.model_digest)
            return [_score(result) for result in reply.results]

        return await peers.persist(attempt, what="scores")

    return await _in_shards(tools, project, "scores", _inputs(model), pairs, compute, tell)


def prompt_of(prompt: str, *, chat: bool) -> language_pb2.Prompt:
    """Return a prompt as a message: a user turn, or the text as it is."""
    if not chat:
        return language_pb2.Prompt(text=prompt)
    turn = language_pb2.ChatMessage(role="user", content=prompt)
    return language_pb2.Prompt(chat=language_pb2.Chat(messages=[turn]))


async def _in_shards(
    tools: Tools,
    project: str,
    stage: str,
    inputs: dict[str, str],
    items: Sequence[Any],
    compute: Callable[[Sequence[Any]], Awaitable[list[Any]]],
    tell: Tell | None,
) -> list[Any]:
    async def one(part: Sequence[Any]) -> list[Any]:
        digest = digest_of(
            repr([asdict(item) for item in part]).encode("utf-8", "backslashreplace")
        )
        found, _ = await once(
            tools, project, stage, {**inputs, "items": digest}, lambda: allowed(part)
        )
        if tell is not None:
            await tell(len(part))
        return list(found)

    async def allowed(part: Sequence[Any]) -> list[Any]:
        """Compute a shard, in several calls where the service takes fewer items in one."""
        calls = await tools.peers.parts("teacher", part, _bytes_of)
        return [answer for some in calls for answer in await compute(some)]

    parts = [items[at : at + SHARD_ITEMS] for at in range(0, len(items), SHARD_ITEMS)]
    work = [functools.partial(one, part) for part in parts]
    done = await in_flight(work, at_once=tools.settings.shards_in_flight)
    return [item for part in done for item in part]


def _bytes_of(item: Any) -> int:
    return 4 * sum(len(part) for part in asdict(item).values() if isinstance(part, str))


async def _generate(tools: Tools, request: teacher_pb2.GenerateRequest) -> list[Answer]:
    """Collect the last events of all items. Raises PeerUnavailable where the stream is short."""
    answers: dict[int, Answer] = {}
    try:
        peers = tools.peers
        method, timeout_s = peers.teacher.Generate, peers.shard_timeout_s
        async for event in peers.stream(method, request, timeout_s=timeout_s):
            kind = event.WhichOneof("event")
            if kind == "generation":
                answers[event.index] = _answer(event.generation)
            elif kind == "error":
                answers[event.index] = Answer(
                    text="", tokens=0, finished=False, error=reason(event.error)
                )
    except grpc.aio.AioRpcError as error:
        raise to_error(error) from None
    if len(answers) < len(request.items):
        raise PeerUnavailable("the stream of answers ended early")
    return [answers[at] for at in range(len(request.items))]


def _answer(generation: teacher_pb2.Generation) -> Answer:
    return Answer(
        text=generation.text,
        tokens=generation.token_count,
        finished=generation.finish_reason == teacher_pb2.FINISH_REASON_STOP,
        error="",
    )


def _score(result: teacher_pb2.ScoreResult) -> Score:
    if result.WhichOneof("outcome") == "score":
        score = result.score
        return Score(log_probability=score.log_probability, tokens=score.token_count, error="")
    why = reason(result.error) or f"status {code_pb2.Code.Name(result.error.code)}"
    return Score(log_probability=0.0, tokens=0, error=why)


def _inputs(model: ModelPlan, **more: str) -> dict[str, str]:
    return {"model": model["digest"], "precision": model["precision"], **more}
