"""What a worker trains: one function per kind of recipe, and the phases that a restart skips."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from stillhouse.student.v1 import student_pb2

from services.common.blobs import BlobStore
from services.common.errors import InvalidInput, NotFound
from services.common.tensors import Array, pack_arrays, unpack_arrays
from services.common.tls import TlsFiles
from services.student.ranks import ALONE, Ranks
from services.student.rundir import Writer

Arrays = dict[str, Array]
_SHARED_LAYOUT = 2
"""Change it where what a shared phase computes changes."""
KINDS = ("concept", "linear_head", "language", "importance", "classifier")
"""The kinds of recipe, as the contract names them."""


def shares_work(request: student_pb2.TrainRequest) -> bool:
    """Whether several processes can train what the request asks for."""
    kind = request.WhichOneof("recipe")
    return kind == "classifier" or (kind == "language" and not request.language.evaluate_only)


@dataclass(frozen=True)
class Surroundings:
    """What a worker finds around it, as the service's settings say."""

    cache_dir: Path = Path.home() / ".cache" / "stillhouse"
    catalogue: Path | None = None
    teacher_address: str = ""
    tls: TlsFiles | None = None
    """What is shown to the teacher service, and how it is known."""
    device: str = "cpu"
    precision: str = ""
    python_tests: bool = False
    max_message_bytes: int = 32 << 20
    max_image_bytes: int = 16 << 20
    max_image_pixels: int = 64_000_000


@dataclass(frozen=True)
class Training:
    """A run in progress: where it reads and writes, and whom it tells."""

    project: str
    blobs: BlobStore
    writer: Writer
    ring: Callable[[], None]
    surroundings: Surroundings = field(default_factory=Surroundings)
    ranks: Ranks = ALONE

    def progress(
        self, stage: str, done: int, total: int, metrics: Mapping[str, float] | None = None
    ) -> None:
        """Tell how far the run is, on the first rank. Raises Fenced where another worker has taken
        over."""
        if self.ranks.first:
            self.writer.progress(stage, done, total, metrics)
            self.ring()

    def phase(self, name: str, compute: Callable[[], Arrays]) -> Arrays:
        """The arrays of a phase: from the checkpoint where a worker has finished it, else computed.

        What is computed is read back like what was stored, so that both ways give the same bits.
        """
        found = self.writer.load(name)
        if found is None:
            found = compute()
            self.writer.save(name, found)
        return found

    def shared_phase(
        self, name: str, inputs: Mapping[str, object], compute: Callable[[], Arrays]
    ) -> Arrays:
        """The arrays of a phase that other runs can have computed: `inputs`, JSON, are all that
        they depend on. They lie in the blob store, bit for bit."""
        text = json.dumps([_SHARED_LAYOUT, name, inputs], sort_keys=True, separators=(",", ":"))
        ref = f"stages/fit-{name}/{hashlib.sha256(text.encode()).hexdigest()}"
        found = self._shared(ref)
        if found is None:
            found = self.phase(name, compute)
            digest = self.blobs.put(self.project, pack_arrays(found))
            self.blobs.put_ref(self.project, ref, digest.encode())
        return found

    def _shared(self, ref: str) -> Arrays | None:
        try:
            digest = self.blobs.get_ref(self.project, ref).decode()
            return unpack_arrays(self.blobs.get(self.project, digest), what=ref)
        except (NotFound, InvalidInput, UnicodeDecodeError):
            return None


def train(training: Training, request: student_pb2.TrainRequest) -> student_pb2.TrainResult:
    """Train what the request asks for. Raises StillhouseError."""
    kind = request.WhichOneof("recipe")
    if kind == "concept":
        from services.student.concept_recipe import fit_concept_student

        concept = fit_concept_student(training, request.concept)
        return student_pb2.TrainResult(concept=concept)
    if kind == "linear_head":
        from services.student.head_recipe import fit_linear_head

        return student_pb2.TrainResult(linear_head=fit_linear_head(training, request.linear_head))
    if kind == "language":
        from services.student.language.recipe import train_language

        return student_pb2.TrainResult(language=train_language(training, request.language))
    if kind == "importance":
        from services.student.pruning.recipe import find_cuts

        return student_pb2.TrainResult(importance=find_cuts(training, request.importance))
    if kind == "classifier":
        from services.student.classifier.recipe import train_classifier

        return student_pb2.TrainResult(classifier=train_classifier(training, request.classifier))
    raise InvalidInput(f"recipe: one of {', '.join(KINDS)} is required", field="recipe")
