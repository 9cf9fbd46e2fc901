"""Classifiers that training runs of the project have made, as models to be served."""

from __future__ import annotations

from safetensors import SafetensorError
from safetensors.torch import load

from services.common.blobs import BlobStore
from services.common.classifier_records import ClassifierRecord
from services.common.errors import InvalidInput
from services.teacher.backbones import TimmNetwork
from services.teacher.models import ImageClassifier, identity
from services.torch_common.classifiers import build_classifier
from services.torch_common.compute import Compute
from services.torch_common.fuse import fold_batch_norms
from services.torch_common.golden import golden_input
from services.torch_common.preprocess import Preprocessing


def load_trained(
    model_id: str,
    record: ClassifierRecord,
    blobs: BlobStore,
    project: str,
    compute: Compute | None = None,
) -> ImageClassifier:
    """A record's network. Raises NotFound, InvalidInput where weights and architecture do not fit.

    Blocking. Batch norms are folded as in the catalogue's models, so logits may differ from the
    training run's report in the last bits.
    """
    compute, size = compute or Compute(), record.input.size_px
    model = build_classifier(record.architecture, len(record.classes), size, record.variant)
    try:
        model.load_state_dict(load(blobs.get(project, record.weights)), strict=True)
    except (SafetensorError, RuntimeError) as error:
        raise InvalidInput(f"model {model_id}: {str(error)[:600]}", field="model") from error
    model = fold_batch_norms(model.eval(), golden_input(size))
    preprocessing = compute.reads(Preprocessing.from_spec(record.input))
    digest = identity(
        record.weights,
        preprocessing,
        "trained",
        record.architecture,
        record.variant,
        list(record.classes),
        *compute.identity,
    )
    network = TimmNetwork(model, compute)
    classifier = ImageClassifier(model_id, digest, record.classes, network, preprocessing, compute)
    try:
        classifier.warmup()
    except (RuntimeError, TypeError, AttributeError) as error:
        raise InvalidInput(f"model {model_id}: {str(error)[:600]}", field="model") from error
    return classifier
