"""The tables of `stillhouse top`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from rich.markup import escape
from rich.table import Table
from rich.text import Text
from stillhouse.gateway.v1 import jobs_pb2 as pb

from stillhouse_client import names
from stillhouse_client.commands import output
from stillhouse_client.commands.job_tables import STATES, kind_of
from stillhouse_client.rates import ProcessRates, Rates

_NONE = "-"
_STATES = {"QUEUED": "queued", "RUNNING": "running", "CANCELLING": "being cancelled"}


def processes(found: Rates) -> Table:
    """Every process: what it is, how busy, and how its calls go."""
    columns = ("service", "process", "device", "#up", "#busy", "#memory", "#files")
    table = _table((*columns, "#calls/s", "#failed/s", "#decode ms", "#encode ms"))
    for one in found.processes:
        if one.away:
            table.add_row(one.service, f"[red]{escape(one.address)}[/red]")
            table.add_row("", f"[red]{escape(output.one_line(one.away))[:60]}[/red]")
        else:
            table.add_row(*_process(one))
    return table


def models(found: Rates) -> Table:
    """Every queue: what waits, how it is batched, how fast it goes, what was sent away."""
    columns = ("service", "model", "#waits", "#batch", "#items/s", "#wait p50 ms", "#p99 ms")
    table = _table((*columns, "#compute ms", "#refused/s", "#left/s"))
    who = _names(found)
    for one in found.models:
        waits = f"[yellow]{one.queue_items}[/yellow]" if one.queue_items else "0"
        table.add_row(
            who[one.instance],
            escape(one.model),
            waits,
            _figure(one.batch_items),
            _figure(one.items_per_s),
            _figure(one.queue_p50_ms),
            _figure(one.queue_p99_ms),
            _figure(one.compute_ms),
            _alarm(one.refused_per_s),
            _alarm(one.dropped_per_s),
        )
    return table


def caches(found: Rates) -> Table:
    """Every cache: how often it is asked, and how often it knows."""
    table = _table(("service", "cache", "#look-ups/s", "#hit rate"))
    who = _names(found)
    for one in found.caches:
        rate = _NONE if one.hit_rate is None else f"{one.hit_rate:.0%}"
        table.add_row(who[one.instance], escape(one.cache), _figure(one.lookups_per_s), rate)
    return table


def counts(found: Rates) -> Text:
    """One line: jobs of all projects, and training runs."""
    jobs = _counted((_STATES.get(state, state), n) for state, n in found.jobs.items())
    runs = _counted(found.training.items())
    return Text(f"jobs: {jobs or 'none'}   training runs: {runs or 'none'}")


def jobs(running: Sequence[pb.DistillationJob]) -> Table:
    """The project's jobs that have not ended."""
    table = _table(("job", "kind", "state", "stage", "#done", "#left"))
    for job in running:
        stages = [one for one in job.stages if not one.complete] or job.stages[-1:]
        done = [f"{one.done:,}/{one.total:,}" if one.total else "" for one in stages]
        table.add_row(
            names.last(job.name),
            kind_of(job),
            STATES.get(job.state, "?"),
            ", ".join(one.stage for one in stages),
            ", ".join(filter(None, done)),
            output.seconds(job.eta_s) if job.eta_s else _NONE,
        )
    return table


def _names(found: Rates) -> dict[str, str]:
    """Return what a row of a process begins with: the service, and which one where it has several
    processes."""
    there = [one for one in found.processes if one.instance]
    count = Counter(one.service for one in there)
    return {
        one.instance: f"{one.service} {escape(_place(one))}"
        if count[one.service] > 1
        else one.service
        for one in there
    }


def _place(one: ProcessRates) -> str:
    return one.address or one.instance


def _process(one: ProcessRates) -> tuple[str, ...]:
    return (
        one.service,
        escape(_place(one)),
        one.device,
        _duration(one.up_s),
        _NONE if one.busy is None else f"{one.busy:.0%}",
        output.size(one.resident_bytes),
        str(one.open_files),
        _figure(one.calls_per_s),
        _alarm(one.failed_per_s),
        _figure(one.decode_ms),
        _figure(one.encode_ms),
    )


def _table(columns: Iterable[str]) -> Table:
    table = Table(box=None, header_style="bold dim", pad_edge=False, padding=(0, 2, 0, 0))
    for name in columns:
        right = name.startswith("#")
        table.add_column(name.lstrip("#"), justify="right" if right else "left", no_wrap=True)
    return table


def _figure(value: float | None) -> str:
    if value is None:
        return _NONE
    if value >= 100 or value == 0:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 1 else f"{value:.2f}"


def _alarm(value: float | None) -> str:
    return f"[red]{_figure(value)}[/red]" if value else _figure(value)


def _counted(found: Iterable[tuple[str, int]]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in found if count)


def _duration(seconds: float) -> str:
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"
