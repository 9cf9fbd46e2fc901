"""`stillhouse demo classifier`: a large image classifier into a tiny one, on this machine."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from stillhouse_client.classifier_demo import ClassifierDemo, ClassifierPlan, build
from stillhouse_client.client import AsyncClient
from stillhouse_client.commands import job_tables, output
from stillhouse_client.commands.demo_suite import finish, gateway, showing
from stillhouse_client.commands.session import DataDir, Json, Project
from stillhouse_client.commands.suite import DatabaseUrl, RedisUrl, make_config
from stillhouse_client.names import DEFAULT_PROJECT
from stillhouse_client.suite.config import SuiteConfig


def classifier(
    quick: Annotated[
        bool, typer.Option("--quick", help="Fewer images and one training seed.")
    ] = False,
    seeds: Annotated[int, typer.Option(min=0, help="Training seeds per arm; 0: the plan's.")] = 0,
    fresh: Annotated[bool, typer.Option("--fresh", help="Run anew, under new names.")] = False,
    data_dir: DataDir = Path(".stillhouse"),
    port: Annotated[int, typer.Option(min=-1, help="First port of the suite; -1: any.")] = -1,
    redis_url: RedisUrl = "",
    database_url: DatabaseUrl = "",
    project: Project = DEFAULT_PROJECT,
    as_json: Json = False,
) -> None:
    """Distil a teacher of CIFAR-10 into a network of 24,000 weights, beside its controls.

    A run that is interrupted goes on where it was. Uses the suite that runs in the data folder, or
    starts one for its time.
    """
    started_s = time.monotonic()
    config = make_config(data_dir, max(port, 0), redis_url, database_url)
    config = replace(config, services=("teacher", "student", "gateway"))
    summary, files = finish(
        _run(config, _plan(quick, seeds, fresh), project, started_s), fresh=fresh
    )
    if as_json:
        output.print_json(summary)
        return
    job_tables.print_report(summary["report"])
    output.say(f"\n{output.seconds(summary['wall_s'])} in all. Written:")
    for file in files:
        output.say(f"  {file}")


def _plan(quick: bool, seeds: int, fresh: bool) -> ClassifierPlan:
    tag = f"r{int(time.time())}" if fresh else ""
    plan = ClassifierPlan.quick(tag) if quick else ClassifierPlan(tag=tag)
    return replace(plan, seeds=seeds) if seeds else plan


async def _run(
    config: SuiteConfig, plan: ClassifierPlan, project: str, started_s: float
) -> tuple[dict[str, Any], list[Path]]:
    async with gateway(config) as address, AsyncClient(address, project=project) as client:
        with showing() as (say, show):
            story = await ClassifierDemo(client, plan, say=say, show=show).run()
        summary = await build(client, story, plan, time.monotonic() - started_s)
    return summary, await asyncio.to_thread(_write, summary, config.data_dir / "demo")


def _write(summary: dict[str, Any], folder: Path) -> list[Path]:
    from stillhouse_client.report import job_page  # matplotlib is slow to import

    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "classifier.json"
    path.write_text(json.dumps(summary, indent=2))
    title = "A large classifier into a tiny one"
    pages = job_page.write(summary["report"], title, folder / "classifier")
    return [path, *pages]
