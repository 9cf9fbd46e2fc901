"""Follows a job: a bar per stage for people, one JSON line per event for programs."""

from __future__ import annotations

from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn
from rich.progress import TaskID as Task
from stillhouse.gateway.v1 import jobs_pb2 as pb

from stillhouse_client import names
from stillhouse_client.client import AsyncClient
from stillhouse_client.commands import output
from stillhouse_client.commands.job_tables import print_review
from stillhouse_client.jobs import FINAL, waits_for_review

STAGES = {
    "ingest": "read the dataset",
    "check": "check that all fits",
    "estimate": "estimate the cost",
    "teacher_outputs": "ask the teacher",
    "teacher_views": "ask the teacher of views",
    "features": "compute features",
    "regions": "embed regions",
    "concepts": "embed and filter concepts",
    "targets": "store the teacher's targets",
    "answers": "ask for answers",
    "rounds": "make and filter samples",
    "review": "wait for your review",
    "fit": "fit",
    "publish": "publish",
}


class JobBars:
    """Bars for a job's stages on standard error."""

    def __init__(self, title: str = "") -> None:
        self._bars = Progress(
            SpinnerColumn(finished_text="[green]✓[/green]"),
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TextColumn("[dim]{task.fields[detail]}[/dim]"),
            console=output.err,
        )
        self._title = title
        self._tasks: dict[str, Task] = {}
        self._loss = ""
        self._asked = False

    def __enter__(self) -> JobBars:
        if self._title:
            output.err.print(f"[bold]{self._title}[/bold]")
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def show(self, job: pb.DistillationJob) -> None:
        """Bring the bars up to date."""
        for stage in job.stages:
            if not (stage.done or stage.total or stage.complete or stage.elapsed_s):
                continue
            if stage.stage not in self._tasks:
                title = STAGES.get(stage.stage, stage.stage)
                self._tasks[stage.stage] = self._bars.add_task(f"  {title:26}", detail="")
            total = stage.total or (max(stage.done, 1) if stage.complete else None)
            done = total if stage.complete and total else stage.done
            self._bars.update(
                self._tasks[stage.stage],
                total=total,
                completed=done,
                detail=", ".join(filter(None, [_detail(stage, job.eta_s), self._of(stage)])),
            )
        if waits_for_review(job) and not self._asked:
            self._asked = True
            print_review(job.name)

    def add_points(self, event: pb.WatchDistillationJobResponse) -> None:
        """Show an event's points of learning curves: the loss at the bar, the rest as a line."""
        if not event.metrics:
            return
        points = dict(event.metrics)
        run = f"{event.metrics_run}: " if event.metrics_run else ""
        if "loss" in points:
            self._loss = f"{run}loss {points['loss']:.3f}"
        held_out = [f"{_words(k)} {v:.3f}" for k, v in points.items() if k.startswith("heldout_")]
        if held_out:
            loss = [f"loss {points['loss']:.3f}"] if "loss" in points else []
            self._bars.console.print(
                escape(f"    {run}step {event.metrics_step}: {', '.join([*loss, *held_out])}"),
                style="dim",
            )

    def _of(self, stage: pb.JobStage) -> str:
        return self._loss if stage.stage == "fit" and not stage.complete else ""


async def follow(
    client: AsyncClient, name: str, *, as_json: bool = False, resume_token: str = ""
) -> pb.DistillationJob:
    """Show a job until it ends and return it as it is then."""
    job = pb.DistillationJob()
    if as_json:
        async for event in client.jobs.watch(name, resume_token=resume_token):
            output.print_json(event, indent=None)
            job = event.job
    else:
        with JobBars(f"job {names.last(name)}") as bars:
            async for event in client.jobs.watch(name, resume_token=resume_token):
                bars.add_points(event)
                bars.show(event.job)
                job = event.job
    return job if job.state in FINAL else await client.jobs.get(name)


def interrupted(name: str) -> None:
    """Say, after Ctrl-C, that a job goes on and how to see it again."""
    if not name:
        output.note("interrupted; see whether the job was started with `stillhouse jobs list`")
        return
    output.note(f"the job goes on; see it again with `stillhouse jobs watch {names.last(name)}`,")
    output.note(f"or end it with `stillhouse jobs cancel {names.last(name)}`")


def _words(series: str) -> str:
    return series.replace("heldout_", "held-out ").replace("_", " ")


def _detail(stage: pb.JobStage, eta_s: float) -> str:
    parts = [stage.unit] if stage.unit else []
    if stage.cache_hits:
        parts.append(f"{stage.cache_hits} from cache")
    parts.append(output.seconds(stage.elapsed_s))
    if eta_s and not stage.complete:
        parts.append(f"about {output.seconds(eta_s)} left")
    return ", ".join(parts)
