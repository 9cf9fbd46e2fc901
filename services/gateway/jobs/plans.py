"""What the check of a job settles, as JSON: it is recorded, and every later stage goes by it."""

from __future__ import annotations

from typing import TypedDict


class DatasetPlan(TypedDict):
    """The dataset as it is: immutable once it is READY."""

    name: str
    manifest: str
    """Digest of the manifest."""
    items: int


class TeacherPlan(TypedDict):
    """The teacher, or the backbone of one."""

    name: str
    digest: str
    classes: list[str]
    """The dataset's classes, in its order; empty for a backbone."""
    columns: list[int]
    """Logit of each of these classes in the teacher's order."""


class EncoderPlan(TypedDict):
    """The encoder and everything its region embeddings depend on."""

    name: str
    digest: str
    preprocessing_digest: str
    region_digest: str
    dim: int


class ConceptPlan(TypedDict):
    """A concept job after its check."""

    dataset: DatasetPlan
    teacher: TeacherPlan
    encoder: EncoderPlan
    multi_label: bool


class Words(TypedDict):
    """The concepts after the filters."""

    words: list[str]
    embeddings: str
    """Blob: `text` [words, D] float16, `text_mean` [D], `image_mean` [D] float32."""
    control: str
    """Blob: `text` [words, D] float16 of the random-words control."""


class Trained(TypedDict):
    """Digests of what a training run made, by name."""

    blobs: dict[str, str]
