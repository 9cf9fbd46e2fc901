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


class ClassifierPlan(TypedDict):
    """A classifier job after its check."""

    dataset: DatasetPlan
    teacher: TeacherPlan
    feature_dim: int
    """Of the teacher's features that are matched; 0 where none are."""


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


class ModelPlan(TypedDict):
    """A language model as the teacher service describes it; an empty name stands for none."""

    name: str
    digest: str
    precision: str
    tokenizer_digest: str
    vocab_size: int
    context_length: int
    layer_count: int
    has_chat_template: bool
    parameter_count: int
    """0 where it is not known."""
    base: str
    """Last part of the name of the model under an adapter; empty for a whole model."""


class TextInputs(TypedDict):
    """The text datasets of a job, all READY."""

    dataset: DatasetPlan | None
    """What is trained on; None for a job that makes its own."""
    evaluation: list[DatasetPlan]
    replay: DatasetPlan | None
    off_domain: DatasetPlan | None


class LanguagePlan(TypedDict):
    """A language job after its check."""

    inputs: TextInputs
    mode: str
    """`stored_targets`, `sequence_level`, `on_policy` or `supervised`."""
    teacher: ModelPlan
    student: ModelPlan
    sequence_length: int
    same_tokens: bool
    """Teacher and student have the same tokenizer and vocabulary."""


class Targets(TypedDict):
    """Stored targets: shards in the order of the records' shards, and what they hold."""

    shards: list[str]
    sequences: int
    tokens: int
    stored_bytes: float
    draws: float
    """Draws (or ids) of all target tokens together."""
    skipped: list[str]
    """Records that became no sequence and why, the first 20."""


class LanguageData(TypedDict):
    """What a language job trains and measures on: digests of shards."""

    texts: list[str]
    targets: Targets | None
    held_out: Targets | None
    notes: dict[str, int]
    """Counts for the report, such as answers that were dropped, by reason."""


class TuneShiftPlan(TypedDict):
    """A tuneshift job after its check."""

    inputs: TextInputs
    base: ModelPlan
    tuned: ModelPlan
    target: ModelPlan
    generator: ModelPlan
    style: ModelPlan
    sequence_length: int


class PrunePlan(TypedDict):
    """A prune job after its check."""

    inputs: TextInputs
    model: ModelPlan
    """What is cut; as it is, it is the teacher."""
    sequence_length: int
    correction: str
    """Digest of the report of the teacher's correction; empty where there was none."""


class PruneCandidate(TypedDict):
    """A shape within the budget, as the importance recipe reports it."""

    kind: str
    """`width`, `depth` or `mixed`."""
    shape: dict[str, int | bool]
    """Sizes, and what they come to: `parameters`, `non_embedding_parameters`."""
    kept_layers: list[int]
    """Of the whole model's."""
    prior_cost: float
    """A guess before any training: lower is likelier to lose less."""
    non_embedding_share: float
    """Of the whole model's."""
    rounds: list[float]
    """Shares to reach it by in several rounds of pruning, where one would be a large cut."""
    latency_ms: float | None
    """What was measured, where the size is one of time."""


class PruneCuts(TypedDict):
    """What importance was measured and what it leaves to choose from, the likeliest first."""

    model: str
    """What is cut: digest of the record of an earlier round's model; empty for the whole model."""
    importance: str
    """Blob: scores of all parts; empty where the model is small enough and nothing is cut."""
    report: str
    """Blob: the importance recipe's JSON report, of this round or the last that had one."""
    whole_parameters: int
    """Parameters outside the embeddings of the whole model, of which shares are told."""
    candidates: list[PruneCandidate]
    """Of the axes that may be cut."""


class RankedCut(TypedDict):
    """A candidate after its short training."""

    number: int
    """Its place among the candidates, from 0."""
    cross_entropy: float
    """Held-out, in nats per token."""
    report: str


class PruneChoice(TypedDict):
    """Which candidate is taken, and what decided."""

    number: int
    ranked: list[RankedCut]


class PruneRound(TypedDict):
    """A round of pruning and training before the last."""

    cuts: PruneCuts
    choice: PruneChoice
    report: str
    """Of its training."""
    model: str
    """Digest of the record of what it made."""
