"""`stillhouse demo`: the whole story on real photos."""

from __future__ import annotations

import json
import os
import shlex
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from stillhouse_client import demo_report
from stillhouse_client.client import AsyncClient
from stillhouse_client.commands import demo_classifier, demo_prune, demo_tuneshift, output
from stillhouse_client.commands.demo_suite import finish, gateway, showing
from stillhouse_client.commands.flags import spread
from stillhouse_client.commands.session import DataDir, Json, Project, shown_to
from stillhouse_client.commands.suite import DatabaseUrl, RedisUrl, make_config
from stillhouse_client.demo import Demo, Plan
from stillhouse_client.names import DEFAULT_PROJECT
from stillhouse_client.suite import state
from stillhouse_client.suite.config import SuiteConfig, default_web_url

_ROWS = {
    "student": "named concepts",
    "random_control": "random directions",
    "random_words": "random words",
    "sparse_probe": "sparse probe",
    "dense_probe": "dense probe",
}


app = typer.Typer(invoke_without_command=True)


@app.callback()
def demo(
    context: typer.Context,
    images: Annotated[int, typer.Option(min=0, help="Photos per dataset; 0 means all.")] = 0,
    fresh: Annotated[bool, typer.Option("--fresh", help="Run anew, under new names.")] = False,
    data_dir: DataDir = Path(".stillhouse"),
    port: Annotated[int, typer.Option(min=-1, help="First port of the suite; -1: any.")] = -1,
    redis_url: RedisUrl = "",
    database_url: DatabaseUrl = "",
    project: Project = DEFAULT_PROJECT,
    as_json: Json = False,
) -> None:
    """Distil two students from photos of fruit, tune one, and write a picture report.

    Uses the suite that runs in the data folder, or starts one for its own time.
    """
    if context.invoked_subcommand is not None:
        return
    started_s = time.monotonic()
    config = make_config(data_dir, max(port, 0), redis_url, database_url)
    plan = Plan(images, f"r{int(time.time())}" if fresh else "")
    report, files = finish(_run(config, plan, project, started_s), fresh=fresh)
    if as_json:
        output.print_json(report)
        return
    for name, task in report["tasks"].items():
        _print_task(name, task)
    _print_tuning(report["tuning"])
    output.say(f"\n{output.seconds(report['wall_s'])} in all. Written:")
    for file in files:
        output.say(f"  {file}")
    _print_workbench(report["workbench"])


async def _run(
    config: SuiteConfig, plan: Plan, project: str, started_s: float
) -> tuple[dict[str, Any], list[Path]]:
    shown = shown_to(config.data_dir)
    async with (
        gateway(config) as address,
        AsyncClient(address, project=project, certificates=shown) as client,
    ):
        up_s = time.monotonic() - started_s
        with showing() as (say, show):
            story = await Demo(client, plan, say=say, show=show).run()
        story.step_s = {"start": round(up_s, 3), **story.step_s}
        report = await demo_report.build(client, story, time.monotonic() - started_s)
        report["workbench"] = workbench(config, project, plan)
        output.note("drawing the report")
        files = await _write(client, report, config.data_dir / "demo", started_s)
    return report, files


async def _write(
    client: AsyncClient, report: dict[str, Any], folder: Path, started_s: float
) -> list[Path]:
    from stillhouse_client.report import page

    files = await page.write(client, report, folder)
    report["stage_s"]["report"] = round(time.monotonic() - started_s - report["wall_s"], 3)
    report["wall_s"] = round(time.monotonic() - started_s, 2)
    path = folder / "report.json"
    path.write_text(json.dumps(report, indent=2))
    return [path, *files]


def workbench(config: SuiteConfig, project: str, plan: Plan) -> dict[str, str]:
    """Return where the tuned student opens in a browser, and the command that has to run for it;
    none where the suite goes on running."""
    running = state.read(config.data_dir)
    goes_on = running is not None and running.pid != os.getpid()
    base = running.web if running and goes_on else default_web_url(config.port)
    port = f" --port {config.port}" if config.port else ""
    folder = f" --data-dir {shlex.quote(str(config.data_dir))}"
    return {
        "url": f"{base}#/p/{project}/s/{plan.name('fine')}/performance",
        "command": "" if goes_on else f"stillhouse up{folder}{port}",
    }


def _print_workbench(workbench: dict[str, str]) -> None:
    if workbench["command"]:
        output.say("\nThe workbench shows all this and lets you tune. Start it, then open it:")
        output.say(f"  {workbench['command']}")
    else:
        output.say("\nThe workbench shows all this and lets you tune. Open it:")
    output.say(f"  {workbench['url']}")


def _print_task(name: str, task: dict[str, Any]) -> None:
    low = task.get("at_nec_10") or {}
    rows = [
        (title, *_cells(task.get(key)), *_cells(low.get(key)))
        for key, title in _ROWS.items()
        if task.get(key)
    ]
    title = (
        f"\n{name}: {len(task['classes'])} classes, {task.get('n_train')} photos to train, "
        f"{task.get('n_test')} to test; teacher {_text(task.get('teacher_accuracy'))}"
    )
    columns = ["", "#fidelity at 30", "#accuracy", "#NEC", "#fidelity at 10", "#accuracy", "#NEC"]
    output.table(columns, rows, title=title)
    for where, paired in (("30", task.get("paired_random")), ("10", low.get("paired_random"))):
        if paired:
            found = _text(paired.get("fidelity", paired))
            output.say(f"named minus random at NEC {where}: {found}")


def _print_tuning(tuning: dict[str, Any]) -> None:
    output.say(f"\n{tuning['sentence']}")
    exact = "the exact weights" if tuning["undo_exact"] else "OTHER weights"
    output.say(f"Undone: {exact} are back.")


def _cells(entry: dict[str, Any] | None) -> tuple[str, str, str]:
    found = entry or {}
    nec = found.get("nec")
    value = nec.get("value") if isinstance(nec, dict) else nec
    return _text(found.get("fidelity")), _text(found.get("accuracy")), _nec(value)


def _nec(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _text(found: Any) -> str:
    if not isinstance(found, dict) or found.get("value") is None:
        return "-"
    return output.estimate(found) if found.get("low") is not None else f"{found['value']:.3f}"


for _story in (demo_tuneshift.tuneshift, demo_prune.prune, demo_classifier.classifier):
    app.command()(spread(_story))
