"""What a classifier is trained and measured on: labels, views, the teacher's outputs, pixels."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from stillhouse.student.v1 import student_pb2
from torch import Tensor

from services.common import images
from services.common.augmentation import Augmentation
from services.common.blobs import BlobStore
from services.common.errors import InvalidInput, Precondition
from services.common.view_shards import ViewTable, unpack_views
from services.student.classifier.plan import Plan
from services.student.classifier.prefetch import THREADS
from services.student.data import Ints, Labels, read_rows
from services.student.ranks import ALONE, Ranks
from services.student.recipes import Training
from services.torch_common.augment import view_pixels
from services.torch_common.preprocess import Preprocessing

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class ClassifierData:
    """Labelled items, and what the teacher says of them. Rows count the manifest's items."""

    labels: Labels
    train: Ints
    val: Ints
    test: Ints
    left_out: int
    """Items that the teacher, or where it was not asked we, could not read."""
    views: ViewTable | None
    teacher: npt.NDArray[np.float32] | None
    """Logits [n, K] of the images as they are."""


class ImageSource:
    """The manifest's photos, decoded from the blob store. Thread-safe."""

    def __init__(
        self,
        blobs: BlobStore,
        project: str,
        labels: Labels,
        limits: images.Limits = images.DEFAULT_LIMITS,
    ) -> None:
        self.labels = labels
        self._blobs, self._project, self._limits = blobs, project, limits

    def photo(self, row: int) -> Image.Image:
        """RGB, upright, at full size. Raises InvalidInput that names the item, NotFound."""
        data = self._blobs.get(self._project, self.labels.digests[row])
        try:
            return images.decode(data, self._limits)
        except images.ImageError as error:
            raise InvalidInput(
                f"data.manifest: item {self.labels.item_ids[row]!r}: {error.message}",
                field="data.manifest",
            ) from None

    def readable(self, row: int) -> bool:
        """Whether the photo can be decoded. Raises NotFound."""
        try:
            self.photo(row)
        except InvalidInput:
            return False
        return True

    def plain(self, rows: Ints, preprocessing: Preprocessing) -> Pixels:
        """uint8 [n, S, S, 3] of the images as they are."""
        return _stack([preprocessing.pixels(self.photo(int(row))) for row in rows])

    def views(
        self, rows: Ints, views: Ints, augmentation: Augmentation, preprocessing: Preprocessing
    ) -> Pixels:
        """uint8 [n, S, S, 3] of one view of each image."""
        digests = [self.labels.digests[row] for row in rows]
        return _stack(
            [
                view_pixels(self.photo(int(row)), digest, int(view), augmentation, preprocessing)
                for row, digest, view in zip(rows, digests, views, strict=True)
            ]
        )


def read_data(
    training: Training,
    recipe: student_pb2.ClassifierRecipe,
    augmentation: Augmentation,
    source: ImageSource,
) -> ClassifierData:
    """Read the shards, and leave out the images that nobody can read.

    Raises NotFound, InvalidInput, and Precondition where shards are of other views or classes.
    """
    blobs, project, labels = training.blobs, training.project, source.labels
    items, classes = len(labels.digests), len(labels.classes)
    usable, known = np.ones(items, bool), np.zeros(items, bool)
    teacher = views = None
    if recipe.data.teacher_shards:
        refs = recipe.data.teacher_shards
        rows, known = read_rows(blobs, project, refs, "logits", (items, classes))
        teacher, usable = rows.astype(np.float32), known
    if recipe.view_shards:
        shards = [blobs.get(project, ref.digest) for ref in recipe.view_shards]
        views = unpack_views(shards, augmentation, classes)
        seen = np.array([digest in views.rows for digest in labels.digests])
        usable = usable & (seen | (labels.split != "train"))
        known = known | seen
    _check_features(views, recipe)
    return _split(labels, usable & _decodable(source, ~known & usable), views, teacher)


def _decodable(source: ImageSource, unknown: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Which items can be decoded [n]; those that the teacher has read are not tried."""
    found = np.ones(len(unknown), bool)
    rows = np.flatnonzero(unknown)
    with ThreadPoolExecutor(THREADS, thread_name_prefix="images") as threads:
        found[rows] = list(threads.map(lambda row: source.readable(int(row)), rows))
    return found


def _check_features(views: ViewTable | None, recipe: student_pb2.ClassifierRecipe) -> None:
    if recipe.training.feature_weight and (views is None or views.features is None):
        raise Precondition(
            "training.feature_weight: the view shards hold no features; store the teacher's "
            "features with its logits",
            differences={"features": "none in the shards"},
        )


def _split(
    labels: Labels,
    usable: npt.NDArray[np.bool_],
    views: ViewTable | None,
    teacher: npt.NDArray[np.float32] | None,
) -> ClassifierData:
    train, val, test = (
        np.flatnonzero(usable & (labels.split == split)) for split in ("train", "val", "test")
    )
    if not len(train):
        raise InvalidInput(
            "data.manifest: no item of split train can be used", field="data.manifest"
        )
    if not labels.multi_label and len(labels.classes) < 2:
        raise InvalidInput("data.manifest: needs two classes", field="data.manifest")
    return ClassifierData(labels, train, val, test, int((~usable).sum()), views, teacher)


@dataclass(frozen=True)
class Batch:
    """One step's images and what is known of them."""

    pixels: Pixels
    """uint8 [B, S, S, 3]."""
    hot: Tensor
    """uint8 [B, K]."""
    teacher: Tensor | None
    """float16 [B, K]."""
    features: Tensor | None
    """float16 [B, D]."""
    part: float = 1.0
    """What its mean loss counts for beside the means of other ranks' batches."""


def make_batch(
    data: ClassifierData,
    source: ImageSource,
    plan: Plan,
    step: int,
    augmentation: Augmentation,
    preprocessing: Preprocessing,
    ranks: Ranks = ALONE,
) -> Batch:
    """A rank's batch of a step of the plan, whose images count the training items."""
    planned, seen = plan.step(step)
    mine, counts = ranks.share(range(len(planned)))
    images, views = planned[list(mine)], seen[list(mine)]
    rows = data.train[images]
    known, found = data.views, None
    if known is not None:
        found = np.array([known.rows[data.labels.digests[row]] for row in rows])
    return Batch(
        source.views(rows, views, augmentation, preprocessing),
        torch.from_numpy(data.labels.hot[rows].astype(np.uint8)),
        None if known is None else torch.from_numpy(known.logits[found, views]),
        None
        if known is None or known.features is None
        else torch.from_numpy(known.features[found, views]),
        ranks.world * len(mine) / len(planned) if counts else 0.0,
    )


def normalised(pixels: Pixels, preprocessing: Preprocessing, device: torch.device) -> Tensor:
    """fp32 [n, 3, S, S] on the device, as `Preprocessing.normalise` makes them one by one."""
    mean, std = (
        torch.tensor(three, device=device).view(1, 3, 1, 1)
        for three in (preprocessing.mean, preprocessing.std)
    )
    batch = torch.from_numpy(pixels).to(device).permute(0, 3, 1, 2).contiguous()
    return batch.to(torch.float32).div_(255).sub_(mean).div_(std)


def _stack(squares: list[Image.Image]) -> Pixels:
    return np.stack([np.asarray(square, np.uint8) for square in squares])
