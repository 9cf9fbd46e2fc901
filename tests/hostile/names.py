"""Names and values that exist in a world of hostile tests, whatever else is in it."""

from __future__ import annotations

from typing import Any

import numpy as np
from stillhouse.common.v1 import items_pb2, language_pb2

from services.common.tensors import to_message
from tests.support import photo

PROJECT = "projects/default"
TINY = f"{PROJECT}/models/tiny-llama"
LITE = f"{PROJECT}/models/efficientnet-lite0"
ENCODER = f"{PROJECT}/encoders/effl2-minilm"


def plausible_names() -> dict[str, list[Any]]:
    """What exists in every world, by field name, `Method.field` or message type."""
    encoder = {f"{method}.name": [ENCODER] for method in ("GetEncoder",)}
    ids = np.array([[5, 6, 7, 8]], np.int32)
    tensors = [
        to_message(one)
        for one in (ids[0], ids, ids[0].astype(np.int64), np.array([0, 4], np.int64), np.ones(4,
        np.uint8),
                    np.zeros((3, 384), np.float16), np.zeros(384, np.float32), np.zeros((0, 384),
                    np.float32))
    ]  # fmt: skip
    return encoder | {
        "project": ["default"], "repository_name": ["default"], "name": [TINY, LITE, ENCODER],
        "model_name": [TINY, LITE],
        "model": [LITE, TINY], "Score.model": [TINY], "Generate.model": [TINY],
        "GenerateText.model": [TINY],
        "SampleTargets.model": [TINY], "Classify.model": [LITE], "teacher": [LITE],
        "backbone": [LITE], "base": [TINY],
        "tuned": [TINY], "target": [TINY], "generator": [TINY], "encoder": [ENCODER],
        "student": [TINY],
        "dataset": [f"{PROJECT}/datasets/fruit", f"{PROJECT}/datasets/notes"],
        "GetDataset.name": [f"{PROJECT}/datasets/fruit"],
        "GetConceptSet.name": [f"{PROJECT}/conceptSets/everyday"],
        "concept_set": [f"{PROJECT}/conceptSets/everyday"],
        "concepts": ["red", "round", "leaf"], "concept": ["red"], "words": ["red", "round",
        "leaf"], "texts": ["a red apple"],
        "label": ["Apple", ""], "labels": ["Apple"], "class_names": ["Apple"], "split": ["",
        "train", "test"], "item_id": ["a", "b"],
        "text": ["red cat dog"], "content": ["red cat"], "role": ["user"], "data": [photo(1),
        photo(2, form="PNG")],
        "chunk": [b"x" * 100], "factor": [2.0, 1.5], "direction": [1, 2], "max_tokens": [1, 4],
        "temperature": [0.0, 1.0],
        "top_p": [1.0], "page_size": [0, 1, 50], "seed": [0, 1], "max_steps": [1],
        "batch_sequences": [2], "sequence_length": [64],
        "learning_rate": [1e-3], "bytes_per_token": [40.0], "top_k": [4], "nec": [3.0],
        "l1": [1e-4], "rank": [4], "layers": [1],
        "dataset_id": [""], "model_id": ["made"], "student_id": ["made"],
        "concept_set_id": ["mine"], "run_id": [f"run-{n}" for n in range(4)],
        "uri": ["builtin:fruit-coarse", "builtin:wordnet-facts?facts=4"], "digest": ["0" * 64],
        "pattern": ["a+"],
        "stillhouse.common.v1.Tensor": tensors,
        "stillhouse.common.v1.ImageInput": [items_pb2.ImageInput(item_id=str(n),
        data=photo(n)) for n in range(4)],
        "stillhouse.common.v1.Sampling": [language_pb2.Sampling(max_tokens=3)],
    }  # fmt: skip
