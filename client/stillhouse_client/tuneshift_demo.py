"""The tuneshift demo's story: facts that a small model does not know, learned by one model and
carried into another shape of it, from two seed prompts and a list of words.

    datasets    facts, questions about them in other words, nouns, general texts, sentence openings
    tuned       SmolLM2-135M with a LoRA adapter that learned the facts
    target      SmolLM2-135M with 20 of its 30 layers, healed on general text by the whole model
    tuneshift   from base, tuned and target; beside it no filter, a random filter, and seeds alone
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial

from stillhouse.common.v1 import language_pb2
from stillhouse.gateway.v1 import datasets_pb2, jobs_pb2

from stillhouse_client.client import AsyncClient
from stillhouse_client.demo_steps import Say, ShowJob, request_id, run_job, timed
from stillhouse_client.jobs import Spec

BASE = "smollm2-135m"
KEPT_LAYERS = (0, 1, 2, 5, 6, 7, 8, 9, 10, 11, 18, 19, 20, 21, 22, 23, 24, 27, 28, 29)
"""Of 30: those that change their input most (1 - cosine of input and output, on general text)."""
SEED_PROMPTS = ("Question: What is a {word}?\nAnswer:", "Define the word {word}.\nAnswer:")
TAU = 1.5
MAX_PERPLEXITY = 1.1
"""Of an answer under the tuned model: it knows the fact by heart. Answer style alone makes every
answer much less likely for the base, so that tau by itself keeps nearly everything."""
BATCH_SEQUENCES = 16
REPLAY_SHARE = 0.125
"""Of a step's sequences, general text: passages are longer than answers, so that it is a third of
the tokens."""


@dataclass(frozen=True)
class TuneShiftPlan:
    """What a run works on; equal plans find each other's work again."""

    facts: int = 100
    """Facts taught; the list of words holds as many others."""
    seeds: int = 3
    """Training seeds of every arm."""
    texts: int = 240
    """Passages of general text, of about 400 tokens each."""
    healing_steps: int = 80
    """Steps of 8 sequences of 128 tokens that heal the target."""
    epochs: float = 10.0
    """Passes of the target over the kept examples; every arm takes as many steps."""
    batch_sequences: int = BATCH_SEQUENCES
    """Sequences of a step of the target."""
    tag: str = ""
    """Part of all names and request ids; another tag runs everything anew."""

    @classmethod
    def quick(cls, tag: str = "") -> TuneShiftPlan:
        """A plan of one seed and fewer facts, for a first look."""
        return cls(
            facts=32,
            seeds=1,
            texts=40,
            healing_steps=12,
            epochs=16.0,
            batch_sequences=8,  # few examples are few steps: small ones leave enough of them
            tag=tag,
        )

    @property
    def checkpoint_steps(self) -> int:
        """Steps between the checkpoints of a training on the facts: about twice in each."""
        return max(1, round(self.facts * self.epochs / self.batch_sequences / 2))

    def name(self, what: str) -> str:
        """Return the name of a dataset or model of this plan."""
        parts = ["shift", what, str(self.facts), self.tag]
        return "-".join(part for part in parts if part)

    def request_id(self, *parts: str) -> str:
        """Return the request id of a step: the same in every run of this version and plan."""
        return request_id("stillhouse/demo/tuneshift", repr(self), *parts)


@dataclass
class TuneShiftStory:
    """All that a run made: its jobs by step, and the seconds of each step."""

    jobs: dict[str, jobs_pb2.DistillationJob] = field(default_factory=dict)
    step_s: dict[str, float] = field(default_factory=dict)


class TuneShiftDemo:
    """Runs the story with a client; `say` gets what happens, `show` the job that runs."""

    def __init__(
        self, client: AsyncClient, plan: TuneShiftPlan, *, say: Say, show: ShowJob
    ) -> None:
        self._client, self._plan = client, plan
        self._say, self._show = say, show
        self.story = TuneShiftStory()

    async def run(self) -> TuneShiftStory:
        """Run the steps in order; what an earlier run of the plan finished is taken as it is."""
        await timed(self.story.step_s, "datasets", self._datasets())
        words = await self._words()
        self.story.jobs["tuned"] = await timed(self.story.step_s, "tuned", self._tuned())
        self.story.jobs["target"] = await timed(self.story.step_s, "target", self._target())
        self.story.jobs["tuneshift"] = await timed(
            self.story.step_s, "tuneshift", self._shift(words)
        )
        return self.story

    async def _datasets(self) -> None:
        self._say(f"datasets: {self._plan.facts} facts of WordNet, and addresses as general text")
        facts = f"?facts={self._plan.facts}"
        for what in ("facts", "questions", "words"):
            await self._dataset(what, f"builtin:wordnet-{what}{facts}")
        await self._dataset("texts", "builtin:sotu-text-texts", self._plan.texts)
        await self._dataset("openings", "builtin:sotu-text-openings")

    async def _dataset(self, what: str, uri: str, most: int = 0) -> None:
        created = await self._client.datasets.create(
            self._plan.name(what),
            uri=uri,
            max_items=most,
            kind=datasets_pb2.DATASET_KIND_TEXTS,
            request_id=self._plan.request_id("dataset", what),
        )
        await self._client.datasets.wait(created.name)

    async def _words(self) -> list[str]:
        items = await self._client.datasets.items(self._plan.name("words"))
        return [item.text.text for item in items]

    async def _tuned(self) -> jobs_pb2.DistillationJob:
        self._say(f"tuned model: {BASE} learns the facts with an adapter")
        spec = jobs_pb2.LanguageJobSpec(
            dataset=self._full("datasets", "facts"),
            student=self._model(BASE),
            model_id=self._plan.name("tuned"),
            mode=jobs_pb2.LANGUAGE_MODE_SUPERVISED,
            training=language_pb2.LanguageTraining(
                lora=language_pb2.Lora(rank=16),
                epochs=6,
                batch_sequences=BATCH_SEQUENCES,
                learning_rate=2e-3,
                sequence_length=64,
                checkpoint_steps=self._plan.checkpoint_steps,
            ),
        )
        return await self._job(spec, "tuned")

    async def _target(self) -> jobs_pb2.DistillationJob:
        self._say(f"target: {len(KEPT_LAYERS)} of {BASE}'s 30 layers, healed on general text")
        spec = jobs_pb2.LanguageJobSpec(
            dataset=self._full("datasets", "texts"),
            teacher=self._model(BASE),
            student=self._model(BASE),
            keep_layers=KEPT_LAYERS,
            model_id=self._plan.name("target"),
            mode=jobs_pb2.LANGUAGE_MODE_STORED_TARGETS,
            training=language_pb2.LanguageTraining(
                max_steps=self._plan.healing_steps,
                batch_sequences=8,
                learning_rate=3e-4,
                sequence_length=128,
                checkpoint_steps=self._plan.healing_steps // 2,
            ),
        )
        return await self._job(spec, "target")

    async def _shift(self, words: list[str]) -> jobs_pb2.DistillationJob:
        self._say("tuneshift: answers of the tuned model, filtered, train the target")
        spec = jobs_pb2.TuneShiftJobSpec(
            base=self._model(BASE),
            tuned=self._full("models", "tuned"),
            target=self._full("models", "target"),
            seed_prompts=SEED_PROMPTS,
            words=words,
            off_domain_dataset=self._full("datasets", "openings"),
            off_domain_share=0.25,
            rounds=3,
            prompts_per_round=-(-len(words) * 4 // 9),
            filter=jobs_pb2.TuneShiftFilter(tau=TAU, max_perplexity=MAX_PERPLEXITY),
            sampling=language_pb2.Sampling(max_tokens=32),
            training=language_pb2.LanguageTraining(
                lora=language_pb2.Lora(rank=16),
                epochs=self._plan.epochs,
                batch_sequences=self._plan.batch_sequences,
                learning_rate=2e-3,
                sequence_length=64,
                replay_share=REPLAY_SHARE,
                checkpoint_steps=self._plan.checkpoint_steps,
            ),
            replay_dataset=self._full("datasets", "texts"),
            evaluation_datasets=[
                self._full("datasets", "questions"),
                self._full("datasets", "texts"),
            ],
            model_id=self._plan.name("student"),
            ablations=True,
            training_seeds=self._plan.seeds,
        )
        return await self._job(spec, "tuneshift")

    async def _job(self, spec: Spec, step: str) -> jobs_pb2.DistillationJob:
        name = partial(self._plan.request_id, step)
        return await run_job(self._client, spec, name, self._show)

    def _full(self, collection: str, what: str) -> str:
        return f"projects/{self._client.project}/{collection}/{self._plan.name(what)}"

    def _model(self, model_id: str) -> str:
        return f"projects/{self._client.project}/models/{model_id}"
