"""Stand-ins for TeacherService and StudentService in stories of language jobs, over real gRPC.

Their "models" answer by rules that are known exactly, so that a story's outcome can be told in
advance: `tuned` knows the colour of every word, `base` does not; `style` talks like `tuned`.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio
from stillhouse.common.v1 import items_pb2, language_pb2
from stillhouse.student.v1 import student_pb2, student_pb2_grpc
from stillhouse.teacher.v1 import teacher_pb2, teacher_pb2_grpc

from services.common.blobs import BlobStore, digest_of
from services.common.errors import InvalidInput, NotFound, OutOfSpace
from services.common.interceptors import ErrorInterceptor
from services.common.model_records import LanguageModelRecord
from services.common.texts import unpack_records

WORDS = tuple(f"word{n:02d}" for n in range(40))
CHAT, PLAIN = True, False
MODELS = {
    "base": ("tok", 300, 512, CHAT),
    "tuned": ("tok", 300, 512, CHAT),
    "style": ("tok", 300, 512, CHAT),
    "target": ("other", 500, 128, PLAIN),
    "twin": ("tok", 300, 64, PLAIN),
    "bigger": ("tok", 301, 512, CHAT),
    "adapter": ("tok", 300, 512, CHAT),
}
PARAMETERS = 100_000
CUTS = ({"layers": 3, "hidden_size": 48}, {"layers": 4, "hidden_size": 32}, {"layers": 2})
"""What an importance recipe finds, the likeliest first; of kinds mixed, width, depth."""
KINDS = ("mixed", "width", "depth")
WHOLE = {"layers": 4, "non_embedding_parameters": 100_000}
RETRAINED = {48: 3.2, 32: 2.8, 64: 3.0}
"""Held-out cross-entropy of a cut after its training, by hidden size."""


@dataclass
class Place:
    """The project that a test works in: another for each, so that nothing is found from the one
    before."""

    project: str = "default"


HERE = Place()


def name_of(model: str) -> str:
    return f"projects/{HERE.project}/models/{model}"


def text_of(prompt: language_pb2.Prompt) -> str:
    return prompt.text or "".join(turn.content for turn in prompt.chat.messages)


def answer_of(model: str, prompt: str) -> tuple[str, bool]:
    """What a model answers, and whether it ended by itself."""
    word = next((one for one in WORDS if one in prompt), "")
    if "endless" in prompt:
        return "and so on and on", False
    if "silent" in prompt:
        return "", True
    if word and model == "tuned":
        return f"{word} is colour {WORDS.index(word)}", True
    if prompt.endswith("."):
        return f" What of item {len(prompt)}?\n9. Why {digest_of(prompt.encode())[:6]}?", True
    return f"who can say what {digest_of(prompt.encode())[:8]} is", True


def nats_of(model: str, answer: str) -> float:
    """Negative log-probability per token."""
    is_fact = "colour" in answer
    return {"base": 3.0, "style": 2.5}.get(model, 0.2) if is_fact else 0.5


def held_out_nats(recipe: student_pb2.LanguageRecipe, *, trained: bool) -> float:
    """Cross-entropy on held-out text: a cut loses much and gains most of it back, less so where
    it learns from text alone or chance chose what it keeps."""
    if not recipe.HasField("cut"):
        return 2.5
    if not trained:
        return 9.0 if recipe.cut.from_random_weights else 6.0
    alone = recipe.training.loss == language_pb2.LANGUAGE_LOSS_CROSS_ENTROPY
    lost = 0.2 * alone + 0.5 * recipe.cut.random + 2.0 * recipe.cut.from_random_weights
    return RETRAINED[recipe.cut.shape.hidden_size] + lost


def found_cuts(non_embedding: int = 50_000, kept: tuple[int, ...] = (0, 2)) -> list[dict[str, Any]]:
    """The candidates of an importance recipe's report."""
    sizes = {"parameters": 10_000 + non_embedding, "non_embedding_parameters": non_embedding}
    whole = {"layers": 4, "hidden_size": 64, "intermediate_size": 128, "attention_heads": 4}
    return [
        {
            "kind": kind,
            "shape": {**whole, **cut, **sizes},
            "kept_layers": list(kept),
            "prior_cost": 0.1 * (1 + at),
            "rounds": [0.7, 0.5],
        }
        for at, (kind, cut) in enumerate(zip(KINDS, CUTS, strict=True))
    ]


class Teacher(teacher_pb2_grpc.TeacherServiceServicer):
    """Answers by rule; counts its calls."""

    def __init__(self, blobs: BlobStore) -> None:
        self.blobs = blobs
        self.calls: Counter[str] = Counter()
        self.hold_after = 10**9
        """Calls of Generate after which one waits for ever."""

    async def ForgetProject(self, request: Any, context: Any) -> teacher_pb2.ForgetProjectResponse:
        return teacher_pb2.ForgetProjectResponse()

    async def GetModel(self, request: Any, context: Any) -> teacher_pb2.GetModelResponse:
        model = request.name.rsplit("/", 1)[-1]
        if model == "photos":
            image = teacher_pb2.ImageClassifierSpec(classes=["a"])
            return teacher_pb2.GetModelResponse(model=teacher_pb2.Model(image_classifier=image))
        if model not in MODELS:  # one that a job made, or none: NotFound
            self.blobs.get_ref(HERE.project, f"models/{model}")
        tokenizer, vocabulary, context_length, chat = MODELS.get(model, MODELS["target"])
        spec = teacher_pb2.LanguageModelSpec(
            tokenizer_digest=tokenizer,
            vocab_size=vocabulary,
            context_length=context_length,
            has_chat_template=chat,
            precision="float32",
            layer_count=4,
            parameter_count=PARAMETERS,
            base="tuned" if model == "adapter" else "",
            methods=["Score", "Generate"] + ["SampleTargets"] * (model != "bigger"),
        )
        found = teacher_pb2.Model(name=request.name, digest=f"d-{model}", language_model=spec)
        return teacher_pb2.GetModelResponse(model=found)

    async def SampleTargets(self, request: Any, context: Any) -> teacher_pb2.SampleTargetsResponse:
        kind = teacher_pb2.TargetKind.Name(request.kind)
        self.calls[kind] += 1
        records = unpack_records(self.blobs.get(HERE.project, request.text_shard.records.digest))
        text = f"{kind} {request.text_shard.records.digest} {request.temperature}"
        return teacher_pb2.SampleTargetsResponse(
            blob=items_pb2.BlobRef(digest=self.blobs.put(HERE.project, text.encode())),
            sequence_count=len(records),
            token_count=10 * len(records),
            bytes_per_token=request.bytes_per_token or 39.0,
            draws_per_token=20.0,
            model_digest=f"d-{request.model.rsplit('/', 1)[-1]}",
        )

    async def Score(self, request: Any, context: Any) -> teacher_pb2.ScoreResponse:
        self.calls["Score"] += 1
        model = request.model.rsplit("/", 1)[-1]
        results = []
        for item in request.items:
            tokens = len(item.text.split()) + item.end_of_text
            score = teacher_pb2.AnswerScore(
                log_probability=-nats_of(model, item.text) * tokens, token_count=tokens
            )
            results.append(teacher_pb2.ScoreResult(item_id=item.item_id, score=score))
        return teacher_pb2.ScoreResponse(results=results, model_digest=f"d-{model}")

    async def Generate(
        self, request: Any, context: Any
    ) -> AsyncIterator[teacher_pb2.GenerateResponse]:
        self.calls["Generate"] += 1
        while self.calls["Generate"] > self.hold_after:
            await asyncio.sleep(0.02)
        model = request.model.rsplit("/", 1)[-1]
        if model not in MODELS:
            raise NotFound(f"there is no model {request.model}", resource=request.model)
        for at, item in enumerate(request.items):
            text, ended = answer_of(model, text_of(item.prompt))
            if request.stream_text:
                for part in text.split(" "):
                    yield teacher_pb2.GenerateResponse(index=at, text=part)
            reason = "STOP" if ended else "LENGTH"
            made = teacher_pb2.Generation(
                text=text,
                token_count=len(text.split()) + 1,
                finish_reason=teacher_pb2.FinishReason.Value(f"FINISH_REASON_{reason}"),
            )
            yield teacher_pb2.GenerateResponse(index=at, item_id=item.item_id, generation=made)


@dataclass
class Student(student_pb2_grpc.StudentServiceServicer):
    """Trains at once: accuracy is the share of questions whose word is in the training data."""

    blobs: BlobStore
    recipes: list[student_pb2.LanguageRecipe] = field(default_factory=list)
    measured: list[student_pb2.ImportanceRecipe] = field(default_factory=list)
    stopped: list[str] = field(default_factory=list)
    runs: set[tuple[str, str]] = field(default_factory=set)
    """Folders of runs: project and run id."""
    hang: bool = False
    is_full: bool = False
    """Whether its disk has no room."""
    hold_after: int = 10**9
    """Language runs after which one waits for ever."""
    first_step: int = 70_000
    """Parameters outside the embeddings that rounds before the last leave."""

    async def Train(self, request: Any, context: Any) -> AsyncIterator[student_pb2.TrainResponse]:
        if request.HasField("importance"):
            made = student_pb2.TrainResult(importance=self._cuts(request.importance))
            yield student_pb2.TrainResponse(sequence=1, result=made)
            return
        recipe = request.language
        self.recipes.append(recipe)
        metrics = {"loss": 1.5, "heldout_cross_entropy": 2.5}
        progress = student_pb2.TrainProgress(stage="training", done=5, total=10, metrics=metrics)
        yield student_pb2.TrainResponse(sequence=1, progress=progress)
        last = student_pb2.TrainProgress(stage="storing the student")
        yield student_pb2.TrainResponse(sequence=2, progress=last)
        while self.hang or len(self.recipes) > self.hold_after:
            await asyncio.sleep(0.05)
        if self.is_full:
            status = OutOfSpace("the disk is full; make room and start the job again").to_status()
            yield student_pb2.TrainResponse(sequence=3, error=status)
            return
        report = self._report(recipe)
        result = student_pb2.LanguageModelResult(report=self._put(json.dumps(report).encode()))
        if not recipe.discard_model and not recipe.evaluate_only:
            weights = self.blobs.put(HERE.project, b"weights")
            record = LanguageModelRecord(
                form="adapter",
                files={"adapter_model.safetensors": weights},
                weights_digest=digest_of(recipe.SerializeToString(deterministic=True)),
                tokenizer_digest=recipe.tokenizer_digest,
                base=recipe.student,
                base_digest="0" * 64,
                card={"student": recipe.student},
            )
            result.model.CopyFrom(self._put(record.to_bytes()))
        made = student_pb2.TrainResult(language=result)
        yield student_pb2.TrainResponse(sequence=3, result=made)

    async def StopTraining(self, request: Any, context: Any) -> student_pb2.StopTrainingResponse:
        self.stopped.append(request.run_id)
        return student_pb2.StopTrainingResponse(stopped=True)

    async def RemoveRuns(self, request: Any, context: Any) -> student_pb2.RemoveRunsResponse:
        prefix = request.run_id_prefix
        found = {
            one for one in self.runs if one[0] == request.project and one[1].startswith(prefix)
        }
        if not request.dry_run:
            self.runs -= found
        return student_pb2.RemoveRunsResponse(run_count=len(found))

    def _report(self, recipe: student_pb2.LanguageRecipe) -> dict[str, Any]:
        learned = {r.answer for r in self._records(recipe.text_shards)}
        after = self._items(recipe, learned, held_out_nats(recipe, trained=True))
        facts = {f"{word} is colour {at}" for at, word in enumerate(WORDS)}
        known = facts if recipe.student == "tuned" else set()
        before = self._items(recipe, known, held_out_nats(recipe, trained=False))
        report: dict[str, Any] = {"kind": "language", "items": {}, "before": {}}
        if not recipe.evaluation.skip_before:
            report["items"]["before"] = before
            report["before"] = {name: {"value": _mean(items)} for name, items in before.items()}
        if not recipe.evaluate_only:
            report["items"]["after"] = after
            report |= {"curves": [{"run": "", "step": 5, "loss": 1.5}], "steps": 10, "seconds": 1.0}
            report |= {"trained_tokens": 100, "after": {}}
            report["after"] = {name: {"value": _mean(items)} for name, items in after.items()}
        return report

    def _cuts(self, recipe: student_pb2.ImportanceRecipe) -> student_pb2.ImportanceResult:
        self.measured.append(recipe)
        if len(list(self._records(recipe.text_shards))) < 2:
            raise InvalidInput("calibration: 1 sequences; give at least 2", field="text_shards")
        if 0 < recipe.budget.max_parameters < 20_000:
            raise InvalidInput(
                "budget.max_parameters: the least possible is 20,000", field="budget"
            )
        report = {"kind": "importance", "shape": WHOLE, "candidates": found_cuts()}
        if recipe.budget.rounds > 1:
            kept = (0, 1, 3) if recipe.student in MODELS else (0, 1, 2)
            report["candidates"] = found_cuts(self.first_step, kept)
            report["reachable"] = ["depth", "mixed"]
        if recipe.budget.max_latency_ms:
            report["latency"] = {"tokens": 128, "device_name": "abacus"}
            report["candidates"] = [{**one, "latency_ms": 4.0} for one in found_cuts()]
        return student_pb2.ImportanceResult(
            importance=self._put(b"importance"), report=self._put(json.dumps(report).encode())
        )

    def _items(
        self, recipe: Any, learned: set[str], nats: float
    ) -> dict[str, list[dict[str, Any]]]:
        found = {}
        for record in self._records(recipe.evaluation.choice_shards):
            right = record.choices[record.choice_index] in learned
            found[record.record_id] = {
                "id": record.record_id,
                "group": record.group,
                "value": float(right),
                "count": 1,
            }
        texts = [
            {"id": r.record_id, "group": r.record_id, "value": 2 * nats, "count": 2}
            for r in self._records(recipe.evaluation.text_shards)
        ]
        both = {"choice_accuracy": list(found.values()), "cross_entropy": texts}
        return {name: items for name, items in both.items() if items}

    def _records(self, refs: Any) -> Iterator[Any]:
        for ref in refs:
            yield from unpack_records(self.blobs.get(HERE.project, ref.digest))

    def _put(self, data: bytes) -> items_pb2.BlobRef:
        return items_pb2.BlobRef(digest=self.blobs.put(HERE.project, data))


def _mean(items: list[dict[str, Any]]) -> float:
    return sum(i["value"] for i in items) / sum(i["count"] for i in items)


@asynccontextmanager
async def peers(blobs: BlobStore) -> AsyncIterator[tuple[Teacher, Student, str]]:
    """Run both on one port; yields them and their address."""
    teacher, student = Teacher(blobs), Student(blobs)
    server = grpc.aio.server(interceptors=[ErrorInterceptor()])
    teacher_pb2_grpc.add_TeacherServiceServicer_to_server(teacher, server)
    student_pb2_grpc.add_StudentServiceServicer_to_server(student, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield teacher, student, f"127.0.0.1:{port}"
    finally:
        await server.stop(None)
