"""The one place that spells cache keys and the names of stored stage outputs.

A key names everything its value depends on by full digest, the project first: another model,
preprocessing, region rule or element type is another key, and no project ever sees another's.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from services.common.blobs import check_digest
from services.common.names import check_id

_LAYOUT = "1"
"""Changes whenever the bytes under a key change their meaning."""
_DTYPE = "f2"


@dataclass(frozen=True)
class RegionSpace:
    """What region embeddings depend on beside the image."""

    project: str
    encoder_digest: str
    preprocessing_digest: str
    region_digest: str

    def check(self) -> RegionSpace:
        """Return self. Raises InvalidInput for a project or a digest that is not one."""
        check_id(self.project, field="project")
        check_digest(self.encoder_digest, field="encoder_digest")
        check_digest(self.preprocessing_digest, field="preprocessing_digest")
        check_digest(self.region_digest, field="region_digest")
        return self


@dataclass(frozen=True)
class ImageSpace:
    """What whole-image embeddings depend on beside the image.

    They come from online calls, so their last bits depend on the batch they ran in: no job reads
    them.
    """

    project: str
    encoder_digest: str
    preprocessing_digest: str

    def check(self) -> ImageSpace:
        """Return self. Raises InvalidInput for a project or a digest that is not one."""
        check_id(self.project, field="project")
        check_digest(self.encoder_digest, field="encoder_digest")
        check_digest(self.preprocessing_digest, field="preprocessing_digest")
        return self


def region_key(space: RegionSpace, item_digest: str) -> str:
    """Return the Redis key of an image's region embeddings and map."""
    return ":".join(
        (
            f"stillhouse{_LAYOUT}",
            "regions",
            space.project,
            check_digest(item_digest),
            space.encoder_digest,
            space.preprocessing_digest,
            space.region_digest,
            _DTYPE,
        )
    )


def image_key(space: ImageSpace, item_digest: str) -> str:
    """Return the Redis key of a whole image's embedding."""
    return ":".join(
        (
            f"stillhouse{_LAYOUT}",
            "images",
            space.project,
            check_digest(item_digest),
            space.encoder_digest,
            space.preprocessing_digest,
            _DTYPE,
        )
    )


def stage_ref(stage: str, inputs: Mapping[str, str | int | bool | Sequence[str]]) -> str:
    """Return the blob-store ref of a stage's (or shard's) output, from all its inputs."""
    text = json.dumps([_LAYOUT, stage, inputs], sort_keys=True, separators=(",", ":"))
    return f"stages/{stage}/{hashlib.sha256(text.encode()).hexdigest()}"


def project_patterns(project: str) -> tuple[str, ...]:
    """Return Redis patterns of all keys of a project, of every layout that there was."""
    check_id(project, field="project")
    return f"stillhouse*:regions:{project}:*", f"stillhouse*:images:{project}:*"
