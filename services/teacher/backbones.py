"""Make classifiers from files: a timm architecture with safetensors, or a transformers folder.

Only safetensors are read, strictly: a missing, unknown or misshapen tensor is an error.
"""

from __future__ import annotations

import hashlib
import json
import threading
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from services.common.catalogue import ImageModel
from services.common.errors import InvalidInput
from services.common.weights import WeightsError, content_digest
from services.teacher.models import ImageClassifier, Outputs, identity
from services.torch_common.compute import Compute, size_of
from services.torch_common.fuse import fold_batch_norms
from services.torch_common.golden import golden_input
from services.torch_common.imagenet import imagenet_class_names
from services.torch_common.preprocess import Preprocessing
from services.torch_common.timm_models import UnknownArchitecture, build_timm


class TimmNetwork:
    """timm's common interface: features, pooled vector, classifier."""

    def __init__(self, model: nn.Module, compute: Compute) -> None:
        self._model: Any = compute.place(model)
        self._move = compute.move
        self._run = compute.compiled(self._both)
        self.feature_dim = int(getattr(model, "head_hidden_size", 0) or model.num_features)  # type: ignore[arg-type]
        self.size_bytes = size_of(model)

    def __call__(self, batch: Tensor) -> Outputs:
        x = self._move(batch).contiguous(memory_format=torch.channels_last)
        features, logits = self._run(x)
        return Outputs(logits.float().cpu(), features.float().cpu())

    def _both(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features_map = self._model.forward_features(x)
        features = self._model.forward_head(features_map, pre_logits=True)
        return features, self._model.forward_head(features_map)


class _TransformersNetwork:
    """A transformers classifier; its features are what its last linear layer reads."""

    def __init__(self, model: nn.Module, classes: int, compute: Compute) -> None:
        # Not compiled: the hook that sees the features would be lost.
        self._model = compute.place(model, channels_last=False)
        self._move = compute.move
        self.size_bytes = size_of(model)
        # By thread: parts of one pass run in several at once.
        self._seen = threading.local()
        last = _last_linear(model, classes)
        self.feature_dim = last.in_features
        last.register_forward_pre_hook(self._remember)

    def _remember(self, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self._seen.features = inputs[0]

    def __call__(self, batch: Tensor) -> Outputs:
        logits = self._model(pixel_values=self._move(batch).contiguous()).logits
        features = self._seen.__dict__.pop("features")
        return Outputs(logits.float().cpu(), features.reshape(len(batch), -1).float().cpu())


def _last_linear(model: nn.Module, outputs: int) -> nn.Linear:
    found = [m for m in model.modules() if isinstance(m, nn.Linear) and m.out_features == outputs]
    if not found:
        raise InvalidInput(f"the model has no linear layer with {outputs} outputs", field="model")
    return found[-1]


def _read_state(path: Path) -> tuple[dict[str, Tensor], str]:
    """A safetensors file's tensors and content digest. Raises InvalidInput."""
    try:
        return load_file(path), content_digest(path)
    except (OSError, SafetensorError, WeightsError) as error:
        raise InvalidInput(
            f"{path.name} is not a safetensors file: {error}", field="model"
        ) from error


def _class_names(entry: ImageModel) -> tuple[str, ...]:
    return imagenet_class_names() if entry.classes == "imagenet-1k" else entry.classes


def load_timm(entry: ImageModel, path: Path, compute: Compute) -> ImageClassifier:
    """A timm classifier from a catalogue entry and its safetensors file.

    A backbone without classes gets names ``feature_0`` ... for whatever its last layer gives.
    Raises InvalidInput when the file does not fit the architecture.
    """
    if entry.input is None:
        raise InvalidInput(f"{entry.id} has no input specification", field="model")
    state, weights_digest = _read_state(path)
    classes = _class_names(entry)
    try:
        model = build_timm(entry.architecture, len(classes), entry.variant)
        model.load_state_dict(state, strict=True)
    except (UnknownArchitecture, RuntimeError) as error:
        raise InvalidInput(f"{entry.id}: {str(error)[:600]}", field="model") from error
    preprocessing = compute.reads(Preprocessing.from_spec(entry.input))
    model = fold_batch_norms(model, golden_input(entry.input.size_px))
    network = TimmNetwork(model, compute)
    names = classes or tuple(f"feature_{i}" for i in range(network.feature_dim))
    about = ("timm", entry.architecture, entry.variant, *compute.identity)
    digest = identity(weights_digest, preprocessing, *about)
    return ImageClassifier(entry.id, digest, names, network, preprocessing, compute)


def _weights_files(folder: Path) -> list[Path]:
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise InvalidInput(
            f"{folder.name} holds no .safetensors; save the model with save_pretrained(folder)",
            field="model",
        )
    return files


def _processor(folder: Path) -> Preprocessing:
    """Preprocessing from a transformers ``preprocessor_config.json``. Raises InvalidInput."""
    try:
        raw = json.loads((folder / "preprocessor_config.json").read_text(encoding="utf-8"))
        return preprocessing_of(raw)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InvalidInput(
            f"{folder.name}: preprocessor_config.json is missing or not understood ({error}); "
            "give `input` in the catalogue entry",
            field="model",
        ) from error


_RESAMPLE = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}


def preprocessing_of(config: dict[str, Any]) -> Preprocessing:
    """The preprocessing that a transformers image processor's configuration describes.

    Understood: resize to a shortest edge and centre crop, resize to both edges, and ConvNeXt's
    ``crop_pct``. Raises ValueError, KeyError or TypeError for anything else.
    """
    if abs(config.get("rescale_factor", 1 / 255) * 255 - 1) > 1e-6:
        raise ValueError("rescale_factor is not 1/255")
    mean, std = config["image_mean"], config["image_std"]
    if config.get("do_normalize", True) is False:
        mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    size = config["size"] if isinstance(config["size"], dict) else {"shortest_edge": config["size"]}
    edge, shown, mode = _geometry(config, size)
    return Preprocessing(
        size_px=shown,
        crop_pct=shown / edge,
        interpolation=_RESAMPLE[int(config.get("resample", 2))],
        mean=(float(mean[0]), float(mean[1]), float(mean[2])),
        std=(float(std[0]), float(std[1]), float(std[2])),
        mode=mode,
    )


def _geometry(config: dict[str, Any], size: dict[str, Any]) -> tuple[int, int, str]:
    """(edge resized to, edge seen, mode)."""
    if "height" in size:
        if size["height"] != size["width"]:
            raise ValueError("the input is not square")
        return int(size["height"]), int(size["height"]), "squash"
    edge = int(size["shortest_edge"])
    if "crop_pct" in config and not config.get("do_center_crop"):
        if edge >= 384:
            return edge, edge, "squash"
        return int(edge / config["crop_pct"]), edge, "center"
    crop = config.get("crop_size", edge)
    return edge, int(crop["height"] if isinstance(crop, dict) else crop), "center"


def load_transformers(entry: ImageModel, folder: Path, compute: Compute) -> ImageClassifier:
    """An ``AutoModelForImageClassification`` from a local folder; its code is never run from there.

    Class names are the entry's, else the folder's ``id2label``. Raises InvalidInput.
    """
    from transformers import AutoModelForImageClassification

    files = _weights_files(folder)
    try:
        model = AutoModelForImageClassification.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, trust_remote_code=False
        ).eval()
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise InvalidInput(f"{entry.id}: {str(error)[:600]}", field="model") from error
    labels = model.config.id2label
    classes = _class_names(entry) or tuple(str(labels[i]) for i in range(len(labels)))
    if len(classes) != len(labels) or len(set(classes)) != len(classes):
        raise InvalidInput(
            f"{entry.id}: the model has {len(labels)} classes, "
            f"{len(set(classes))} unique names were given",
            field="classes",
        )
    preprocessing = compute.reads(
        Preprocessing.from_spec(entry.input) if entry.input else _processor(folder)
    )
    contents = [[f.name, _read_digest(f)] for f in files]
    config = hashlib.sha256((folder / "config.json").read_bytes()).hexdigest()
    about = ("transformers", config, *compute.identity)
    digest = identity(json.dumps(contents), preprocessing, *about)
    network = _TransformersNetwork(model, len(classes), compute)
    return ImageClassifier(entry.id, digest, classes, network, preprocessing, compute)


def _read_digest(path: Path) -> str:
    try:
        return content_digest(path)
    except WeightsError as error:
        raise InvalidInput(str(error), field="model") from error


def load_classifier(
    entry: ImageModel, path: Path, compute: Compute | None = None
) -> ImageClassifier:
    """The classifier of a catalogue entry whose files ``services.common.fetch.ensure`` put at
    ``path``.
    """
    load = load_timm if entry.loader == "timm" else load_transformers
    return load(entry, path, compute or Compute())
