"""`stillhouse demo tuneshift`: facts of one language model into another, on this machine."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Annotated, Any

import typer

from stillhouse_client import tuneshift_summary
from stillhouse_client.client import AsyncClient
from stillhouse_client.commands import output
from stillhouse_client.commands.demo_suite import DemoFlags, Summary, show_story
from stillhouse_client.demo_steps import Say, ShowJob
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
    flags: DemoFlags,
    quick: Annotated[
        bool, typer.Option("--quick", help="Fewer facts and one training seed.")
    ] = False,
    seeds: Annotated[int, typer.Option(min=0, help="Training seeds per arm; 0: the plan's.")] = 0,
) -> None:
    """Carry facts that a tuned SmolLM2 knows into one of 20 layers, from two seed prompts.

    Long on a laptop: begin with --quick. A run that is interrupted goes on where it was. Uses the
    suite that runs in the data folder, or starts one for its time.
    """
    plan = TuneShiftPlan.quick(flags.tag) if quick else TuneShiftPlan(tag=flags.tag)
    plan = replace(plan, seeds=seeds or plan.seeds)

    async def tell(client: AsyncClient, say: Say, show: ShowJob, started_s: float) -> Summary:
        story = await TuneShiftDemo(client, plan, say=say, show=show).run()
        return await tuneshift_summary.build(client, story, plan, time.monotonic() - started_s)

    show_story(flags, tell, _print, name="tuneshift", title="Facts into another model")


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
