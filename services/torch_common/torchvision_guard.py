"""Let torchvision import beside a CPU build of torch.

torchvision's wheel is linked against CUDA: beside CPU torch its compiled extension does not load,
and the first ``import torchvision`` fails with ``operator torchvision::nms does not exist``;
``timm``, ``open_clip`` and ``transformers`` model classes then fail too. Declaring the two
operators that torchvision refers to at import time is enough for transforms, models and Python
fallbacks; ``ops.nms`` itself stays unusable.

Import this module (importing ``services.torch_common`` does) before any of those libraries.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import torch

_SCHEMAS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}

# A Library removes its declarations when it is collected, so it lives as long as the process.
_LIBRARIES: list[torch.library.Library] = []


def _declared(name: str) -> bool:
    """Whether ``torchvision::name`` is known to the dispatcher."""
    return bool(torch._C._dispatch_has_kernel(f"torchvision::{name}")) or hasattr(
        torch.ops.torchvision, name
    )


def _extension_loads() -> bool:
    """Whether torchvision's compiled extension, which declares the operators, loads here."""
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return True  # nothing to repair: the plain import fails for its own reason
    extensions = [p for p in Path(spec.origin).parent.glob("_C*") if p.suffix in {".so", ".pyd"}]
    try:
        for extension in extensions:
            torch.ops.load_library(str(extension))  # type: ignore[no-untyped-call]
    except (OSError, ImportError):
        return False
    return bool(extensions)


def guard_torchvision() -> bool:
    """Declare torchvision's operators where its plain import would fail.

    Returns True when a stub was needed and declared, False when there was nothing to do: torch is a
    CUDA build, torchvision is imported already or absent, or its extension loads. Calling it twice
    is harmless.
    """
    if torch.version.cuda is not None or "torchvision" in sys.modules or _LIBRARIES:
        return False
    if _extension_loads():
        return False
    missing = [schema for name, schema in _SCHEMAS.items() if not _declared(name)]
    if not missing:
        return False
    library = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
    for schema in missing:
        library.define(schema)  # type: ignore[no-untyped-call]
    _LIBRARIES.append(library)
    return True


STUBBED = guard_torchvision()
