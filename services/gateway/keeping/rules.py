"""Which fields name blobs: the one table that reachability rests on.

A digest anywhere in what is kept keeps its blob, whether or not a rule knows the field: that is
what the garbage collection goes by. The rules say more: which blobs must be there, and which of
them can be computed again. `LOOSE` fields are known to name blobs that nobody reads any more.
Tests fail where a table, a column, a folder of refs or a field appears that is not here.
"""

from __future__ import annotations

from enum import IntEnum


class Need(IntEnum):
    """How much a blob is needed where it is named."""

    LOOSE = 0
    """Kept while it is there; not missed."""
    DERIVED = 1
    """Needed, and computed again by whoever needs it, or by the same job."""
    TRUTH = 2
    """Needed, and nothing here can make it again."""


Rules = dict[str, Need]
"""Need by the path of a field, `data.manifest`; a path covers all below it."""

TABLES: dict[str, tuple[str, ...]] = {
    "datasets": ("source_json", "manifest_digest", "result_json"),
    "students": (),
    "student_versions": (
        "weights_digest",
        "card_digest",
        "report_digest",
        "effects_json",
        "changes_json",
    ),
    "student_events": ("effects_json", "changes_json"),
    "jobs": ("spec_json", "result_json", "error"),
    "job_events": (),
    "job_reviews": (),
    "request_ids": (),
    "gateways": (),
    "projects": (),
    "project_deletions": (),
    "webhook_deliveries": (),
    "api_keys": (),
    "access_sessions": (),
    "audit_entries": (),
    "quotas": (),
    "gateway_secrets": (),
}
"""The columns, by table, in which digests of blobs can stand."""

OTHER_COLUMNS: dict[str, str] = {
    "job_events.payload_json": "states, messages and curves for people",
    "request_ids.body_digest": "digest of a request, which is no blob",
    "request_ids.response": "an answer; what it names has a row of its own",
    "students.classes_json": "names of classes",
    "api_keys.digest": "digest of a key, which is no blob",
    "api_keys.creator": "who made it",
    "access_sessions.digest": "digest of a session's secret, which is no blob",
    "access_sessions.subject": "whose it is",
    "access_sessions.display_name": "whose it is",
    "access_sessions.grants_json": "roles",
    "audit_entries.subject": "who did it",
    "audit_entries.display_name": "who did it",
    "audit_entries.resource": "the name of a resource",
    "audit_entries.message": "what was said of a refusal",
    "audit_entries.peer": "an address",
    "gateway_secrets.value": "a secret",
    "projects.retention_json": "days",
    "projects.webhooks_json": "addresses and secrets",
    "project_deletions.before_json": "counts",
    "project_deletions.after_json": "counts",
    "project_deletions.waiting_for": "what was said of a service that is away",
    "webhook_deliveries.uri": "an address",
    "webhook_deliveries.body": "tells of a job; what it names has a row of its own",
    "webhook_deliveries.error": "what was said of an attempt",
}
"""Further columns of text or bytes, and why none of them keeps a blob."""

REFS: dict[str, Rules] = {
    "models": {
        "files": Need.TRUTH,
        "weights": Need.TRUTH,
        "head": Need.TRUTH,
        "base": Need.TRUTH,
        "card": Need.LOOSE,
        "dataset_manifest": Need.LOOSE,
    },
    "concept-sets": {"words": Need.TRUTH},
    "stages": {"": Need.DERIVED, "invalid": Need.LOOSE},
}
"""What the refs of each folder name. A ref that is a bare digest has the path ''."""

MANIFEST: Rules = {"items.digest": Need.TRUTH, "shards.digest": Need.TRUTH}
CARD: Rules = {
    "weights": Need.TRUTH,
    "data.manifest": Need.TRUTH,
    "data.teacher_shards": Need.DERIVED,
    "data.region_shards": Need.DERIVED,
    "concept_embeddings": Need.DERIVED,
    "fold_fits": Need.DERIVED,
    "parent": Need.LOOSE,
    "parent_card": Need.LOOSE,
}
"""Of a concept student. Versions have rows, which keep a parent that is one."""
RESULT: Rules = {"report": Need.TRUTH, "rounds": Need.TRUTH, "model": Need.LOOSE}
"""Of a job."""
VALUE: Rules = {"value.digest": Need.DERIVED, "value.digests": Need.DERIVED}
"""Of a blob that keeps a stage's result."""
STEP_FIELDS = frozenset(
    {"blobs", "card", "control", "digests", "embeddings", "head", "held_out", "importance"}
    | {"manifest", "onnx", "predictions", "report", "rounds", "shards", "texts", "weights"}
)
"""Of the recorded results of an unfinished job's stages; other fields hold digests of models."""

LOOSE: tuple[str, ...] = (
    "archive",
    "base",
    "calibration.text_shards",
    "card",
    "concept_embeddings",
    "cut",
    "data",
    "files",
    "fold_fits",
    "items",
    "settings",
    "shards",
    "student",
    "parent",
    "parent_card",
    "provenance",
    "invalid",
    "backbone_digest",
    "weights",
)
"""Fields of reports, models' cards and records of models that tell what something was made of."""


def need_of(rules: Rules, path: tuple[str, ...]) -> Need | None:
    """Return what the longest rule that covers a path says; None where no rule does."""
    for length in range(len(path), -1, -1):
        found = rules.get(".".join(path[:length]))
        if found is not None:
            return found
    return None


def need_of_step(path: tuple[str, ...]) -> Need:
    """Return how much a blob is needed that a recorded result names."""
    return Need.DERIVED if STEP_FIELDS & set(path) else Need.LOOSE


def is_loose(path: tuple[str, ...]) -> bool:
    """Return whether a field is known to tell no more than where something came from."""
    return any(".".join(path[:length]) in LOOSE for length in range(1, len(path) + 1))
