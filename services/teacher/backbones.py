"""Make classifiers from files: a timm architecture with safetensors, or a transformers folder.

Only safetensors are read, strictly: a missing, unknown or misshapen tensor is an error.
"""

from __future__ import annotations

import hashlib
import json
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
from services.torch_common.fuse import fold_batch_norms
from services.torch_common.golden import golden_input
from services.torch_common.imagenet import imagenet_class_names
from services.torch_common.preprocess import Preprocessing
from services.torch_common.timm_models import UnknownArchitecture, build_timm


class TimmNetwork:
    """timm's common interface: features, pooled vector, classifier."""

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        # Measured for EfficientNet-lite0 on a CPU: 1.5 times the speed of the default layout.
        self._model = model.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._device = device
        self.feature_dim = int(getattr(model, "head_hidden_size", 0) or model.num_features)  # type: ignore[arg-type]

    def __call__(self, batch: Tensor) -> Outputs:
        x = batch.to(self._device).contiguous(memory_format=torch.channels_last)
        features_map = self._model.forward_features(x)  # type: ignore[operator]
        features = self._model.forward_head(features_map, pre_logits=True)  # type: ignore[operator]
        logits = self._model.forward_head(features_map)  # type: ignore[operator]
        return Outputs(logits.float().cpu(), features.float().cpu())


class _TransformersNetwork:
    """A transformers classifier; its features are what its last linear layer reads."""

    def __init__(self, model: nn.Module, classes: int, device: torch.device) -> None:
        self._model = model.to(device)
        self._device = device
        self._seen: list[Tensor] = []
        last = _last_linear(model, classes)
        self.feature_dim = last.in_features
        last.register_forward_pre_hook(self._remember)

    def _remember(self, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self._seen.append(inputs[0])

    def __call__(self, batch: Tensor) -> Outputs:
        self._seen.clear()
        logits = self._model(pixel_values=batch.to(self._device)).logits
        features = self._seen.pop()
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


def load_timm(entry: ImageModel, path: Path, device: str = "cpu") -> ImageClassifier:
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
    preprocessing = Preprocessing.from_spec(entry.input)
    model = fold_batch_norms(model, golden_input(entry.input.size_px))
    network = TimmNetwork(model, torch.device(device))
    names = classes or tuple(f"feature_{i}" for i in range(network.feature_dim))
    digest = identity(weights_digest, preprocessing, "timm", entry.architecture, entry.variant)
    return ImageClassifier(entry.id, digest, names, network, preprocessing)


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


def load_transformers(entry: ImageModel, folder: Path, device: str = "cpu") -> ImageClassifier:
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
    preprocessing = Preprocessing.from_spec(entry.input) if entry.input else _processor(folder)
    contents = [[f.name, _read_digest(f)] for f in files]
    config = hashlib.sha256((folder / "config.json").read_bytes()).hexdigest()
    digest = identity(json.dumps(contents), preprocessing, "transformers", config)
    network = _TransformersNetwork(model, len(classes), torch.device(device))
    return ImageClassifier(entry.id, digest, classes, network, preprocessing)


def _read_digest(path: Path) -> str:
    try:
        return content_digest(path)
    except WeightsError as error:
        raise InvalidInput(str(error), field="model") from error


def load_classifier(entry: ImageModel, path: Path, device: str = "cpu") -> ImageClassifier:
    """The classifier of a catalogue entry whose files ``services.common.fetch.ensure`` put at
    ``path``.
    """
    load = load_timm if entry.loader == "timm" else load_transformers
    return load(entry, path, device)
