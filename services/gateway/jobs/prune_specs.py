"""What a prune job's specification must be, and what its empty fields stand for."""

from __future__ import annotations

from stillhouse.common.v1 import language_pb2
from stillhouse.gateway.v1 import jobs_pb2 as pb

from services.common.errors import InvalidInput
from services.common.sandbox import Sandbox
from services.common.verifiers import check_verifier
from services.gateway.jobs.checks import owned
from services.gateway.jobs.language_specs import (
    FEWEST_BYTES,
    MAX_STEPS,
    check_bounds,
    check_datasets,
    check_model_id,
    check_sampling,
    check_training,
)

OWN_ARM = "prune"
CONTROLS = ("no_distillation", "random_cut", "random_weights")
"""The same cut trained by cross-entropy alone; a cut by chance; the shape without any weights."""
ONE_ROUND = "one_round"
"""The control of several rounds: the whole model cut to the last shape at once."""
DEFAULT_CALIBRATION = 1024
MAX_CANDIDATES = 32
MAX_ROUNDS = 16
CORRECTION_RATE_SHARE = 0.2
"""Learning rate of a teacher's correction, of the cut's: nothing has to be repaired in it."""
_DEFAULT_RATE = 1e-4
BYTES = {"": 4, "float32": 4, "bfloat16": 2}
"""Bytes of a parameter, by precision."""
KINDS = {
    pb.PRUNE_AXES_UNSPECIFIED: ("width", "depth", "mixed"),
    pb.PRUNE_AXES_WIDTH: ("width",),
    pb.PRUNE_AXES_DEPTH: ("depth",),
    pb.PRUNE_AXES_BOTH: ("width", "depth", "mixed"),
}
"""Kinds of candidates, by what may be cut."""
_BOUNDS: dict[str, tuple[float, float]] = {
    "bytes_per_token": (0, 1e6),
    "calibration_sequences": (0, 65_536),
    "candidates": (0, MAX_CANDIDATES),
    "ranking_steps": (0, MAX_STEPS),
    "training_seeds": (0, 32),
    "rounds": (0, MAX_ROUNDS),
}


def check_prune_spec(
    project: str, spec: pb.PruneJobSpec, *, sandbox: Sandbox | None = None
) -> None:
    """Raise InvalidInput for what is malformed or reaches into another project."""
    owned(project, spec.dataset, "datasets", "dataset")
    owned(project, spec.model, "models", "model")
    check_datasets(project, spec.evaluation_datasets, "")
    _check_size(spec)
    if spec.axes not in KINDS:
        raise InvalidInput("axes: is none of PruneAxes", field="axes")
    check_bounds(spec, _BOUNDS)
    if spec.calibration_sequences == 1:
        raise InvalidInput(
            "calibration_sequences: importance is a norm over sequences, so at least 2 are needed",
            field="calibration_sequences",
        )
    if 0 < spec.bytes_per_token < FEWEST_BYTES:
        raise InvalidInput(
            f"bytes_per_token: at least {FEWEST_BYTES:.0f}, for one id and its share of the rest",
            field="bytes_per_token",
        )
    _check_training(spec)
    _check_rounds(spec)
    check_sampling(spec.sampling)
    if spec.HasField("verifier"):
        check_verifier(spec.verifier, sandbox=sandbox)
    for model_id in models_of(spec):
        check_model_id(model_id, spec.model)


def model_id_of(spec: pb.PruneJobSpec) -> str:
    """Return the last part of the new model's name."""
    return spec.model_id or f"{spec.model.rsplit('/', 1)[-1][:56]}-pruned"


def teacher_id_of(spec: pb.PruneJobSpec) -> str:
    """Return the last part of the corrected teacher's name."""
    return f"{model_id_of(spec)}-teacher"


def models_of(spec: pb.PruneJobSpec) -> list[str]:
    """Return the last parts of the names of all models that the job makes."""
    return [model_id_of(spec), *([teacher_id_of(spec)] if spec.correct_teacher else [])]


def arms_of(spec: pb.PruneJobSpec) -> list[str]:
    """Return the arms to train, the job's own first."""
    return [OWN_ARM, *(controls_of(spec) if spec.controls else ())]


def controls_of(spec: pb.PruneJobSpec) -> list[str]:
    """Return the controls that a job of its number of rounds can have."""
    return [*([ONE_ROUND] if rounds_of(spec) > 1 else []), *CONTROLS]


def rounds_of(spec: pb.PruneJobSpec) -> int:
    """Return the rounds of pruning and training."""
    return spec.rounds or 1


def runs_of(spec: pb.PruneJobSpec) -> list[tuple[str, int]]:
    """Return the (arm, seed) of every training run, seeds counted from 0, the job's own first."""
    seeds = range(spec.training_seeds or 1)
    return [(arm, seed) for arm in arms_of(spec) for seed in seeds]


def size_of(spec: pb.PruneJobSpec) -> tuple[str, float]:
    """Return the field that says how large the new model may be, and its value."""
    field = spec.WhichOneof("size") or ""
    return field, getattr(spec, field) if field else 0.0


def parameters_of(spec: pb.PruneJobSpec) -> float | None:
    """Return the parameters that the new model may have at most; None where the size is none of
    all parameters."""
    field, value = size_of(spec)
    if field == "max_bytes":
        return value / BYTES[spec.training.precision]
    return value if field == "max_parameters" else None


def ranking_steps_of(spec: pb.PruneJobSpec, steps: int) -> int:
    """Return the optimizer steps of a candidate's training, `steps` being those of the whole."""
    return spec.ranking_steps or max(1, steps // 10)


def correction_of(spec: pb.PruneJobSpec) -> language_pb2.LanguageTraining:
    """Return how the whole model is trained before it is cut: as lightly as the contract says."""
    training = language_pb2.LanguageTraining()
    training.CopyFrom(spec.training)
    training.loss = language_pb2.LANGUAGE_LOSS_CROSS_ENTROPY
    training.patience = training.intermediate_states = 0
    training.learning_rate = CORRECTION_RATE_SHARE * (training.learning_rate or _DEFAULT_RATE)
    if not training.max_steps:
        training.epochs = min(training.epochs or 1, 1)
    return training


def _check_size(spec: pb.PruneJobSpec) -> None:
    field, value = size_of(spec)
    if not field:
        raise InvalidInput(
            "size: one of non_embedding_share, max_parameters, max_bytes, max_latency_ms is "
            "required",
            field="size",
        )
    most = 1.0 if field == "non_embedding_share" else float("inf")
    if not 0 < value < most:
        raise InvalidInput(f"{field}: {value:g} is not between 0 and {most:g}", field=field)


def _check_rounds(spec: pb.PruneJobSpec) -> None:
    rounds = rounds_of(spec)
    if rounds > 1 and size_of(spec)[0] == "max_latency_ms":
        raise InvalidInput(
            "rounds: a time has no even steps; give another size, or 1 round", field="rounds"
        )
    if rounds > 1 and spec.training.intermediate_states:
        raise InvalidInput(
            "training.intermediate_states: of a later round the model as it was is a cut itself; "
            "leave it out, or take 1 round",
            field="training.intermediate_states",
        )
    if 0 < spec.training.max_steps < rounds:
        raise InvalidInput(
            f"rounds: {rounds} rounds share {spec.training.max_steps} steps; give each at least 1",
            field="rounds",
        )


def _check_training(spec: pb.PruneJobSpec) -> None:
    """Refuse before the targets are stored what training would refuse after them."""
    check_training(spec.training, cut=True)
    if spec.training.loss == language_pb2.LANGUAGE_LOSS_CROSS_ENTROPY:
        raise InvalidInput(
            "training.loss: a cut learns from the model as it was; cross-entropy alone is a "
            "control, which `controls` trains",
            field="training.loss",
        )
    if spec.training.HasField("lora") and (spec.controls or spec.correct_teacher):
        raise InvalidInput(
            "training.lora: random weights have nothing to adapt, and a corrected teacher must "
            "stay whole; leave out `lora`, or `controls` and `correct_teacher`",
            field="training.lora",
        )
