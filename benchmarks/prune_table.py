"""What distillation, importance and the trained weights are each worth, at two sizes of a model.

For every share of SmolLM2-135M's non-embedding parameters a prune job on the suite of `stillhouse
demo prune` trains, for equal steps of the same stored targets, the cut it chose (`pruned_kd`), that
cut without distillation (`pruned_ce`), a random cut (`random_pruned_kd`) and random weights of the
shape (`scratch`); two more jobs cut width alone and depth alone. Where the first job chose such a
cut itself, its figures stand for it. All are held-out cross-entropies in nats a token, with 95 %
intervals over training seeds and sequences; `paired` is `pruned_kd` minus a control by seed and
sequence. All jobs cut and learn from one teacher, which the first job corrects. `beats` says
whether all of that interval is below zero, `not_worse` whether the interval of `pruned_kd` begins
below the end of the better one of width and depth.

An interrupted run goes on from its data folder. The last line is one JSON object.

    python -m benchmarks.prune_table [--shares 0.7 0.5] [--seeds 2] [--steps 50] [--data-dir DIR]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from stillhouse_client.client import AsyncClient
from stillhouse_client.commands.demo_suite import gateway, showing
from stillhouse_client.commands.suite import make_config
from stillhouse_client.names import DEFAULT_PROJECT
from stillhouse_client.prune_demo import PruneDemo, PrunePlan, build

Summary = dict[str, Any]
CONTROLS = ("pruned_ce", "random_pruned_kd", "scratch")
AXES = ("width", "depth")


async def measure(data_dir: Path, plans: Sequence[PrunePlan]) -> list[Summary]:
    """Run the jobs of every plan; return what each share came to."""
    first, *others = plans
    teacher = f"{first.model}-teacher"  # corrected once, by the first job
    config = make_config(data_dir, 0, "", "")
    config = replace(config, services=("teacher", "student", "gateway"))
    async with (
        gateway(config) as address,
        AsyncClient(address, project=DEFAULT_PROJECT) as client,
    ):
        same = [first, *(replace(plan, teacher=teacher) for plan in others)]
        return [await of_share(client, plan, teacher) for plan in same]


async def of_share(client: AsyncClient, plan: PrunePlan, teacher: str) -> Summary:
    """The figures of one share: of its job with controls, and of width and depth alone."""
    own = await told(client, plan)
    one_axis = {own["cut"]["kind"]: own}
    for axes in AXES:
        if axes not in one_axis:
            alone = replace(plan, axes=axes, controls=False, teacher=teacher)
            one_axis[axes] = await told(client, alone)
    losses = own["ce"] | {axes: one_axis[axes]["ce"]["pruned_kd"] for axes in AXES}
    better = min(AXES, key=lambda axes: float(losses[axes]["value"]))
    return {
        "share": plan.share,
        "ce": losses,
        "paired": own["paired"],
        "beats": {name: own["paired"][name]["high"] < 0 for name in CONTROLS},
        "better_axis": better,
        "not_worse": losses["pruned_kd"]["low"] <= losses[better]["high"],
        "cuts": {"own": own["cut"]} | {axes: one_axis[axes]["cut"] for axes in AXES},
        "sizes": {"own": own["size"]["got"]} | {a: one_axis[a]["size"]["got"] for a in AXES},
        "plan": own["plan"],
    }


async def told(client: AsyncClient, plan: PrunePlan) -> Summary:
    """The summary of a plan's job, which is run, or found where it was."""
    with showing() as (say, show):
        story = await PruneDemo(client, plan, say=say, show=show).run()
    return await build(client, story, plan, sum(story.step_s.values()))


def show_table(console: Console, found: Sequence[Summary]) -> None:
    """Print a row for every model of every share."""
    table = Table("share", "model", "cut", "parameters", "cross-entropy", "own minus it")
    for one in found:
        for name, loss in one["ce"].items():
            key = name if name in AXES else "own"
            cut = "" if name == "full" else one["cuts"][key]["kind"]
            size = "" if name == "full" else f"{int(one['sizes'][key]['parameters']):,}"
            less = one["paired"].get(name)
            table.add_row(
                f"{one['share']:.0%}", name, cut, size, interval(loss), interval(less, sign="+")
            )
    console.print(table)
    for one in found:
        beaten = [name for name, yes in one["beats"].items() if yes]
        console.print(
            f"{one['share']:.0%}: beats {', '.join(beaten) or 'none'}; "
            f"{'not worse' if one['not_worse'] else 'WORSE'} than {one['better_axis']} alone"
        )


def interval(figure: dict[str, float] | None, *, sign: str = "") -> str:
    """A figure as `value [low, high]`."""
    if not figure:
        return ""
    return "{value:{s}.3f} [{low:{s}.3f}, {high:{s}.3f}]".format(**figure, s=sign)


def main() -> None:
    """Run, print the table and one JSON line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    plan = PrunePlan(texts=160)
    parser.add_argument("--shares", type=float, nargs="+", default=[0.7, 0.5])
    parser.add_argument("--seeds", type=int, default=plan.seeds)
    parser.add_argument("--steps", type=int, default=plan.steps)
    parser.add_argument("--data-dir", type=Path, default=Path(".stillhouse/prune_table"))
    args = parser.parse_args()
    plans = [
        replace(plan, share=share, seeds=args.seeds, steps=args.steps) for share in args.shares
    ]
    began_s = time.monotonic()
    found = asyncio.run(measure(args.data_dir, plans))
    show_table(Console(), found)
    result = {"bench": "prune_table", "shares": found, "seconds": time.monotonic() - began_s}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
