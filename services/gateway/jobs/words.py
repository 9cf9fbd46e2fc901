"""The concepts of a job: which words, their embeddings, and the random words they must beat."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence

import numpy as np
from stillhouse.concepts.v1 import concepts_pb2
from stillhouse.gateway.v1 import jobs_pb2

from services.common import names
from services.common.errors import NotFound, Precondition
from services.common.tensors import expect, from_message, pack_arrays
from services.gateway.jobs.checks import DEFAULT_CONCEPT_SET
from services.gateway.jobs.control_words import control_words
from services.gateway.jobs.job import Job, Tools
from services.gateway.jobs.plans import ConceptPlan, Words
from services.gateway.keys import stage_ref

_FEWEST = 2


async def prepare_words(job: Job, spec: jobs_pb2.ConceptJobSpec, plan: ConceptPlan) -> Words:
    """Filter the words against the class names, embed what is kept and as many random words.

    Raises Precondition where the filters leave fewer than two.
    """
    asked = await asked_words(job.tools, job.project, spec)
    classes = plan["teacher"]["classes"]
    ref = stage_ref(
        "concepts",
        {
            "encoder": plan["encoder"]["digest"],
            "words": asked,
            "classes": classes,
            "seed": int(spec.seed),
        },
    )
    found = await asyncio.to_thread(_find, job, ref)
    if found is None:
        found = await _embed(job, plan, asked, classes, int(spec.seed))
        await asyncio.to_thread(
            job.tools.blobs.put_ref, job.project, ref, json.dumps(found).encode()
        )
    count = len(found["words"])
    await job.progress.update("concepts", done=count, total=count, unit="concepts")
    return found


async def asked_words(tools: Tools, project: str, spec: jobs_pb2.ConceptJobSpec) -> list[str]:
    """Return the words of the concept set, then the given ones, without repeats.

    Given words alone are used alone; the default set is taken where nothing is given.
    """
    if spec.concept_set or not spec.concepts:
        default = names.join(project, "conceptSets", DEFAULT_CONCEPT_SET)
        request = concepts_pb2.GetConceptSetRequest(name=spec.concept_set or default)
        method = tools.peers.concepts.GetConceptSet
        reply = await tools.peers.insist(method, request, what="concept set")
        return list(dict.fromkeys([*reply.concept_set.words, *spec.concepts]))
    return list(dict.fromkeys(spec.concepts))


async def filter_words(
    tools: Tools, plan: ConceptPlan, asked: Sequence[str]
) -> concepts_pb2.FilterConceptsResponse:
    """Return the words that pass the filters, with their embeddings."""
    request = concepts_pb2.FilterConceptsRequest(
        encoder=plan["encoder"]["name"], words=asked, class_names=plan["teacher"]["classes"]
    )
    reply = await tools.peers.insist(
        tools.peers.concepts.FilterConcepts,
        request,
        what="concepts",
        timeout_s=tools.peers.shard_timeout_s,
    )
    _check_encoder(plan, reply.encoder_digest)
    if len(reply.kept) < _FEWEST:
        why = "; ".join(f"{one.word}: {one.reason}" for one in reply.dropped[:3])
        raise Precondition(
            f"the filters leave {len(reply.kept)} of {len(asked):,} words, {_FEWEST} are needed "
            f"({why})"
        )
    return reply


async def _embed(
    job: Job, plan: ConceptPlan, asked: Sequence[str], classes: Sequence[str], seed: int
) -> Words:
    kept = await filter_words(job.tools, plan, asked)
    dropped = len(asked) - len(kept.kept)
    await job.progress.say(f"concepts: {len(kept.kept):,} words kept, {dropped:,} filtered out")
    peers, encoder = job.tools.peers, plan["encoder"]
    mean = await peers.insist(
        peers.concepts.GetEncoder,
        concepts_pb2.GetEncoderRequest(name=encoder["name"]),
        what="encoder",
    )
    _check_encoder(plan, mean.encoder.digest)
    random = control_words(len(kept.kept), seed, avoid=[*asked, *classes])
    texts = await peers.insist(
        peers.concepts.EmbedTexts,
        concepts_pb2.EmbedTextsRequest(encoder=encoder["name"], texts=random),
        what="random words",
        timeout_s=peers.shard_timeout_s,
    )
    _check_encoder(plan, texts.encoder_digest)
    dim = encoder["dim"]
    bank = {
        "text": from_message(kept.embeddings).astype("<f2"),
        "text_mean": from_message(kept.text_mean).astype("<f4"),
        "image_mean": from_message(mean.encoder.reference_mean).astype("<f4"),
    }
    expect(bank["text"], shape=(len(kept.kept), dim), field="embeddings")
    expect(bank["text_mean"], shape=(dim,), field="text_mean")
    expect(bank["image_mean"], shape=(dim,), field="reference_mean")
    control = {"text": np.asarray(from_message(texts.embeddings)).astype("<f2")}
    put = job.tools.blobs.put
    return Words(
        words=list(kept.kept),
        embeddings=await asyncio.to_thread(put, job.project, pack_arrays(bank)),
        control=await asyncio.to_thread(put, job.project, pack_arrays(control)),
    )


def _find(job: Job, ref: str) -> Words | None:
    try:
        kept = json.loads(job.tools.blobs.get_ref(job.project, ref))
        words = Words(words=kept["words"], embeddings=kept["embeddings"], control=kept["control"])
    except (NotFound, ValueError, KeyError, TypeError):
        return None
    blobs = (words["embeddings"], words["control"])
    return words if all(job.tools.blobs.exists(job.project, blob) for blob in blobs) else None


def _check_encoder(plan: ConceptPlan, digest: str) -> None:
    if digest != plan["encoder"]["digest"]:
        raise Precondition(
            f"encoder {plan['encoder']['name']} was replaced while the job ran; start it again"
        )
