"""`stillhouse demo prune`: a smaller copy of a language model, on this machine."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Annotated

import typer

from stillhouse_client.client import AsyncClient
from stillhouse_client.commands import job_tables
from stillhouse_client.commands.demo_suite import DemoFlags, Summary, show_story
from stillhouse_client.demo_steps import Say, ShowJob
from stillhouse_client.prune_demo import PruneDemo, PrunePlan, build


def prune(
    flags: DemoFlags,
    quick: Annotated[
        bool, typer.Option("--quick", help="Fewer steps and one training seed.")
    ] = False,
    share: Annotated[
        float,
        typer.Option(
            min=0.05, max=0.99, help="Share of the parameters outside the embeddings that stays."
        ),
    ] = PrunePlan.share,
    seeds: Annotated[int, typer.Option(min=0, help="Training seeds per arm; 0: the plan's.")] = 0,
) -> None:
    """Cut SmolLM2 to 70 % and retrain it by distillation, beside its controls.

    Long on a laptop: begin with --quick. A run that is interrupted goes on where it was. Uses the
    suite that runs in the data folder, or starts one for its time.
    """
    plan = PrunePlan.quick(flags.tag) if quick else PrunePlan(tag=flags.tag)
    plan = replace(plan, share=share, seeds=seeds or plan.seeds)

    async def tell(client: AsyncClient, say: Say, show: ShowJob, started_s: float) -> Summary:
        story = await PruneDemo(client, plan, say=say, show=show).run()
        return await build(client, story, plan, time.monotonic() - started_s)

    show_story(
        flags,
        tell,
        lambda summary: job_tables.print_report(summary["report"]),
        name="prune",
        title="A smaller copy of a model",
    )
