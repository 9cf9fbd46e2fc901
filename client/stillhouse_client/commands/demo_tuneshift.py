"""`stillhouse demo tuneshift`: facts of one language model into another, on this machine."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from stillhouse_client import tuneshift_summary
from stillhouse_client.client import AsyncClient
from stillhouse_client.commands import output
from stillhouse_client.commands.demo_suite import finish, gateway, showing
from stillhouse_client.commands.session import DataDir, Json, Project
from stillhouse_client.commands.suite import DatabaseUrl, RedisUrl, make_config
from stillhouse_client.names import DEFAULT_PROJECT
from stillhouse_client.suite.config import SuiteConfig
from stillhouse_client.tuneshift_demo import TuneShiftDemo, TuneShiftPlan

_ROWS = {
    "base": "base model",
    "tuned": "tuned model",
    "target_before": "target before",
    "tuneshift": "target after tuneshift",
    "no_filter": "  without the filter",
    "random_filter": "  with a random filter",
    "seeds_only": "  from seed prompts alone",
}


def tuneshift(
    quick: Annotated[
        bool, typer.Option("--quick", help="Fewer facts and one training seed.")
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
    """Carry facts that a tuned SmolLM2 knows into one of 20 layers, from two seed prompts.

    Long on a laptop: begin with --quick. A run that is interrupted goes on where it was. Uses the
    suite that runs in the data folder, or starts one for its time.
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
    _print(summary)
    output.say(f"\n{output.seconds(summary['wall_s'])} in all. Written:")
    for file in files:
        output.say(f"  {file}")


def _plan(quick: bool, seeds: int, fresh: bool) -> TuneShiftPlan:
    tag = f"r{int(time.time())}" if fresh else ""
    plan = TuneShiftPlan.quick(tag) if quick else TuneShiftPlan(tag=tag)
    if not seeds:
        return plan
    return TuneShiftPlan(**{**vars(plan), "seeds": seeds})


async def _run(
    config: SuiteConfig, plan: TuneShiftPlan, project: str, started_s: float
) -> tuple[dict[str, Any], list[Path]]:
    async with gateway(config) as address, AsyncClient(address, project=project) as client:
        with showing() as (say, show):
            story = await TuneShiftDemo(client, plan, say=say, show=show).run()
        wall_s = time.monotonic() - started_s
        summary = await tuneshift_summary.build(client, story, plan, wall_s)
    return summary, await asyncio.to_thread(_write, summary, config.data_dir / "demo")


def _write(summary: dict[str, Any], folder: Path) -> list[Path]:
    from stillhouse_client.report import job_page

    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "tuneshift.json"
    path.write_text(json.dumps(summary, indent=2))
    pages = job_page.write(summary["report"], "Facts into another model", folder / "tuneshift")
    return [path, *pages]


def _print(summary: dict[str, Any]) -> None:
    figures = {**summary["accuracy"]}
    entropy = {"target_before": summary["general_ce"]["before"], **summary["general_ce"]["arms"]}
    rows = [
        (title, _text(figures.get(name)), _text(entropy.get(name)))
        for name, title in _ROWS.items()
        if name in figures
    ]
    output.table(["", "#questions right", "#general cross-entropy"], rows)
    share = summary["recovered"]
    if share is not None:
        output.say(f"\nThe target has {share:.0%} of the tuned model's advantage over the base.")
    output.say(f"Filter minus random filter: {_text(summary['paired_random'])}")
    rates = ", ".join(f"{rate:.0%}" for rate in summary["keep_rate"])
    output.say(f"Kept per round: {rates}")


def _text(figure: Any) -> str:
    if not isinstance(figure, dict) or figure.get("value") is None:
        return "-"
    return output.estimate(figure)
