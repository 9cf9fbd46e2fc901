"""Turn a fetched checkpoint into safetensors, once, in a process of its own.

    python -m services.torch_common.convert_pth SRC DST --kind timm:tf_efficientnet_lite0

This is the only place that opens a pickled checkpoint, with ``weights_only=True``. The result holds
exactly the tensors of the architecture's state dict; it is written under another name and renamed
when every shape fitted and, where ``--golden`` is given, the logits were right. Prints one JSON
line: digest and golden logits.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import sys
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from services.common.weights import content_digest
from services.torch_common.convert_keras import resnet50_state
from services.torch_common.golden import check_golden, golden_logits
from services.torch_common.threads import set_threads
from services.torch_common.timm_models import build_timm

_WRAPPERS = ("state_dict", "model", "module")


class ConversionError(ValueError):
    """The checkpoint does not fit the architecture."""


def _load(path: Path) -> dict[str, Tensor]:
    """A checkpoint's tensors in file order, out of the usual wrappers."""
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:  # torch's own message advises to run the file's code
        raise ConversionError(
            f"{path.name} holds more than tensors and was not opened; "
            "save the model's state_dict(), best as safetensors"
        ) from error
    for key in _WRAPPERS:
        if isinstance(loaded, Mapping) and isinstance(loaded.get(key), Mapping):
            loaded = loaded[key]
    if not isinstance(loaded, Mapping) or not all(isinstance(v, Tensor) for v in loaded.values()):
        raise ConversionError("the file is not a flat mapping of names to tensors")
    return {str(name): tensor for name, tensor in loaded.items()}


def by_position(wanted: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename by order, checking shape and dtype pair by pair. Raises ConversionError at the first
    misfit.

    Right for checkpoints of a port that registers the same layers in the same order under other
    names.
    """
    if len(wanted) != len(given):
        raise ConversionError(f"the file has {len(given)} tensors, the model {len(wanted)}")
    renamed: dict[str, Tensor] = {}
    for (name, like), (old, tensor) in zip(wanted.items(), given.items(), strict=True):
        if tensor.shape != like.shape or tensor.dtype != like.dtype:
            raise ConversionError(
                f"{old} {tuple(tensor.shape)} {tensor.dtype} does not fit "
                f"{name} {tuple(like.shape)} {like.dtype}"
            )
        renamed[name] = tensor
    return renamed


def by_name(wanted: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Take the tensors the model names, refusing missing, unknown and misshapen ones."""
    if missing := sorted(set(wanted) - set(given)):
        raise ConversionError(f"the file lacks {missing[:5]} ({len(missing)} in all)")
    if unknown := sorted(set(given) - set(wanted)):
        raise ConversionError(f"the file has unknown tensors {unknown[:5]} ({len(unknown)} in all)")
    return by_position(wanted, {name: given[name] for name in wanted})


def convert(
    source: Path,
    target: Path,
    kind: str,
    *,
    classes: int = 1000,
    variant: str = "",
    size_px: int = 224,
    golden: tuple[float, ...] = (),
) -> dict[str, object]:
    """Convert ``source`` to safetensors at ``target``. Returns digest and golden logits.

    ``kind`` is ``timm:ARCH`` (by position), ``timm-by-name:ARCH`` or ``keras:resnet50`` (a tfjs
    folder). Raises ConversionError or GoldenMismatch; ``target`` then does not exist.
    """
    family, _, architecture = kind.partition(":")
    model = build_timm(architecture, classes, variant)
    wanted = model.state_dict()
    if family == "keras":
        state = by_name(wanted, resnet50_state(source, wanted))
    elif family in {"timm", "timm-by-name"}:
        rename = by_position if family == "timm" else by_name
        state = rename(wanted, _load(source))
    else:
        raise ConversionError(f"unknown kind {kind!r}")
    model.load_state_dict(state, strict=True)
    logits = check_golden(model, size_px, golden) if golden else golden_logits(model, size_px)
    partial = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        save_file({name: tensor.contiguous().clone() for name, tensor in state.items()}, partial)
        partial.chmod(0o644)  # another user's service may share the cache; save_file writes 0600
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)
    return {"weights_digest": content_digest(target), "golden": logits}


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument(
        "--kind", required=True, help="timm:ARCH, timm-by-name:ARCH or keras:resnet50"
    )
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--variant", default="")
    parser.add_argument("--size", type=int, default=224, help="of the golden input, in pixels")
    parser.add_argument("--golden", default="", help="expected logits, separated by commas")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    args = _arguments(argv)
    set_threads(2)
    golden = tuple(float(x) for x in args.golden.split(",") if x)
    try:
        done = convert(
            args.source,
            args.target,
            args.kind,
            classes=args.classes,
            variant=args.variant,
            size_px=args.size,
            golden=golden,
        )
    except Exception as error:  # hostile files raise almost anything; the parent shows one line
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    print(json.dumps(done))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
