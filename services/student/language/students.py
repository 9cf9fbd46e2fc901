"""The model of a language recipe: loaded, cut to a smaller one, given an adapter, and saved."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from stillhouse.student.v1 import student_pb2

from services.common.blobs import BlobStore, is_digest
from services.common.catalogue import load_catalogue
from services.common.errors import InvalidInput, Precondition
from services.common.model_records import LanguageModelRecord
from services.common.weights import content_digest
from services.student.artefacts import Card
from services.student.language.options import ATTENTION_AND_FEED_FORWARD, LoraOptions
from services.student.language.requests import is_uld
from services.student.language.scoring import Examinee
from services.student.pruning.applied import Pruned, prune
from services.student.recipes import Training
from services.torch_common.language.files import ModelSource
from services.torch_common.language.loading import (
    LoadedLanguageModel,
    keep_layers,
    load_language_model,
)
from services.torch_common.language.precision import dtype_of

_SAVED = (".safetensors", ".json", ".txt", ".model", ".jinja")


@dataclass
class LanguageStudent:
    """A model in training. `model` is transformers' module, or peft's around it."""

    loaded: LoadedLanguageModel
    model: Any
    dtype: torch.dtype
    """What it computes in; trained tensors are float32 until `finish`."""
    lora: LoraOptions | None
    cut: bool
    """Whether parts were left out, or of a model without a name, so that no other model is its
    base."""
    pruned: Card = field(default_factory=dict)
    """What a PruneCut left out, for the card; empty without one."""
    guide: Pruned | None = None
    """The cut beside the model as it was, where the recipe compares their states."""

    @property
    def examinee(self) -> Examinee:
        """The model as evaluations take it."""
        return Examinee(self.model, self.loaded.encoder, self.dtype)

    @property
    def context_length(self) -> int:
        """Longest sequence, in tokens."""
        return self.loaded.context_length

    @property
    def vocab_size(self) -> int:
        """Outputs of the last layer."""
        return int(self.model.config.vocab_size)


def load_student(
    training: Training,
    recipe: student_pb2.LanguageRecipe,
    lora: LoraOptions | None,
    precision: str,
) -> LanguageStudent:
    """Load the model a recipe starts from, without the parts it leaves out.

    Raises NotFound, InvalidInput, and Precondition where its tokenizer is not the recipe's or it is
    an adapter that was to be trained or cut.
    """
    around = training.surroundings
    dtype = dtype_of(precision or around.precision, around.device)
    catalogue = load_catalogue([around.catalogue] if around.catalogue else [])
    source = ModelSource(catalogue, training.blobs, around.cache_dir)
    frozen = lora is not None or recipe.evaluate_only
    stored = str(dtype).removeprefix("torch.") if frozen else "float32"
    loaded = load_language_model(
        source, training.project, recipe.student, device=around.device, precision=stored
    )
    if not is_uld(recipe) or recipe.evaluation.target_shards:
        _check_tokenizer(loaded, recipe.tokenizer_digest)
    kept, pruning = list(recipe.keep_layers), recipe.HasField("cut")
    if loaded.adapter and (kept or pruning or not recipe.evaluate_only):
        raise Precondition(
            f"{recipe.student} is an adapter on {loaded.base}; start from {loaded.base}",
            differences={"student": f"adapter on {loaded.base}"},
        )
    model, card, guide = loaded.model, Card(), None
    if kept:
        _check_layers(model, kept)
        model = keep_layers(model, kept)
    elif pruning:
        blobs, project = training.blobs, training.project
        pruned = prune(model, loaded.digest, recipe.cut, blobs, project)
        model, card = pruned.model, pruned.card
        if recipe.training.intermediate_states and not recipe.evaluate_only:
            guide = pruned
    if kept or pruning:
        model = model.requires_grad_(False).eval()
        loaded = replace(loaded, model=model)  # lets go of the parts left out
    nameless = is_digest(recipe.student)  # nobody could load an adapter on it
    cut = bool(kept) or pruning or nameless
    return LanguageStudent(loaded, model, dtype, lora, cut, card, guide)


def _check_tokenizer(loaded: LoadedLanguageModel, wanted: str) -> None:
    if wanted and loaded.tokenizer_digest != wanted:
        raise Precondition(
            f"the data were made with another tokenizer than {loaded.model_id} has; a teacher "
            "of another vocabulary can teach by its answers, or by LANGUAGE_LOSS_ULD",
            differences={"tokenizer": f"{wanted} in the data, {loaded.tokenizer_digest} here"},
        )


def _check_layers(model: Any, kept: list[int]) -> None:
    layers = int(model.config.num_hidden_layers)
    if kept[-1] >= layers:
        raise InvalidInput(
            f"keep_layers: {kept[-1]} is out of range; the model has layers 0 to {layers - 1}",
            field="keep_layers",
        )


def make_trainable(student: LanguageStudent, seed: int) -> None:
    """Let all weights be trained, or put a fresh adapter on. Raises InvalidInput where the adapter
    names layers that are not there.
    """
    torch.manual_seed(seed)
    if student.lora is None:
        student.model.float().requires_grad_(True)
        return
    from peft import LoraConfig, get_peft_model

    names = list(student.lora.target_modules) or ATTENTION_AND_FEED_FORWARD
    config = LoraConfig(
        r=student.lora.rank,
        lora_alpha=student.lora.alpha,  # type: ignore[arg-type]
        lora_dropout=student.lora.dropout,
        target_modules=names,
        task_type="CAUSAL_LM",
    )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # peft reads a property of transformers
            student.model = get_peft_model(student.model, config)
    except ValueError as error:
        raise InvalidInput(
            f"training.lora.target_modules: {str(error)[:300]}",
            field="training.lora.target_modules",
        ) from None


def finish(student: LanguageStudent) -> None:
    """Make the weights those that `save` writes: merged where there is no base for the adapter, and
    rounded where the student computes in bfloat16. Raises Precondition where training has left some
    that are no numbers."""
    trained = (weight for weight in student.model.parameters() if weight.requires_grad)
    if not all(bool(weight.isfinite().all()) for weight in trained):
        raise Precondition(
            "training has left weights that are no numbers; use a lower learning_rate",
            differences={"weights": "NaN or infinity"},
        )
    if student.lora is not None and not student.cut:
        return
    if student.lora is not None:
        student.model = student.model.float().merge_and_unload()
    if student.dtype != torch.float32:
        with torch.no_grad():
            for weight in student.model.parameters():
                weight.copy_(weight.to(student.dtype))


def save(student: LanguageStudent, folder: Path) -> str:
    """Write the model as a transformers or peft folder with its tokenizer; returns the digest of
    the trained tensors."""
    adapter = student.lora is not None and not student.cut
    if adapter:
        for config in student.model.peft_config.values():
            config.base_model_name_or_path = student.loaded.model_id
            for name, value in vars(config).items():
                if isinstance(value, set):  # its order differs from process to process
                    setattr(config, name, sorted(value))
        student.model.save_pretrained(folder, save_embedding_layers=False)
    else:
        student.model.to(student.dtype).save_pretrained(folder, max_shard_size="1000GB")
    student.loaded.tokenizer.save_pretrained(folder)
    return content_digest(folder / f"{'adapter_model' if adapter else 'model'}.safetensors")


def store(
    student: LanguageStudent,
    folder: Path,
    digest: str,
    blobs: BlobStore,
    project: str,
    card: dict[str, Any],
) -> str:
    """Put a saved folder into the blob store; returns the digest of its record."""
    files = {}
    for path in sorted(folder.iterdir()):
        if path.name.endswith(_SAVED):
            with path.open("rb") as stream:
                files[path.name] = blobs.put_file(project, stream)[0]
    adapter = student.lora is not None and not student.cut
    record = LanguageModelRecord(
        form="adapter" if adapter else "checkpoint",
        files=files,
        weights_digest=digest,
        tokenizer_digest=student.loaded.tokenizer_digest,
        base=student.loaded.model_id if adapter else "",
        base_digest=student.loaded.digest if adapter else "",
        licence=student.loaded.licence,
        card=card,
    )
    return blobs.put(project, record.to_bytes())
