"""The network of a classifier recipe: built, given starting weights, ready to be trained."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from stillhouse.student.v1 import student_pb2
from torch import Tensor, nn

from services.common.catalogue import ImageModel, InputSpec, load_catalogue
from services.common.errors import InvalidInput, Precondition
from services.common.fetch import ensure
from services.student.recipes import Training
from services.torch_common.classifiers import (
    build_classifier,
    check_architecture,
    last_layer_names,
)
from services.torch_common.preprocess import Preprocessing

DEFAULT_PX = 64
_TOLERANCE = 1e-4


@dataclass(frozen=True)
class StudentNetwork:
    """A network in training and what it is fed."""

    module: nn.Module
    architecture: str
    variant: str
    input: InputSpec
    licence: str
    """Of the weights it started from."""

    @property
    def preprocessing(self) -> Preprocessing:
        """What turns a photo into its input."""
        return Preprocessing.from_spec(self.input)

    @property
    def parameters(self) -> int:
        """Numbers that training changes."""
        return sum(weight.numel() for weight in self.module.parameters())


class Trained(nn.Module):
    """All that a training changes: the student, and where features are matched the projection of
    its features [d] to the teacher's [D], which is dropped afterwards."""

    def __init__(self, student: StudentNetwork, teacher_features: int = 0) -> None:
        super().__init__()
        self.student = student.module
        self.projection = None
        if teacher_features:
            width = _matched_width(student.module, student.input.size_px)
            self.projection = nn.Linear(width, teacher_features, bias=False)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Logits [B, K], and the features [B, d] where they are matched."""
        if self.projection is None:
            return self.student(images), None
        student = self.student
        features = student.forward_head(student.forward_features(images), pre_logits=True)  # type: ignore[operator]
        return student.get_classifier()(features), features  # type: ignore[operator]


def build_student(
    training: Training, recipe: student_pb2.ClassifierRecipe, classes: tuple[str, ...], seed: int
) -> StudentNetwork:
    """Build a recipe's network; the seed decides its random weights.

    Raises NotFound for unknown weights, InvalidInput for an unknown architecture (with near names)
    or a size it cannot take, Precondition where architecture and weights do not fit.
    """
    entry = None
    if recipe.architecture:
        check_architecture(recipe.architecture)
    if recipe.weights:
        entry = _entry(training, recipe)
    spec = _input(recipe, entry)
    architecture = recipe.architecture or (entry.architecture if entry else "")
    variant = entry.variant if entry else ""
    torch.manual_seed(seed)
    module = build_classifier(architecture, len(classes), spec.size_px, variant)
    if entry is not None:
        _start(training, entry, module, classes)
    licence = entry.licence if entry else ""
    return StudentNetwork(module.train(), architecture, variant, spec, licence)


def _entry(training: Training, recipe: student_pb2.ClassifierRecipe) -> ImageModel:
    around = training.surroundings
    catalogue = load_catalogue([around.catalogue] if around.catalogue else [])
    entry = catalogue.image_model(recipe.weights)
    if entry.loader != "timm":
        raise Precondition(
            f"weights: {entry.id} is no timm model, and a student begins from one",
            differences={"loader": entry.loader},
        )
    if recipe.architecture not in ("", entry.architecture):
        raise Precondition(
            f"weights: {entry.id} is a {entry.architecture}, not a {recipe.architecture}",
            differences={"architecture": f"{entry.architecture} in {entry.id}"},
        )
    return entry


def _input(recipe: student_pb2.ClassifierRecipe, entry: ImageModel | None) -> InputSpec:
    if entry is not None and entry.input is not None:
        return entry.input.model_copy(update={"size_px": recipe.input_size or entry.input.size_px})
    half = (0.5, 0.5, 0.5)
    return InputSpec(size_px=recipe.input_size or DEFAULT_PX, mean=half, std=half)


def _start(
    training: Training, entry: ImageModel, module: nn.Module, classes: tuple[str, ...]
) -> None:
    """Put the entry's weights in; its last layer too where it has the same classes."""
    try:
        state = load_file(ensure(entry, training.surroundings.cache_dir))
    except (OSError, SafetensorError) as error:
        raise InvalidInput(f"weights: {entry.id}: {error}"[:300], field="weights") from error
    last = () if entry.classes == classes else last_layer_names(module)
    own = module.state_dict()
    fitting = {
        name: tensor
        for name, tensor in state.items()
        if name not in last and name in own and own[name].shape == tensor.shape
    }
    missing = sorted(set(own) - set(fitting) - set(last))
    if missing:
        raise Precondition(
            f"weights: {entry.id} does not fit the network at this input_size: "
            f"{', '.join(missing[:3])}",
            differences={"weights": f"{len(missing)} tensors do not fit"},
        )
    module.load_state_dict(own | fitting)


def _matched_width(student: nn.Module, size_px: int) -> int:
    """Length of the vector that the student's last layer reads.

    Raises Precondition where the network does more after it than that one layer.
    """
    was_training = student.training
    student.eval()
    with torch.no_grad():
        images = torch.zeros(1, 3, size_px, size_px)
        try:
            found = student.forward_head(student.forward_features(images), pre_logits=True)  # type: ignore[operator]
            again = student.get_classifier()(found)  # type: ignore[operator]
            same = torch.allclose(again, student(images), atol=_TOLERANCE)
        except (RuntimeError, TypeError, AttributeError, AssertionError):
            same = False
    student.train(was_training)
    if not same or found.ndim != 2:
        raise Precondition(
            "training.feature_weight: this architecture has no one vector before its last layer",
            differences={"features": "none to match"},
        )
    return int(found.shape[1])
