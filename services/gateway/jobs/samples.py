"""Shows the examples of a tuneshift job, and takes what a person decides about them."""

from __future__ import annotations

import asyncio
import functools
import json
from collections import Counter
from collections.abc import Mapping, Sequence

from stillhouse.gateway.v1 import jobs_pb2 as pb

from services.common.blobs import BlobStore
from services.common.errors import InvalidInput, Precondition
from services.gateway.jobs import records, reviews
from services.gateway.jobs.job import Tools
from services.gateway.jobs.tuneshift_figures import Sample
from services.gateway.paging import page
from services.gateway.store import JobRow

STATES = ("KEPT", "FILTERED", "DROPPED", "RESTORED")
_REMEMBERED = 64


class Samples:
    """The examples of this gateway's jobs."""

    def __init__(self, tools: Tools) -> None:
        self._tools = tools
        self._round = functools.lru_cache(maxsize=_REMEMBERED)(
            functools.partial(_read, tools.blobs)
        )

    async def list_page(
        self, row: JobRow, request: pb.ListJobSamplesRequest
    ) -> pb.ListJobSamplesResponse:
        """Return one page. Raises InvalidInput, Precondition for a job of another kind."""
        if request.state not in pb.SampleState.values():
            raise InvalidInput("state: is none of SampleState", field="state")
        wanted = page(request.page_size, request.page_token, request.job, str(request.state))
        samples, decided = await asyncio.to_thread(self._all, row)
        states = [reviews.state_of(one, decided) for one in samples]
        asked = pb.SampleState.Name(request.state).removeprefix("SAMPLE_STATE_")
        found = [
            (at + 1, one, state)
            for at, (one, state) in enumerate(zip(samples, states, strict=True))
            if at >= wanted.position and asked in ("UNSPECIFIED", state)
        ][: wanted.size + 1]
        lengths = [len((one["prompt"] + one["answer"]).encode()) for _, one, _ in found]
        kept, token = wanted.cut(found, [at for at, _, _ in found], lengths)
        return pb.ListJobSamplesResponse(
            samples=[to_message(one, state) for _, one, state in kept],
            next_page_token=token,
            state_counts=counts_of(samples, decided),
        )

    async def review(self, row: JobRow, request: pb.ReviewJobSamplesRequest) -> dict[str, int]:
        """Store decisions; return the examples in each state."""
        return await asyncio.to_thread(self._review, row, request)

    def _review(self, row: JobRow, request: pb.ReviewJobSamplesRequest) -> dict[str, int]:
        samples, _ = self._all(row)
        reviews.review(self._tools.store, row, request, samples)
        return counts_of(samples, reviews.decisions(self._tools.store, row.pk))

    def _all(self, row: JobRow) -> tuple[list[Sample], dict[str, str]]:
        if records.spec_of(row).WhichOneof("spec") != "tuneshift":
            raise Precondition(f"{records.name_of(row)} is no tuneshift job, so it has no examples")
        digests = json.loads(row.result_json).get("rounds", "").split()
        samples = [one for digest in digests for one in self._round(row.project, digest)]
        return samples, reviews.decisions(self._tools.store, row.pk)


def counts_of(samples: Sequence[Sample], decided: Mapping[str, str]) -> dict[str, int]:
    """Return how many examples are in each state."""
    counts = Counter(reviews.state_of(one, decided) for one in samples)
    return {state: counts[state] for state in STATES}


def to_message(sample: Sample, state: str) -> pb.JobSample:
    """Return the message of an example."""
    return pb.JobSample(
        sample_id=sample["sample_id"],
        prompt=sample["prompt"],
        answer=sample["answer"],
        round=sample["round"],
        off_domain=sample["off_domain"],
        tuned_perplexity=sample["tuned_perplexity"] or 0.0,
        base_perplexity=sample["base_perplexity"] or 0.0,
        nll_gap=sample["nll_gap"] or 0.0,
        state=pb.SampleState.Value(f"SAMPLE_STATE_{state}"),
        reason=sample["reason"],
        token_count=sample["token_count"],
    )


def _read(blobs: BlobStore, project: str, digest: str) -> tuple[Sample, ...]:
    return tuple(json.loads(blobs.get(project, digest))["samples"])
