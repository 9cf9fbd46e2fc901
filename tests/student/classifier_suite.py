"""Small coloured photos of three classes, a teacher's outputs for views of them, and recipes."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from stillhouse.common.v1 import items_pb2
from stillhouse.student.v1 import student_pb2

from services.common.augmentation import Augmentation
from services.common.blobs import BlobStore
from services.common.manifest import Item, Manifest
from services.common.shards import pack_rows
from services.common.view_shards import ViewRow, pack_views

PROJECT = "default"
CLASSES = ("red", "green", "blue")
VIEWS = Augmentation("flip_crop", views=3, seed=4)
SIZE_PX = 16


@dataclass
class Data:
    """References to what `make_data` wrote, and the arrays themselves."""

    manifest: str
    teacher: list[str]
    views: list[str]
    items: tuple[Item, ...]
    hot: np.ndarray
    logits: np.ndarray

    def rows(self, split: str) -> np.ndarray:
        return np.array([n for n, item in enumerate(self.items) if item.split == split])


def picture(hot: np.ndarray, seed: int) -> bytes:
    """A noisy 24 x 20 photo; each class makes a band of the image brighter in its own colour."""
    rng = np.random.default_rng(seed)
    pixels = rng.normal(110, 40, (20, 24, 3))
    for k in np.flatnonzero(hot):
        pixels[..., k] += 70
    buffer = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def make_data(
    blobs: BlobStore,
    *,
    items: int = 60,
    multi_label: bool = False,
    views: Augmentation = VIEWS,
    unreadable: int | None = None,
    features: int = 0,
    only_train: bool = False,
) -> Data:
    """Of five items three train, one val, one test. The teacher is fairly sure of the labels.

    With `only_train` the view shards hold no other items.
    """
    rng = np.random.default_rng(1)
    hot = np.eye(3, dtype=bool)[np.arange(items) % 3]
    if multi_label:
        hot |= rng.random(hot.shape) < 0.3
    logits = (np.where(hot, 3.0, -3.0) + rng.normal(size=hot.shape)).astype(np.float32)
    split = ("train", "train", "train", "val", "test")
    made = []
    for n in range(items):
        data = b"no image" if n == unreadable else picture(hot[n], n)
        labels = tuple(int(k) for k in np.flatnonzero(hot[n]))
        made.append(Item(f"{n}.png", blobs.put(PROJECT, data), split[n % 5], labels))
    rows = [
        None
        if n == unreadable
        else ViewRow(
            logits[n] + 0.1 * rng.normal(size=(views.views, 3)).astype(np.float32),
            rng.normal(size=(views.views, features)).astype(np.float16) if features else None,
        )
        for n in range(items)
    ]
    plain = [None if n == unreadable else logits[n] for n in range(items)]
    seen = [n for n in range(items) if made[n].split == "train" or not only_train]
    shards = [seen[at : at + 32] for at in range(0, len(seen), 32)]
    return Data(
        manifest=blobs.put(PROJECT, Manifest(CLASSES, multi_label, tuple(made)).to_bytes()),
        teacher=[blobs.put(PROJECT, pack_rows("logits", plain))],
        views=[
            blobs.put(
                PROJECT, pack_views([made[n].digest for n in some], [rows[n] for n in some], views)
            )
            for some in shards
        ],
        items=tuple(made),
        hot=hot,
        logits=logits,
    )


def training(**options) -> student_pb2.ClassifierTraining:
    return student_pb2.ClassifierTraining(
        **{"max_steps": 12, "batch_images": 8, "learning_rate": 0.02, "seed": 3, **options}
    )


def recipe(data: Data, **options) -> student_pb2.ClassifierRecipe:
    given = student_pb2.TrainingData(
        manifest=ref(data.manifest), teacher_shards=[ref(d) for d in data.teacher]
    )
    return student_pb2.ClassifierRecipe(
        **{
            "data": given,
            "view_shards": [ref(d) for d in data.views],
            "augmentation": message(VIEWS),
            "architecture": "small-cnn",
            "input_size": SIZE_PX,
            "training": training(),
            "skip_onnx": True,
            **options,
        }
    )


def request(data: Data, run_id: str, **options) -> student_pb2.TrainRequest:
    return student_pb2.TrainRequest(
        project=PROJECT, run_id=run_id, classifier=recipe(data, **options)
    )


def message(views: Augmentation) -> items_pb2.Augmentation:
    return items_pb2.Augmentation(policy=views.policy, views=views.views, seed=views.seed)


def ref(digest: str) -> items_pb2.BlobRef:
    return items_pb2.BlobRef(digest=digest)


def make_catalogue(folder: Path) -> Path:
    """Random weights of a test_resnet, and some that are NaN, as catalogue entries."""
    import torch
    from safetensors.torch import save_file

    from services.torch_common.timm_models import build_timm

    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(8)
    good = build_timm("test_resnet", 7).state_dict()
    entries = []
    for name, factor in (("tiny-start", 1.0), ("tiny-nan", float("nan"))):
        state = {k: v * factor if v.is_floating_point() else v for k, v in good.items()}
        save_file({k: v.contiguous() for k, v in state.items()}, folder / f"{name}.safetensors")
        entries.append(
            f'[entries.{name}]\nkind = "image-classifier"\nloader = "timm"\nlicence = "CC0-1.0"\n'
            f'architecture = "test_resnet"\nsource = "file:{folder / name}.safetensors"\n'
            f"classes = {list('abcdefg')}\ninput = {{ size_px = 32, crop_pct = 0.9 }}\n"
        )
    path = folder / "catalogue.toml"
    path.write_text("\n".join(entries))
    return path
