from __future__ import annotations

import collections
import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from services.common.assets import DEFAULT_CACHE
from services.common.catalogue import Dataset, load_catalogue
from services.common.errors import InvalidInput
from services.common.fetch import ensure
from services.common.images import inspect
from services.gateway.builtin_data import CIFAR10_CLASSES, _split, iter_cifar10, iter_dataset


def test_fruit_is_whole() -> None:
    entry = load_catalogue().get("fruit")
    assert isinstance(entry, Dataset)
    photos = list(iter_dataset(entry, ensure(entry, DEFAULT_CACHE.expanduser())))
    assert collections.Counter(p.split for p in photos) == {"train": 675, "val": 57, "test": 1322}
    coarse = collections.Counter(p.labels["coarse"] for p in photos)
    assert coarse == {"Apple": 852, "Melon": 480, "Pear": 337, "Satsumas": 211, "Orange": 174}
    assert len({p.labels["fine"] for p in photos}) == 14
    assert len({p.name for p in photos}) == len(photos) == 2054
    assert {inspect(p.data).format for p in photos[::200]} == {"JPEG"}


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of CIFAR-10's layout with pixels that say their own row: no download is needed."""
    folder = tmp_path_factory.mktemp("cifar")
    rows = np.arange(10_000)
    pixels = np.zeros((10_000, 1024, 3), dtype=np.uint8)
    pixels[..., 0], pixels[..., 1] = (rows % 256)[:, None], (rows // 256)[:, None]
    pixels[:, 33, 2] = 7  # y = 1, x = 1
    for stem in [*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"]:
        Image.fromarray(pixels).save(folder / f"{stem}.png", compress_level=1)
    (folder / "train_lables.json").write_text(json.dumps([i % 10 for i in range(50_000)]))
    (folder / "test_lables.json").write_text(json.dumps([9 - i % 10 for i in range(10_000)]))
    return folder


def test_cifar10_rows_become_images(package: Path) -> None:
    photos = list(iter_cifar10(package, per_class=30))
    assert len(photos) == 600
    assert [p.split for p in photos] == ["train"] * 300 + ["test"] * 300
    pixels = np.asarray(Image.open(io.BytesIO(photos[299].data)))
    assert pixels.shape == (32, 32, 3)
    assert (pixels[0, 0, 0], pixels[0, 0, 1]) == (299 % 256, 299 // 256)
    assert np.argwhere(pixels[..., 2] == 7).tolist() == [[1, 1]]
    assert photos[3].labels == {"label": "cat"}
    assert photos[303].labels == {"label": CIFAR10_CLASSES[6]}
    assert len({p.name for p in photos}) == 600


def test_wrong_shape_is_refused(package: Path, tmp_path: Path) -> None:
    Image.new("RGB", (32, 32)).save(tmp_path / "data_batch_1.png")
    (tmp_path / "train_lables.json").write_text("[]")
    with pytest.raises(InvalidInput, match="1024 x 10000"):
        next(iter_cifar10(tmp_path))


def test_unknown_split_is_refused() -> None:
    with pytest.raises(InvalidInput, match="split"):
        _split("dev")


def test_folder_script_writes_class_folders(package: Path, tmp_path: Path) -> None:
    script = Path(__file__).parents[2] / "scripts" / "cifar10_folder.py"
    command = [sys.executable, str(script), str(package), str(tmp_path), "--images", "100"]
    subprocess.run(command, check=True, capture_output=True)
    count = {s: len(list((tmp_path / s).glob("*/*.png"))) for s in ("train", "test")}
    assert count == {"train": 80, "test": 20}
    assert sorted(p.name for p in (tmp_path / "train").iterdir()) == sorted(CIFAR10_CLASSES)
