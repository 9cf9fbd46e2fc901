"""What a language job's specification must be: names of the project, and settings in range."""

from __future__ import annotations

import math
from collections.abc import Iterable

from google.protobuf.message import Message
from stillhouse.common.v1 import language_pb2
from stillhouse.gateway.v1 import jobs_pb2 as pb

from services.common import names
from services.common.errors import InvalidInput
from services.common.sandbox import Sandbox
from services.common.verifiers import check_verifier
from services.gateway.jobs.checks import owned

MAX_ANSWERS = 64
MAX_TOKENS = 4_096
MAX_STEPS = 1_000_000
MAX_SEQUENCE = 32_768
MAX_STOPS = 8
MAX_DATASETS = 16
FEWEST_BYTES = 4.0
MODES = {
    pb.LANGUAGE_MODE_UNSPECIFIED: "stored_targets",
    pb.LANGUAGE_MODE_STORED_TARGETS: "stored_targets",
    pb.LANGUAGE_MODE_SEQUENCE_LEVEL: "sequence_level",
    pb.LANGUAGE_MODE_ON_POLICY: "on_policy",
    pb.LANGUAGE_MODE_SUPERVISED: "supervised",
}
_Bounds = dict[str, tuple[float, float]]
_TRAINING: _Bounds = {
    "max_steps": (0, MAX_STEPS),
    "epochs": (0, 1_000),
    "batch_sequences": (0, 4_096),
    "learning_rate": (0, 1),
    "warmup_share": (0, 1),
    "weight_decay": (0, 10),
    "checkpoint_steps": (0, MAX_STEPS),
    "patience": (0, MAX_STEPS),
    "temperature": (0, 100),
    "cross_entropy_weight": (0, 1),
    "beta": (0, 1),
    "skew": (0, 1),
    "sequence_length": (0, MAX_SEQUENCE),
    "replay_share": (0, 0.99),
    "intermediate_states": (0, 1_024),
}
_LORA: _Bounds = {"rank": (0, 1_024), "alpha": (0, 1e6), "dropout": (0, 0.9)}
_SAMPLING: _Bounds = {"temperature": (0, 10), "top_p": (0, 1), "max_tokens": (0, MAX_TOKENS)}


def check_language_spec(
    project: str, spec: pb.LanguageJobSpec, *, sandbox: Sandbox | None = None
) -> None:
    """Raise InvalidInput for what is malformed or reaches into another project."""
    owned(project, spec.dataset, "datasets", "dataset")
    owned(project, spec.student, "models", "student")
    if spec.mode not in MODES:
        raise InvalidInput("mode: is none of LanguageMode", field="mode")
    supervised = spec.mode == pb.LANGUAGE_MODE_SUPERVISED
    if not supervised or spec.teacher:
        if not spec.teacher:
            raise InvalidInput(
                "teacher: is required for every mode but LANGUAGE_MODE_SUPERVISED", field="teacher"
            )
        owned(project, spec.teacher, "models", "teacher")
    check_datasets(project, spec.evaluation_datasets, spec.replay_dataset)
    check_layers(spec.keep_layers)
    check_training(spec.training, uld=MODES[spec.mode] == "stored_targets")
    check_sampling(spec.sampling)
    check_bounds(
        spec,
        {"answers_per_prompt": (0, MAX_ANSWERS), "bytes_per_token": (0, 1e6)},
    )
    if 0 < spec.bytes_per_token < FEWEST_BYTES:
        raise InvalidInput(
            f"bytes_per_token: at least {FEWEST_BYTES:.0f}, for one id and its share of the rest",
            field="bytes_per_token",
        )
    if spec.HasField("verifier"):
        check_verifier(spec.verifier, sandbox=sandbox)
    check_model_id(model_id_of(spec), spec.student, spec.teacher)


def model_id_of(spec: pb.LanguageJobSpec) -> str:
    """Return the last part of the new model's name."""
    return spec.model_id or f"{names.parse(spec.dataset, 'datasets')[1][:55]}-student"


def check_model_id(model_id: str, *others: str) -> None:
    """Raise InvalidInput where the new model would replace one that it is made from."""
    names.check_id(model_id, field="model_id")
    if any(name.rsplit("/", 1)[-1] == model_id for name in others if name):
        raise InvalidInput(
            f"model_id: {model_id} would replace a model that this job works with; take another",
            field="model_id",
        )


def check_datasets(project: str, evaluation: Iterable[str], replay: str) -> None:
    """Raise InvalidInput for names that are none of the project's datasets."""
    found = list(evaluation)
    if len(found) > MAX_DATASETS or len(set(found)) != len(found):
        raise InvalidInput(
            f"evaluation_datasets: at most {MAX_DATASETS}, each once", field="evaluation_datasets"
        )
    for name in found:
        owned(project, name, "datasets", "evaluation_datasets")
    if replay:
        owned(project, replay, "datasets", "replay_dataset")


def is_uld(training: language_pb2.LanguageTraining) -> bool:
    """Whether the teacher may have another tokenizer than the student."""
    return training.loss == language_pb2.LANGUAGE_LOSS_ULD


def check_training(
    training: language_pb2.LanguageTraining, *, uld: bool = False, cut: bool = False
) -> None:
    """Raise InvalidInput for a setting that is out of range; `uld` allows LANGUAGE_LOSS_ULD, `cut`
    says that a model is pruned, whose states can be compared with what they were."""
    check_bounds(training, _TRAINING, "training.")
    if training.HasField("lora"):
        check_bounds(training.lora, _LORA, "training.lora.")
    if training.precision not in ("", "float32", "bfloat16"):
        raise InvalidInput(
            "training.precision: float32, bfloat16 or empty", field="training.precision"
        )
    if training.loss not in language_pb2.LanguageLoss.values():
        raise InvalidInput("training.loss: is none of LanguageLoss", field="training.loss")
    if training.intermediate_states and not cut:
        raise InvalidInput(
            "training.intermediate_states: these are the states of a model before it was pruned, "
            "so it is for prune jobs alone; leave it out",
            field="training.intermediate_states",
        )
    if is_uld(training) and not uld:
        raise InvalidInput(
            "training.loss: ULD compares with stored targets, so it is for language jobs of "
            "LANGUAGE_MODE_STORED_TARGETS alone; take another loss",
            field="training.loss",
        )


def check_sampling(sampling: language_pb2.Sampling) -> None:
    """Raise InvalidInput for a setting that is out of range."""
    check_bounds(sampling, _SAMPLING, "sampling.")
    if len(sampling.stop) > MAX_STOPS or not all(0 < len(s) <= 100 for s in sampling.stop):
        raise InvalidInput(
            f"sampling.stop: at most {MAX_STOPS} texts of 1 to 100 characters",
            field="sampling.stop",
        )


def check_layers(layers: Iterable[int]) -> None:
    """Raise InvalidInput unless the layers rise from 0 on."""
    found = list(layers)
    if found != sorted(set(found)) or any(not 0 <= one < 10_000 for one in found):
        raise InvalidInput("keep_layers: numbers from 0 on, rising", field="keep_layers")


def as_seed(number: int) -> int:
    """Return a sum of seeds as messages hold them, in 64 bits with a sign; beyond these it begins
    again."""
    return (number + (1 << 63)) % (1 << 64) - (1 << 63)


def check_bounds(message: Message, bounds: _Bounds, where: str = "") -> None:
    """Raise InvalidInput for a number that is not finite or not within its bounds."""
    for name, (low, high) in bounds.items():
        value = float(getattr(message, name))
        if not (math.isfinite(value) and low <= value <= high):
            raise InvalidInput(
                f"{where}{name}: {value:g} is not between {low:g} and {high:g}",
                field=f"{where}{name}",
            )
