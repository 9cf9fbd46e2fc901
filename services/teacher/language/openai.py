"""A language model in an OpenAI-compatible server, such as vLLM.

The server tokenizes, so a text prompt and a text answer to score must meet between two of its
tokens; token ids are sent as they are. It gives no whole distributions, so there is no
SampleTargets.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections.abc import AsyncGenerator, Sequence
from typing import Any

import numpy as np
from stillhouse.common.v1 import items_pb2, language_pb2
from stillhouse.teacher.v1 import teacher_pb2

from services.common.catalogue import LanguageModel
from services.common.errors import InvalidInput, NotFound, Precondition
from services.common.fair_slots import FairSlots
from services.common.names import join
from services.common.tensors import to_message
from services.teacher.language import prompts
from services.teacher.language.backend import flow_of
from services.teacher.language.generation import SamplingOptions
from services.teacher.language.openai_http import OpenAIServer
from services.teacher.language.options import sampling_options

METHODS = ("Score", "Generate")
_MAX_ID = (1 << 31) - 1
_STOPPED = "stop"


class OpenAIBackend:
    """Serves one entry of loader `openai`; `slots` bounds what the server gets at once."""

    def __init__(self, entry: LanguageModel, server: OpenAIServer, slots: FairSlots) -> None:
        self._entry, self._server, self._slots = entry, server, slots
        text = json.dumps(["openai", entry.url, entry.remote_model])
        self._digest = hashlib.sha256(text.encode()).hexdigest()

    async def describe(self, project: str) -> teacher_pb2.Model:
        spec = teacher_pb2.LanguageModelSpec(
            context_length=self._entry.context_length or await self._context_length(),
            has_chat_template=True,
            backend="openai",
            methods=METHODS,
        )
        return teacher_pb2.Model(
            name=join(project, "models", self._entry.id),
            digest=self._digest,
            kind=teacher_pb2.MODEL_KIND_LANGUAGE_MODEL,
            licence=self._entry.licence,
            language_model=spec,
        )

    async def score(
        self, request: teacher_pb2.ScoreRequest, time_left_s: float | None
    ) -> teacher_pb2.ScoreResponse:
        started_s = time.perf_counter()
        results = await asyncio.gather(*(self._score(item, request) for item in request.items))
        spent_ms = (time.perf_counter() - started_s) * 1000
        return teacher_pb2.ScoreResponse(
            results=results,
            model_digest=self._digest,
            timings=items_pb2.Timings(compute_ms=spent_ms, batch_size=1),
        )

    async def sample_targets(
        self, project: str, request: teacher_pb2.SampleTargetsRequest
    ) -> teacher_pb2.SampleTargetsResponse:
        raise Precondition(
            f"{self._entry.id} is in an OpenAI-compatible server, which gives no distribution over "
            "the whole vocabulary; use a model that this service loads itself",
            differences={"backend": "openai"},
        )

    async def generate(
        self, request: teacher_pb2.GenerateRequest
    ) -> AsyncGenerator[teacher_pb2.GenerateResponse, None]:
        options = sampling_options(request.sampling)
        events: asyncio.Queue[teacher_pb2.GenerateResponse | None] = asyncio.Queue()

        async def all_items() -> None:
            try:
                async with asyncio.TaskGroup() as group:
                    for at in range(len(request.items)):
                        group.create_task(self._write(request, at, options, events))
            finally:
                events.put_nowait(None)

        work = asyncio.create_task(all_items())
        try:
            while (event := await events.get()) is not None:
                yield event
            await _first_error(work)
        finally:
            work.cancel()

    async def _write(
        self,
        request: teacher_pb2.GenerateRequest,
        at: int,
        options: SamplingOptions,
        events: asyncio.Queue[teacher_pb2.GenerateResponse | None],
    ) -> None:
        item, asked_s = request.items[at], time.perf_counter()

        def tell(**event: Any) -> None:
            events.put_nowait(teacher_pb2.GenerateResponse(index=at, item_id=item.item_id, **event))

        try:
            prompts.check_item_id(item.item_id)
            path, body = self._asked(item, options)
            async with self._slots.hold(flow_of(request)):
                started_s = time.perf_counter()
                if request.stream_text:
                    found = await self._streamed(path, body, tell)
                else:
                    found = _generation(await self._server.post(path, body))
            found.timings.CopyFrom(_timings(asked_s, started_s))
            tell(generation=found)
        except InvalidInput as error:
            tell(error=error.to_status())

    def _asked(
        self, item: teacher_pb2.GenerateItem, options: SamplingOptions
    ) -> tuple[str, dict[str, Any]]:
        """Path and body of one prompt's request."""
        body: dict[str, Any] = {
            "model": self._entry.remote_model,
            "max_tokens": options.max_tokens,
            "temperature": options.temperature,
            "top_p": options.top_p,
            "seed": (options.seed + item.seed) & 0x7FFFFFFF,
        }
        if options.stops:
            body["stop"] = list(options.stops)
        if item.prompt.WhichOneof("prompt") == "chat":
            turns = prompts.turns(item.prompt.chat)
            body["messages"] = [{"role": role, "content": content} for role, content in turns]
            return "/chat/completions", body
        return "/completions", body | {"prompt": _prompt(item.prompt)}

    async def _streamed(self, path: str, body: dict[str, Any], tell: Any) -> teacher_pb2.Generation:
        text, count, finish, said = "", 0, "", None
        async for event in self._server.events(path, body | {"stream": True}):
            said = (event.get("usage") or {}).get("completion_tokens", said)
            for choice in event.get("choices") or []:
                piece = choice.get("text") or (choice.get("delta") or {}).get("content") or ""
                finish = choice.get("finish_reason") or finish
                if piece:
                    text, count = text + piece, count + 1
                    tell(text=piece)
        return _answer(text, int(said or count), finish)

    async def _score(
        self, item: teacher_pb2.ScoreItem, request: teacher_pb2.ScoreRequest
    ) -> teacher_pb2.ScoreResult:
        try:
            prompts.check_item_id(item.item_id)
            before, whole = _given(item)
            body = {
                "model": self._entry.remote_model,
                "prompt": whole,
                "echo": True,
                "logprobs": 1,
                "max_tokens": 1,  # several servers refuse 0; what is made is left out
                "temperature": 0,
            }
            async with self._slots.hold(flow_of(request)):
                reply = await self._server.post("/completions", body)
            values = answer_values(reply, before, whole)
        except InvalidInput as error:
            if any(word in error.message.lower() for word in ("echo", "logprobs", "unsupported")):
                raise _no_scores(self._entry.id, error.message) from None
            return teacher_pb2.ScoreResult(item_id=item.item_id, error=error.to_status())
        found = teacher_pb2.AnswerScore(log_probability=sum(values), token_count=len(values))
        if request.per_token:
            found.token_log_probabilities.CopyFrom(to_message(np.array(values, np.float32)))
        return teacher_pb2.ScoreResult(item_id=item.item_id, score=found)

    async def _context_length(self) -> int:
        """What the server says (vLLM does), else 0."""
        try:
            models = (await self._server.get("/models")).get("data") or []
        except NotFound:
            return 0
        mine = [m for m in models if m.get("id") == self._entry.remote_model]
        return int(next((m.get("max_model_len") or 0 for m in mine), 0))


def _timings(asked_s: float, started_s: float) -> items_pb2.Timings:
    """What an answer took; the server does not say what it ran it with."""
    return items_pb2.Timings(
        queue_ms=(started_s - asked_s) * 1000,
        compute_ms=(time.perf_counter() - started_s) * 1000,
        batch_size=1,
    )


def answer_values(
    reply: dict[str, Any], before: str | Sequence[int], whole: str | Sequence[int]
) -> list[float]:
    """Return the answer's token log-probabilities out of an echoed completion.

    `before` and `whole` are text, or token ids. Raises InvalidInput where prompt and answer meet
    inside a token, Precondition where the server gave no log-probabilities of the prompt.
    """
    try:
        given = reply["choices"][0]["logprobs"]
        values, offsets = given["token_logprobs"], given.get("text_offset") or []
    except (KeyError, IndexError, TypeError):
        raise _no_scores("the model", "no log-probabilities of the prompt came back") from None
    if isinstance(whole, str):
        places = [n for n, at in enumerate(offsets) if len(before) <= at < len(whole)]
        if not places or offsets[places[0]] != len(before):
            raise InvalidInput("prompt and answer meet inside a token of the server", field="text")
    else:
        places = list(range(len(before), len(whole)))
    if places[0] == 0:  # nothing stands before a first token
        places = places[1:]
    if places and (places[-1] >= len(values) or any(values[n] is None for n in places)):
        raise _no_scores("the model", "fewer log-probabilities than tokens came back")
    return [float(values[n]) for n in places]


def _no_scores(model: str, why: str) -> Precondition:
    return Precondition(
        f"{model}: its server gives no log-probabilities of prompts (echo with logprobs): {why}",
        differences={"method": "Score"},
    )


def _given(item: teacher_pb2.ScoreItem) -> tuple[str | list[int], str | list[int]]:
    """(prompt, prompt and answer) of an item, both text or both token ids."""
    kind, answer = item.prompt.WhichOneof("prompt"), item.WhichOneof("answer")
    if item.end_of_text or kind == "chat":
        raise InvalidInput(
            "the server's tokenizer and template are not known here: "
            "give prompt and answer as text or as token_ids, an end-of-text id included"
        )
    if answer == "text" and kind in (None, "text") and item.text:
        return item.prompt.text, item.prompt.text + item.text
    if answer == "token_ids" and kind in (None, "token_ids"):
        before = _ids(item.prompt) if kind else []
        after = prompts.given_ids(item.token_ids, _MAX_ID, field="token_ids").tolist()
        if after:
            return before, before + after
    raise InvalidInput("prompt and answer: both text or both token_ids, the answer not empty")


def _ids(prompt: language_pb2.Prompt) -> list[int]:
    found: list[int] = prompts.given_ids(prompt.token_ids, _MAX_ID, field="token_ids").tolist()
    return found


def _prompt(prompt: language_pb2.Prompt) -> str | list[int]:
    if prompt.WhichOneof("prompt") == "token_ids":
        return _ids(prompt)
    if prompt.text:
        return prompt.text
    raise InvalidInput("prompt: one of text, chat, token_ids is required", field="prompt")


def _generation(reply: dict[str, Any]) -> teacher_pb2.Generation:
    try:
        choice = reply["choices"][0]
        text = choice["text"] if "text" in choice else choice["message"]["content"] or ""
        count = int((reply.get("usage") or {}).get("completion_tokens") or 0)
        return _answer(str(text), count, choice.get("finish_reason"))
    except (KeyError, IndexError, TypeError, ValueError):
        raise InvalidInput("the server's answer is not understood") from None


def _answer(text: str, count: int, finish: object) -> teacher_pb2.Generation:
    stop, length = teacher_pb2.FINISH_REASON_STOP, teacher_pb2.FINISH_REASON_LENGTH
    return teacher_pb2.Generation(
        text=text, token_count=count, finish_reason=stop if finish == _STOPPED else length
    )


async def _first_error(work: asyncio.Task[None]) -> None:
    """Wait for the items' tasks and raise the first of their errors by itself."""
    try:
        await work
    except ExceptionGroup as group:
        raise group.exceptions[0] from None
