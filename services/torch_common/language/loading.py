"""Load a causal language model and its tokenizer from files; safetensors alone, no code of theirs.

An adapter (LoRA, peft) is put on a base that is loaded already: the base's modules are shared, and
which adapter is in force is chosen before each forward pass.
"""

from __future__ import annotations

import copy
import hashlib
import json
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

import services.torch_common  # noqa: F401  declares what transformers' import needs
from services.common.errors import InvalidInput, Precondition
from services.common.weights import WeightsError, content_digest
from services.torch_common.language.files import ModelFiles, ModelSource
from services.torch_common.language.packing import Encoder, tokenizer_digest
from services.torch_common.language.precision import dtype_of

# Parts of a configuration that do not change what the model computes.
_IDLE = ("transformers_version", "_name_or_path", "_model_name_or_path", "dtype", "use_cache")
# Settings of an adapter that reach beyond layers of its own, unless they are one of the next.
_CHANGES_BASE = (
    "modules_to_save",
    "bias",
    "layer_replication",
    "trainable_token_indices",
    "init_lora_weights",  # pissa and others take from the base what they put on it
)
_UNCHANGED: tuple[Any, ...] = (None, "none", [], {}, True, False, "gaussian", "orthogonal")


@dataclass(frozen=True)
class LoadedLanguageModel:
    """A model that can run. Models with the same `base` object share its `model`; `activated` puts
    the right adapter in force."""

    model_id: str
    model: Any
    """transformers' module in evaluation mode; with adapters, as peft has changed it in place."""
    tokenizer: Any
    encoder: Encoder
    digest: str
    """SHA-256 over weights, configuration and tokenizer; the precision is not part of it."""
    tokenizer_digest: str
    licence: str = ""
    key: str = ""
    base: str = ""
    """Last part of the name of the model under the adapter; empty for a whole model."""
    adapter: str = ""
    """peft's name of the adapter on `model`; empty for the model without one."""

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return next(self.model.parameters()).device  # type: ignore[no-any-return]

    @property
    def precision(self) -> str:
        """`float32` or `bfloat16`."""
        return str(self.model.dtype).removeprefix("torch.")

    @property
    def context_length(self) -> int:
        """Longest prompt and answer together, in tokens."""
        return int(self.model.config.max_position_embeddings)

    @property
    def vocab_size(self) -> int:
        """Ids of the vocabulary, padding of the output layer excluded."""
        return min(self.encoder.vocab_size, int(self.model.config.vocab_size))

    @cached_property
    def parameter_count(self) -> int:
        """Parameters, this model's adapter included and others' not."""
        own = f".{self.adapter}." if self.adapter else ""
        return sum(
            weight.numel()
            for name, weight in self.model.named_parameters()
            if "lora_" not in name or (own and own in f"{name}.")
        )

    @cached_property
    def size_bytes(self) -> int:
        """Bytes of its weights; of an adapter, of its own alone."""
        own = f".{self.adapter}." if self.adapter else ""
        return sum(
            weight.nbytes
            for name, weight in self.model.named_parameters()
            if ("lora_" in name and own in f"{name}." if own else "lora_" not in name)
        )

    @contextmanager
    def activated(self) -> Iterator[Any]:
        """The model with this adapter, and no other, in force. Not for two threads at once."""
        _activate(self.model, self.adapter)
        yield self.model


def load_language_model(
    source: ModelSource, project: str, model_id: str, *, device: str = "cpu", precision: str = ""
) -> LoadedLanguageModel:
    """Load a model by id with all it stands on: an adapter gets a base of its own.

    Raises NotFound for an unknown model or base, Precondition where the base is another one than
    the adapter was trained on, InvalidInput for damaged files.
    """
    files = source.find(project, model_id)
    if not files.base:
        return load_folder(files, device=device, precision=precision)
    base = load_language_model(source, project, files.base, device=device, precision=precision)
    return load_adapter(files, base)


def load_folder(
    files: ModelFiles, *, device: str = "cpu", precision: str = ""
) -> LoadedLanguageModel:
    """Load a transformers folder. Raises InvalidInput where it is not whole."""
    from transformers import AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # type: ignore[no-untyped-call]
    tokenizer = load_tokenizer(files.folder)
    try:
        weights = _weights_digest(files.folder)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            files.folder,
            dtype=dtype_of(precision, device),
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            output_loading_info=True,
        )
        model, found = loaded
        if missing := sorted(found["missing_keys"]):  # transformers would invent them at random
            raise ValueError(f"tensors are missing: {', '.join(missing[:3])}")
    except (OSError, ValueError, KeyError, RuntimeError, WeightsError) as error:
        raise InvalidInput(f"{files.model_id}: {str(error)[:600]}", field="model") from error
    tokens = tokenizer_digest(tokenizer)
    parts = [weights, _shape(model.config), tokens, tokenizer.chat_template or ""]
    return LoadedLanguageModel(
        model_id=files.model_id,
        model=model.to(device).eval().requires_grad_(False),
        tokenizer=tokenizer,
        encoder=Encoder(tokenizer),
        digest=_identity(parts),
        tokenizer_digest=tokens,
        licence=files.licence,
        key=files.key,
    )


def load_tokenizer(folder: Path) -> Any:
    """A folder's fast tokenizer. Raises InvalidInput."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(
            folder, use_fast=True, trust_remote_code=False, local_files_only=True
        )
    except Exception as error:  # a damaged tokenizer.json raises the Rust library's bare Exception
        raise InvalidInput(f"tokenizer: {str(error)[:600]}", field="model") from error


def load_adapter(files: ModelFiles, base: LoadedLanguageModel) -> LoadedLanguageModel:
    """Put a peft folder's adapter on `base` in place, without copying it.

    Raises Precondition where the base is another one than it was trained on or does not fit it,
    InvalidInput where the folder is damaged.
    """
    if files.base_digest and files.base_digest != base.digest:
        raise Precondition(
            f"{files.model_id} was trained on another version of {files.base}; train it again",
            differences={"base": f"{files.base_digest} expected, {base.digest} is here"},
        )
    if base.adapter:
        raise Precondition(f"{files.model_id}: its base {files.base} is an adapter itself")
    weights = files.folder / "adapter_model.safetensors"
    try:
        raw = json.loads((files.folder / "adapter_config.json").read_text(encoding="utf-8"))
        parts = [base.digest, content_digest(weights), _idle_free(raw)]
        name = _identity(parts)
        _add_adapter(base.model, name, files.folder)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, WeightsError) as error:
        raise InvalidInput(f"{files.model_id}: {str(error)[:600]}", field="model") from error
    return replace(
        base,
        model_id=files.model_id,
        digest=name,
        licence=files.licence,
        key=files.key,
        base=files.base,
        adapter=name,
    )


def drop_adapter(loaded: LoadedLanguageModel) -> None:
    """Take an adapter off its base again."""
    if loaded.adapter:
        _remove_adapter(loaded.model, loaded.adapter)


def keep_layers(model: Any, indices: Sequence[int]) -> Any:
    """Return a new model that has only these transformer layers, in the order given.

    Weights are copied; layers are renumbered and the configuration says how many there are. Raises
    InvalidInput where an index is out of range or none is given.
    """
    layers = int(model.config.num_hidden_layers)
    if not indices or not all(0 <= at < layers for at in indices):
        raise InvalidInput(f"layers: choose from 0 to {layers - 1}", field="layers")
    config = copy.deepcopy(model.config)
    config.num_hidden_layers = len(indices)
    if getattr(config, "layer_types", None):
        config.layer_types = [config.layer_types[at] for at in indices]
    place = {at: new for new, at in enumerate(indices)}
    state = {}
    for name, weight in model.state_dict().items():
        head, found, rest = name.partition(".layers.")
        number, _, tail = rest.partition(".")
        if not found:
            state[name] = weight
        elif int(number) in place:
            state[f"{head}.layers.{place[int(number)]}.{tail}"] = weight
    kept = type(model)(config).to(device=model.device, dtype=model.dtype)
    kept.load_state_dict(state, strict=True)
    return kept.train(model.training)


def _add_adapter(model: Any, name: str, folder: Path) -> None:
    """Put an adapter's layers into `model` in place; none is in force afterwards."""
    from peft import PeftConfig, inject_adapter_in_model, set_peft_model_state_dict
    from safetensors.torch import load_file

    if name in getattr(model, "peft_config", {}):
        return
    config = PeftConfig.from_pretrained(str(folder), local_files_only=True)
    config.inference_mode = True
    saved = load_file(folder / "adapter_model.safetensors")
    state = {key.removeprefix("base_model.model."): value for key, value in saved.items()}
    if any("lm_head" in key for key in state):  # logits are made from the base's own output layer
        raise ValueError("an adapter on the output layer is not served; merge it into the model")
    changes = [name for name in _CHANGES_BASE if getattr(config, name, None) not in _UNCHANGED]
    if changes or not all("lora_" in key for key in state):
        raise ValueError(f"it changes its base for others too ({changes or 'tensors'}); merge it")
    try:
        with warnings.catch_warnings():  # several adapters on one model are what is wanted
            warnings.filterwarnings("ignore", message="Already found a `peft_config`")
            inject_adapter_in_model(config, model, adapter_name=name)
        model.eval()  # the new layers come in training mode, with their dropout at work
        model.requires_grad_(False)
        done: Any = set_peft_model_state_dict(model, state, adapter_name=name)
        missing = [key for key in done.missing_keys if f".{name}." in f"{key}."]
        if done.unexpected_keys or missing:
            raise ValueError(f"its tensors do not fit: {[*done.unexpected_keys, *missing][:3]}")
    except Exception:
        _remove_adapter(model, name)
        raise
    model.adapter_in_force = name
    _activate(model, "")


def _remove_adapter(model: Any, name: str) -> None:
    """Leave nothing of an adapter, half put on or whole, and none in force."""
    model.adapter_in_force = name  # whatever is in force by now is switched off
    _activate(model, "")
    for layer in _adapter_layers(model):
        layer.set_adapter([])  # peft would choose another one, with a warning
        layer.delete_adapter(name)
    getattr(model, "peft_config", {}).pop(name, None)


def _adapter_layers(model: Any) -> Iterator[Any]:
    from peft.tuners.tuners_utils import BaseTunerLayer

    return (module for module in model.modules() if isinstance(module, BaseTunerLayer))


def _activate(model: Any, adapter: str) -> None:
    """Put one adapter in force, or none; nothing is to do where it is already."""
    if getattr(model, "adapter_in_force", "") == adapter:
        return
    for layer in _adapter_layers(model):
        layer.enable_adapters(enabled=bool(adapter))
        if adapter:
            layer.set_adapter(adapter, inference_mode=True)
    model.adapter_in_force = adapter


def _weights_digest(folder: Path) -> str:
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise WeightsError(f"{folder.name} holds no .safetensors; use save_pretrained(folder)")
    return _identity([content_digest(path) for path in files])


def _shape(config: Any) -> str:
    return _idle_free(config.to_dict())


def _idle_free(raw: dict[str, Any]) -> str:
    kept = {name: value for name, value in raw.items() if name not in _IDLE}
    return json.dumps(kept, sort_keys=True, default=str)


def _identity(parts: Sequence[str]) -> str:
    return hashlib.sha256(json.dumps(list(parts)).encode()).hexdigest()
