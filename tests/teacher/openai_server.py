"""A small OpenAI-compatible server over a model that is really run: completions with echo and
log-probabilities as vLLM gives them, chat, event streams."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import torch
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from services.torch_common.language.loading import LoadedLanguageModel

KEY = "sesame"


class OpenAIServerApp:
    """The routes. `seen` keeps the bodies; `broken` answers every request with that status."""

    def __init__(self, loaded: LoadedLanguageModel) -> None:
        self._loaded = loaded
        self.seen: list[dict[str, Any]] = []
        self.broken = 0
        self.aborted = 0
        self.slow_s = 0.0
        routes = [
            Route("/v1/models", self._models),
            Route("/v1/completions", self._completions, methods=["POST"]),
            Route("/v1/chat/completions", self._chat, methods=["POST"]),
        ]
        self.app = Starlette(routes=routes)

    async def _models(self, request: Request) -> Response:
        return JSONResponse({"data": [{"id": "far-away", "max_model_len": 128}]})

    def _refusal(self, request: Request) -> Response | None:
        status = self.broken
        if request.headers.get("authorization") != f"Bearer {KEY}":
            status = 401
        said = {"error": {"message": f"refused with {status}"}}
        return JSONResponse(said, status, {"retry-after": "7"}) if status else None

    async def _completions(self, request: Request) -> Response:
        body = await request.json()
        self.seen.append(body)
        prompt = body["prompt"]
        ids = self._loaded.encoder.ids(prompt).tolist() if isinstance(prompt, str) else prompt
        return self._refusal(request) or self._reply(ids, body, "text")

    async def _chat(self, request: Request) -> Response:
        body = await request.json()
        self.seen.append(body)
        turns = [(one["role"], one["content"]) for one in body["messages"]]
        ids = self._loaded.encoder.chat(turns).tolist()
        return self._refusal(request) or self._reply(ids, body, "message")

    def _reply(self, ids: list[int], body: dict[str, Any], form: str) -> Response:
        made = self._greedy(ids, body["max_tokens"])
        if body.get("stream"):
            return StreamingResponse(self._stream(made, form), media_type="text/event-stream")
        text = self._loaded.encoder.decode(made)
        choice: dict[str, Any] = {"index": 0, "finish_reason": "length"}
        if form == "message":
            choice["message"] = {"role": "assistant", "content": text}
        else:
            choice["text"] = text
        if body.get("echo"):
            choice["logprobs"] = self._logprobs([*ids, *made])
        return JSONResponse({"choices": [choice], "usage": {"completion_tokens": len(made)}})

    async def _stream(self, made: list[int], form: str) -> AsyncIterator[str]:
        try:
            for token in made:
                piece = self._loaded.encoder.decode([token])
                part = {"text": piece} if form == "text" else {"delta": {"content": piece}}
                yield f"data: {json.dumps({'choices': [part | {'finish_reason': None}]})}\n\n"
                await asyncio.sleep(self.slow_s)
            yield f"data: {json.dumps({'choices': [{'finish_reason': 'stop'}]})}\n\n"
            yield "data: [DONE]\n\n"
        except asyncio.CancelledError:
            self.aborted += 1
            raise

    @torch.inference_mode()
    def _greedy(self, ids: list[int], count: int) -> list[int]:
        made: list[int] = []
        for _ in range(count):
            logits = self._loaded.model(torch.tensor([[*ids, *made]])).logits[0, -1, :299]
            made.append(int(logits.argmax()))
        return made

    @torch.inference_mode()
    def _logprobs(self, ids: list[int]) -> dict[str, Any]:
        logits = self._loaded.model(torch.tensor([ids])).logits[0, :-1]
        vocab = self._loaded.vocab_size
        found = logits[:, :vocab].log_softmax(-1).gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
        pieces = [self._loaded.encoder.decode([one]) for one in ids]
        offsets = [sum(map(len, pieces[:at])) for at in range(len(pieces))]
        return {"token_logprobs": [None, *found.tolist()], "text_offset": offsets}


@asynccontextmanager
async def openai_server(loaded: LoadedLanguageModel) -> AsyncIterator[tuple[OpenAIServerApp, str]]:
    """Serve a model on a free port in this loop; gives the routes and the API's URL."""
    made = OpenAIServerApp(loaded)
    server = uvicorn.Server(uvicorn.Config(made.app, port=0, log_level="error", lifespan="off"))
    task = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield made, f"http://127.0.0.1:{port}/v1"
    finally:
        server.should_exit = True
        await task
