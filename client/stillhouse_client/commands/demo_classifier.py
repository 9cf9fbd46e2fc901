"""`stillhouse demo classifier`: a large image classifier into a tiny one, on this machine."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Annotated

import typer

from stillhouse_client.classifier_demo import ClassifierDemo, ClassifierPlan, build
from stillhouse_client.client import AsyncClient
from stillhouse_client.commands import job_tables
from stillhouse_client.commands.demo_suite import DemoFlags, Summary, show_story
from stillhouse_client.demo_steps import Say, ShowJob


def classifier(
    flags: DemoFlags,
    quick: Annotated[
        bool, typer.Option("--quick", help="Fewer images and one training seed.")
    ] = False,
    seeds: Annotated[int, typer.Option(min=0, help="Training seeds per arm; 0: the plan's.")] = 0,
) -> None:
    """Distil a teacher of CIFAR-10 into a network of 24,000 weights, beside its controls.

    A run that is interrupted goes on where it was. Uses the suite that runs in the data folder, or
    starts one for its time.
    """
    plan = ClassifierPlan.quick(flags.tag) if quick else ClassifierPlan(tag=flags.tag)
    plan = replace(plan, seeds=seeds or plan.seeds)

    async def tell(client: AsyncClient, say: Say, show: ShowJob, started_s: float) -> Summary:
        story = await ClassifierDemo(client, plan, say=say, show=show).run()
        return await build(client, story, plan, time.monotonic() - started_s)

    show_story(
        flags,
        tell,
        lambda summary: job_tables.print_report(summary["report"]),
        name="classifier",
        title="A large classifier into a tiny one",
    )
