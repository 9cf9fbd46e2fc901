"""Conversion in its real child process, on a tiny test network and on the fetched weights."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from services.common.assets import DEFAULT_CACHE
from services.common.catalogue import ImageModel, load_catalogue
from services.common.fetch import FetchError, ensure, is_ready
from services.common.weights import content_digest
from services.torch_common.convert_pth import ConversionError, by_name, by_position, convert
from services.torch_common.golden import GoldenMismatch, check_golden, golden_input, golden_logits
from services.torch_common.timm_models import UnknownArchitecture, build_timm

ARCH = "test_resnet"
CLASSES = 7


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, torch.nn.Module]:
    """A .pth of another port: the same tensors in the same order under other names."""
    torch.manual_seed(0)
    model = build_timm(ARCH, CLASSES)
    path = tmp_path_factory.mktemp("pth") / "model.pth"
    renamed = OrderedDict((f"port.{i}", t) for i, t in enumerate(model.state_dict().values()))
    torch.save(renamed, path)
    return path, model


def test_child_process_converts_by_position(
    checkpoint: tuple[Path, torch.nn.Module], tmp_path: Path
) -> None:
    path, model = checkpoint
    target = tmp_path / "model.safetensors"
    command = [sys.executable, "-m", "services.torch_common.convert_pth", str(path), str(target)]
    command += ["--kind", f"timm:{ARCH}", "--classes", str(CLASSES), "--size", "64"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    report = json.loads(done.stdout)
    assert report["weights_digest"] == content_digest(target)
    assert report["golden"] == pytest.approx(golden_logits(model, 64), abs=1e-4)
    state = load_file(target)
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())


def test_wrong_golden_logits_write_nothing(
    checkpoint: tuple[Path, torch.nn.Module], tmp_path: Path
) -> None:
    target = tmp_path / "model.safetensors"
    with pytest.raises(GoldenMismatch):
        convert(
            checkpoint[0],
            target,
            f"timm:{ARCH}",
            classes=CLASSES,
            size_px=64,
            golden=(1.0,) * CLASSES,
        )
    assert not list(tmp_path.iterdir())


def test_a_pickle_that_runs_code_is_refused(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (Path.touch, (tmp_path / "ran",))  # type: ignore[return-value]

    torch.save({"weight": Evil()}, tmp_path / "evil.pth")
    entry = ImageModel.model_validate(
        {
            "id": "evil",
            "kind": "image-classifier",
            "loader": "timm",
            "licence": "none",
            "architecture": ARCH,
            "source": f"file:{tmp_path}/evil.pth",
            "classes": ["a", "b"],
            "convert": "timm-by-name",
            "input": {"size_px": 64},
        }
    )
    with pytest.raises(FetchError, match="holds more than tensors and was not opened"):
        ensure(entry, tmp_path / "cache")
    assert not (tmp_path / "ran").exists()


def test_users_checkpoint_is_converted_by_name_and_again_when_edited(tmp_path: Path) -> None:
    path = tmp_path / "mine.pth"
    fields = {"id": "mine", "kind": "image-classifier", "loader": "timm", "licence": "mine"}
    fields |= {"architecture": ARCH, "source": f"file:{path}", "convert": "timm-by-name"}
    entry = ImageModel.model_validate(
        {**fields, "classes": ["a", "b", "c"], "input": {"size_px": 64}}
    )
    torch.manual_seed(1)
    torch.save({"state_dict": build_timm(ARCH, 3).state_dict()}, path)
    converted = ensure(entry, tmp_path / "cache")
    assert ensure(entry, tmp_path / "cache") == converted
    assert torch.equal(
        load_file(converted)["fc.bias"],
        torch.load(path, weights_only=True)["state_dict"]["fc.bias"],
    )
    torch.save({"state_dict": build_timm(ARCH, 3).state_dict()}, path)
    assert not is_ready(entry, tmp_path / "cache")


def test_misfits_are_named() -> None:
    wanted = {"a": torch.zeros(2), "b": torch.zeros(3)}
    with pytest.raises(ConversionError, match="1 tensors, the model 2"):
        by_position(wanted, {"x": torch.zeros(2)})
    with pytest.raises(ConversionError, match=r"y \(4,\).*does not fit b \(3,\)"):
        by_position(wanted, {"x": torch.zeros(2), "y": torch.zeros(4)})
    with pytest.raises(ConversionError, match="int64 does not fit b"):
        by_position(wanted, {"x": torch.zeros(2), "y": torch.zeros(3, dtype=torch.int64)})
    with pytest.raises(ConversionError, match="lacks"):
        by_name(wanted, {"a": torch.zeros(2)})
    with pytest.raises(ConversionError, match="unknown"):
        by_name(wanted, wanted | {"c": torch.zeros(1)})


def test_unknown_architecture_and_variant() -> None:
    with pytest.raises(UnknownArchitecture, match="near names.*resnet"):
        build_timm("resnet_51", 10)
    with pytest.raises(ValueError, match="v1-stride"):
        build_timm("resnet50", 10, "v9")


def test_golden_input_is_fixed() -> None:
    image = golden_input(32)
    assert image.shape == (1, 3, 32, 32)
    assert float(image.abs().max()) <= 1.0
    assert torch.equal(image, golden_input(32))


def test_fetched_lite0_is_what_the_catalogue_pins() -> None:
    entry = load_catalogue().image_model("efficientnet-lite0")
    path = ensure(entry, DEFAULT_CACHE.expanduser())
    assert content_digest(path) == entry.weights_digest
    model = build_timm(entry.architecture, 1000)
    model.load_state_dict(load_file(path), strict=True)
    assert entry.input
    check_golden(model, entry.input.size_px, entry.golden)
    with pytest.raises(GoldenMismatch):
        check_golden(model, entry.input.size_px, (0.0,) * 8)
