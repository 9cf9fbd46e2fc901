"""Builds ConceptsService's response messages from arrays and statuses."""

from __future__ import annotations

from collections.abc import Sequence

from google.rpc import status_pb2
from stillhouse.concepts.v1 import concepts_pb2

from services.common.batching import Served
from services.common.names import join
from services.common.presence import Presence
from services.common.tensors import Array, to_message
from services.concepts.concept_sets import WordSet
from services.concepts.registry import ServedEncoder


def encoder(project: str, served: ServedEncoder) -> concepts_pb2.Encoder:
    """Describe an encoder in full."""
    model = served.model
    return concepts_pb2.Encoder(
        name=join(project, "encoders", model.id),
        digest=model.digest,
        embedding_dim=model.embedding_dim,
        image_size=model.preprocessing.size_px,
        preprocessing_digest=model.preprocessing.digest,
        region_digest=model.region_digest,
        region_map_shape=model.map_shape,
        reference_mean=to_message(model.reference_mean),
        licence=served.licence,
    )


def concept_set(project: str, words: WordSet, *, full: bool) -> concepts_pb2.ConceptSet:
    """Describe a concept set, with its words where `full`."""
    return concepts_pb2.ConceptSet(
        name=join(project, "conceptSets", words.id),
        digest=words.digest,
        words=words.words if full else (),
        built_in=words.built_in,
    )


def embedding(
    item_id: str, outcome: status_pb2.Status | Served[Array]
) -> concepts_pb2.EmbedImageResult:
    """One item's embedding or why there is none."""
    if isinstance(outcome, status_pb2.Status):
        return concepts_pb2.EmbedImageResult(item_id=item_id, error=outcome)
    return concepts_pb2.EmbedImageResult(item_id=item_id, embedding=to_message(outcome.result))


def regions(
    item_id: str, outcome: status_pb2.Status | Served[tuple[Array, Array]]
) -> concepts_pb2.EmbedRegionsResult:
    """One item's regions or why there are none."""
    if isinstance(outcome, status_pb2.Status):
        return concepts_pb2.EmbedRegionsResult(item_id=item_id, error=outcome)
    rows, cells = outcome.result
    message = concepts_pb2.Regions(embeddings=to_message(rows), map=to_message(cells))
    return concepts_pb2.EmbedRegionsResult(item_id=item_id, regions=message)


def presences(
    item_ids: Sequence[str],
    outcomes: Sequence[status_pb2.Status | Served[tuple[Array, Array]]],
    scores: Presence,
) -> list[concepts_pb2.PresenceResult]:
    """Every item's scores or why there are none; `scores` has a row per good item, in order."""
    results, row = [], 0
    for item_id, outcome in zip(item_ids, outcomes, strict=True):
        if isinstance(outcome, status_pb2.Status):
            results.append(concepts_pb2.PresenceResult(item_id=item_id, error=outcome))
            continue
        message = concepts_pb2.Presence(
            scores=to_message(scores.values[row]),
            regions=to_message(scores.region[row]),
            map=to_message(outcome.result[1]),
        )
        results.append(concepts_pb2.PresenceResult(item_id=item_id, presence=message))
        row += 1
    return results
