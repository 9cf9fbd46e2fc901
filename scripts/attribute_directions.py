"""Compute the attribute directions of a trunk from rendered scenes and write them beside the
service.

    python scripts/attribute_directions.py tf_efficientnet_lite2 path/to/weights.safetensors [--size
    260]

Takes about a minute on two cores. Run it again after a change to attributes.toml or scenes.py.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import services.torch_common  # noqa: F401  # before timm: makes torchvision importable

# isort: split
import numpy as np
import timm
import torch
from safetensors.torch import load_file

from services.common.weights import content_digest
from services.concepts import attributes
from services.torch_common.preprocess import Preprocessing

_BATCH = 25


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("architecture")
    parser.add_argument("weights", type=Path)
    parser.add_argument("--size", type=int, default=260)
    options = parser.parse_args()
    trunk = timm.create_model(options.architecture)
    trunk.load_state_dict(load_file(options.weights))
    trunk.eval()
    preprocessing = Preprocessing(options.size)
    features, labels, batch = [], [], []
    for image, label in attributes.scenes():
        labels.append(label)
        batch.append(preprocessing(image))
        if len(batch) == _BATCH:
            features.append(_pooled(trunk, batch))
            batch = []
    if batch:
        features.append(_pooled(trunk, batch))
    found = attributes.directions(np.concatenate(features), labels)
    folder = Path(attributes.__file__).with_name("attribute_directions")
    folder.mkdir(exist_ok=True)
    path = folder / f"{options.architecture}.safetensors"
    path.write_bytes(attributes.pack(found, content_digest(options.weights)))
    print(f"{path.name}: {len(found.vectors)} directions, {path.stat().st_size:,} bytes")


@torch.inference_mode()
def _pooled(trunk: torch.nn.Module, batch: list[torch.Tensor]) -> np.ndarray:
    cells = trunk.forward_features(torch.stack(batch))
    return cells.mean(dim=(2, 3)).numpy()


if __name__ == "__main__":
    main()
