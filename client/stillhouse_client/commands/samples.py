"""`stillhouse jobs samples`: the examples a tuneshift job made, and a person's review of them."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated

import typer
from stillhouse.gateway.v1 import jobs_pb2 as pb

from stillhouse_client import names
from stillhouse_client.client import AsyncClient
from stillhouse_client.commands import output
from stillhouse_client.commands.session import Address, Json, Project, run
from stillhouse_client.errors import InvalidRequest


class State(StrEnum):
    """What became of a sample."""

    KEPT = "kept"
    FILTERED = "filtered"
    DROPPED = "dropped"
    RESTORED = "restored"


_STDIN = "-"


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command()(samples)


def samples(
    job: Annotated[str, typer.Argument(help="Name of the job.")],
    state: Annotated[State | None, typer.Option(help="Only samples in this state.")] = None,
    limit: Annotated[int, typer.Option(min=0, help="At most this many; 0 means all.")] = 50,
    drop: Annotated[
        list[str] | None, typer.Option(help="Drop this sample; repeatable; - reads ids from stdin.")
    ] = None,
    keep: Annotated[
        list[str] | None, typer.Option(help="Keep this sample; repeatable; - reads ids from stdin.")
    ] = None,
    finish: Annotated[
        bool, typer.Option("--finish", help="End the review: train with what is kept.")
    ] = False,
    address: Address = "",
    project: Project = names.DEFAULT_PROJECT,
    as_json: Json = False,
) -> None:
    """Show the samples of a tuneshift job; drop and keep some while it waits for your review."""
    if drop or keep or finish:
        dropped, kept = _ids(drop or [], keep or [])

        async def review(client: AsyncClient) -> pb.ReviewJobSamplesResponse:
            return await client.jobs.review(job, drop=dropped, keep=kept, finish=finish)

        _print_review(run(review, address, project), job, finish=finish, as_json=as_json)
        return
    wanted = pb.SampleState.Value(f"SAMPLE_STATE_{state.name if state else 'UNSPECIFIED'}")

    async def work(client: AsyncClient) -> pb.ListJobSamplesResponse:
        return await client.jobs.samples(job, state=wanted, limit=limit)

    found = run(work, address, project)
    if as_json:
        output.print_json({"samples": found.samples, "state_counts": dict(found.state_counts)})
        return
    columns = ["sample", "state", "prompt", "answer", "#perplexity", "#gap"]
    rows = [_row(sample) for sample in found.samples]
    output.table(columns, rows, cut=("prompt", "answer"))
    output.note("perplexity: under the base / under the tuned model; gap: nats a token gained")
    output.say(_counts(found.state_counts))
    if limit and len(found.samples) == limit:
        output.note(f"the first {limit}; all with --limit 0")


def _ids(drop: list[str], keep: list[str]) -> tuple[list[str], list[str]]:
    if [*drop, *keep].count(_STDIN) > 1:
        raise InvalidRequest("stdin can be read once", hint="give - to --drop or to --keep")
    dropped, kept = _with_stdin(drop), _with_stdin(keep)
    if both := sorted(set(dropped) & set(kept)):
        raise InvalidRequest(f"{', '.join(both[:5])}: both dropped and kept", hint="decide")
    return dropped, kept


def _with_stdin(ids: list[str]) -> list[str]:
    found = [one for one in ids if one != _STDIN]
    return found + sys.stdin.read().split() if _STDIN in ids else found


def _row(sample: pb.JobSample) -> tuple[str, ...]:
    state = pb.SampleState.Name(sample.state).removeprefix("SAMPLE_STATE_").lower()
    scored = sample.base_perplexity > 0 and sample.tuned_perplexity > 0
    return (
        sample.sample_id,
        f"{state}: {sample.reason}" if sample.reason else state,
        output.one_line(sample.prompt),
        output.one_line(sample.answer),
        f"{sample.base_perplexity:.3g} / {sample.tuned_perplexity:.3g}" if scored else "-",
        f"{sample.nll_gap:+.2f}" if scored else "-",
    )


def _counts(counts: Mapping[str, int]) -> str:
    shown = [f"{counts.get(state.name, 0)} {state}" for state in State]
    return ", ".join(shown)


def _print_review(
    response: pb.ReviewJobSamplesResponse, job: str, *, finish: bool, as_json: bool
) -> None:
    if as_json:
        output.print_json(response)
        return
    output.say(_counts(response.state_counts))
    if finish:
        output.note(f"the job goes on; follow it with `stillhouse jobs watch {names.last(job)}`")
    else:
        output.note(f"end the review with `stillhouse jobs samples {names.last(job)} --finish`")
