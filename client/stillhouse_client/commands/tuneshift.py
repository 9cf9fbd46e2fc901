"""`stillhouse distill tuneshift`: what a tuned model knows goes into a different model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from stillhouse.gateway.v1 import jobs_pb2 as pb

from stillhouse_client import names
from stillhouse_client.commands import training_flags
from stillhouse_client.commands.flags import spread
from stillhouse_client.commands.language import Chat, Evaluate, Replay
from stillhouse_client.commands.lines import read_lines
from stillhouse_client.commands.starting import StartFlags, start
from stillhouse_client.commands.training_flags import SamplingFlags, TrainingFlags
from stillhouse_client.errors import InvalidRequest


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command()(spread(tuneshift))


@dataclass(frozen=True)
class RoundFlags:
    """How prompts are made, and when that ends."""

    words: Annotated[
        Path | None,
        typer.Option(
            exists=True, dir_okay=False, help="Words for {word} in the seeds, one a line."
        ),
    ] = None
    generator: Annotated[str, typer.Option(help="Model that writes prompts; the tuned.")] = ""
    off_domain: Annotated[
        str, typer.Option(help="Dataset of prompts outside the domain, mixed in.")
    ] = ""
    off_domain_share: Annotated[
        float, typer.Option(max=1, help="Share of prompts from --off-domain; 0.3.")
    ] = 0
    rounds: Annotated[int, typer.Option(min=0, help="Rounds at most; 5.")] = 0
    prompts_per_round: Annotated[int, typer.Option(min=0, help="Prompts a round; 128.")] = 0
    target_examples: Annotated[
        int, typer.Option(min=0, help="Stop once so many are kept; 0: no such stop.")
    ] = 0
    token_budget: Annotated[
        int, typer.Option(min=0, help="Most tokens to generate; 0: no limit.")
    ] = 0


@dataclass(frozen=True)
class FilterFlags:
    """Which examples carry the tuned model's knowledge."""

    tau: Annotated[
        float, typer.Option(min=0, help="Keep where base over tuned perplexity is this; 1.5.")
    ] = 0
    by_difference: Annotated[
        bool, typer.Option("--by-difference", help="Compare by difference, not by ratio.")
    ] = False
    confident_share: Annotated[
        float, typer.Option(min=0, max=1, help="Share of a round that may be kept; 0.9.")
    ] = 0
    max_perplexity: Annotated[
        float, typer.Option(min=0, help="Most perplexity under the tuned model; 0: no cap.")
    ] = 0
    duplicate_similarity: Annotated[
        float, typer.Option(min=0, max=1, help="More alike (ROUGE-L) is a duplicate; 0.7.")
    ] = 0

    def message(self) -> pb.TuneShiftFilter:
        """Return the flags as the contract has them."""
        return pb.TuneShiftFilter(
            by_difference=self.by_difference,
            tau=self.tau,
            confident_share=self.confident_share,
            max_perplexity=self.max_perplexity,
            duplicate_similarity=self.duplicate_similarity,
        )


@dataclass(frozen=True)
class ArmFlags:
    """What is trained beside the job's own examples, to compare."""

    ablations: Annotated[
        bool, typer.Option("--ablations", help="Train the job's ablations, too.")
    ] = False
    arm: Annotated[
        list[str] | None,
        typer.Option(help="Of --ablations: no_filter, random_filter, seeds_only; repeatable."),
    ] = None
    tau_arms: Annotated[
        bool, typer.Option("--tau-arms", help="Train an arm for every tau from 1.1 to 3.")
    ] = False
    style_model: Annotated[
        str, typer.Option(help="Model with the style and not the facts: one more ablation.")
    ] = ""
    training_seeds: Annotated[int, typer.Option(min=0, help="Training seeds per arm; 1.")] = 0

    def check(self) -> None:
        """Raise InvalidRequest for what --ablations is needed for."""
        if (self.arm or self.style_model) and not self.ablations:
            raise InvalidRequest("--arm and --style-model are ablations", hint="add --ablations")


def tuneshift(
    base: Annotated[str, typer.Option(help="Model before it was tuned, or a stand-in.")],
    tuned: Annotated[str, typer.Option(help="Model that was tuned.")],
    target: Annotated[str, typer.Option(help="Model to carry the knowledge into.")],
    seeds: Annotated[
        Path,
        typer.Option(
            exists=True,
            dir_okay=False,
            help="A few prompts of the domain, one a line; in double quotes as JSON.",
        ),
    ],
    pool: RoundFlags,
    chosen: FilterFlags,
    compared: ArmFlags,
    training: TrainingFlags,
    sampling: SamplingFlags,
    flags: StartFlags,
    verifier: Annotated[
        str, typer.Option(help="Keep only answers that hold a pattern: regex:PATTERN.")
    ] = "",
    evaluate: Evaluate = None,
    replay: Replay = "",
    chat: Chat = False,
    review: Annotated[
        bool, typer.Option("--review", help="Wait until you have looked at the samples.")
    ] = False,
    model: Annotated[str, typer.Option(help="Name of the new model; {target}-{tuned}.")] = "",
) -> None:
    """Carry what a tuned model knows, and its base does not, into a different model."""
    compared.check()

    def named(collection: str, name: str) -> str:
        return names.full(collection, name, project=flags.project)

    spec = pb.TuneShiftJobSpec(
        base=named("models", base),
        tuned=named("models", tuned),
        target=named("models", target),
        seed_prompts=read_lines(seeds, "prompts", "write one prompt of the domain per line"),
        words=read_lines(pool.words, "words", "write one word per line") if pool.words else [],
        generator=named("models", pool.generator),
        off_domain_dataset=named("datasets", pool.off_domain),
        off_domain_share=pool.off_domain_share,
        rounds=pool.rounds,
        prompts_per_round=pool.prompts_per_round,
        target_examples=pool.target_examples,
        token_budget=pool.token_budget,
        filter=chosen.message(),
        sampling=sampling.message(training.seed),
        verifier=training_flags.verifier(verifier),
        training=training.message(),
        replay_dataset=named("datasets", replay),
        evaluation_datasets=[named("datasets", d) for d in evaluate or []],
        model_id=model,
        review=review,
        ablations=compared.ablations,
        style_model=named("models", compared.style_model),
        training_seeds=compared.training_seeds,
        seed=training.seed,
        tau_arms=compared.tau_arms,
        arms=compared.arm or [],
        chat=chat,
    )
    start(spec, flags)
