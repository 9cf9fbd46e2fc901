"""Folders, records, adapters on a shared base, chosen layers, GGUF."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from services.common.blobs import BlobStore
from services.common.catalogue import CatalogueError, load_catalogue
from services.common.errors import InvalidInput, NotFound, Precondition
from services.common.fetch import FetchError, ensure
from services.torch_common.language.convert_gguf import convert, golden_ids
from services.torch_common.language.files import ModelFiles, ModelSource
from services.torch_common.language.loading import (
    drop_adapter,
    keep_layers,
    load_adapter,
    load_language_model,
)
from tests.teacher.language_models import load_tiny, publish, write_adapter, write_tiny

IDS = torch.arange(2, 20)[None]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("loading")
    write_tiny(path / "tiny", layers=3)
    write_adapter(path / "adapter", path / "tiny")
    return path


@torch.inference_mode()
def _logits(model: torch.nn.Module) -> torch.Tensor:
    return model(IDS).logits


def test_a_digest_changes_with_what_is_computed(folder: Path, tmp_path: Path) -> None:
    digest = load_tiny(folder / "tiny").digest
    assert load_tiny(folder / "tiny").digest == digest
    assert load_tiny(write_tiny(tmp_path / "other", layers=3, seed=1)).digest != digest
    write_tiny(tmp_path / "template", layers=3)
    (tmp_path / "template" / "chat_template.jinja").write_text("{{ messages[0].content }}")
    assert load_tiny(tmp_path / "template").digest != digest


def test_two_adapters_and_their_base_share_one_model(folder: Path, tmp_path: Path) -> None:
    from peft import PeftModel

    base = load_tiny(folder / "tiny")
    own = _logits(base.model)
    other = write_adapter(tmp_path / "other", folder / "tiny", seed=5)
    one = load_adapter(ModelFiles("one", folder / "adapter", "", "", base="tiny"), base)
    two = load_adapter(ModelFiles("two", other, "", "", base="tiny"), base)
    seen: dict[str, torch.Tensor] = {}
    for loaded in (one, two, base, one, base, two):
        with loaded.activated() as model:
            logits = _logits(model)
        assert torch.equal(seen.setdefault(loaded.digest, logits), logits)
        assert loaded.model is base.model
    assert torch.equal(seen[base.digest], own)
    assert len({float(logits.sum()) for logits in seen.values()}) == 3
    for loaded, path in ((one, folder / "adapter"), (two, other)):
        alone = PeftModel.from_pretrained(load_tiny(folder / "tiny").model, str(path))
        torch.testing.assert_close(_logits(alone), seen[loaded.digest])
    drop_adapter(one)
    with two.activated() as model:
        assert torch.equal(_logits(model), seen[two.digest])


def test_an_adapter_that_does_not_fit_is_refused(folder: Path, tmp_path: Path) -> None:
    base = load_tiny(folder / "tiny")
    own = _logits(base.model)
    given = ModelFiles("one", folder / "adapter", "", "", base="tiny", base_digest="1" * 64)
    with pytest.raises(Precondition, match="another version of tiny"):
        load_adapter(given, base)
    empty = ModelFiles("one", tmp_path, "", "", base="tiny")
    with pytest.raises(InvalidInput, match="one: "):
        load_adapter(empty, base)
    path = tmp_path / "adapter"
    shutil.copytree(folder / "adapter", path)
    state = load_file(path / "adapter_model.safetensors")
    for change, said in (
        ({"base_model.model.lm_head.lora_A.weight": torch.zeros(2, 32)}, "output layer"),
        ({"base_model.model.model.layers.9.lora_A.weight": torch.zeros(2, 32)}, "do not fit"),
        ({"base_model.model.model.norm.weight": torch.zeros(32)}, "for others too"),
        (None, "do not fit"),
    ):
        save_file(state | change if change else {}, path / "adapter_model.safetensors")
        for _ in range(2):  # nothing of the first attempt is left
            with pytest.raises(InvalidInput, match=said):
                load_adapter(ModelFiles("one", path, "", "", base="tiny"), base)
    save_file(state, path / "adapter_model.safetensors")
    config = json.loads((path / "adapter_config.json").read_text())
    for setting, said in (
        ({"r": 4}, "size mismatch"),
        ({"target_modules": ["nothing"]}, "not found in the base"),
        ({"modules_to_save": ["embed_tokens"]}, "modules_to_save"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights"),
    ):
        (path / "adapter_config.json").write_text(json.dumps(config | setting))
        for _ in range(2):
            with pytest.raises(InvalidInput, match=said):
                load_adapter(ModelFiles("one", path, "", "", base="tiny"), base)
    assert torch.equal(_logits(base.model), own)


def test_a_model_without_some_of_its_tensors_is_refused(tmp_path: Path) -> None:
    write_tiny(tmp_path / "tiny")
    state = load_file(tmp_path / "tiny" / "model.safetensors")
    del state["model.layers.1.mlp.up_proj.weight"]
    save_file(state, tmp_path / "tiny" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InvalidInput, match=r"missing: model\.layers\.1\.mlp\.up_proj"):
        load_tiny(tmp_path / "tiny")


def test_models_are_found_by_id(folder: Path, tmp_path: Path) -> None:
    blobs = BlobStore(str(tmp_path / "blobs"))
    source = ModelSource(load_catalogue(), blobs, tmp_path / "cache")
    publish(blobs, folder / "tiny", "mine")
    publish(blobs, folder / "adapter", "tuned", base="mine")
    whole = load_language_model(source, "default", "mine", precision="float32")
    tuned = load_language_model(source, "default", "tuned", precision="float32")
    assert (tuned.base, whole.base) == ("mine", "")
    assert torch.equal(_logits(whole.model), _logits(load_tiny(folder / "tiny").model))
    with tuned.activated() as model:
        assert not torch.equal(_logits(model), _logits(whole.model))
    with pytest.raises(NotFound, match="did you mean mine"):
        source.find("default", "min")
    with pytest.raises(NotFound):
        source.find("other-project", "mine")
    with pytest.raises(Precondition, match="is a dataset"):
        source.check_language("default", "fruit")


def test_chosen_layers_are_renumbered_copies(folder: Path) -> None:
    loaded = load_tiny(folder / "tiny")
    kept = keep_layers(loaded.model, [0, 2])
    assert kept.config.num_hidden_layers == 2
    assert [layer.self_attn.layer_idx for layer in kept.model.layers] == [0, 1]
    for new, old in ((0, 0), (1, 2)):
        mine, theirs = kept.model.layers[new], loaded.model.model.layers[old]
        for one, other in zip(mine.parameters(), theirs.parameters(), strict=True):
            assert torch.equal(one, other)
            assert one.data_ptr() != other.data_ptr()
    assert kept.lm_head.weight.data_ptr() == kept.model.embed_tokens.weight.data_ptr()
    assert torch.equal(_logits(keep_layers(loaded.model, range(3))), _logits(loaded.model))
    with torch.inference_mode():  # the cache knows the new numbers
        first = kept(IDS[:, :9], use_cache=True)
        rest = kept(IDS[:, 9:], past_key_values=first.past_key_values).logits
    assert torch.allclose(rest, _logits(kept)[:, 9:], atol=1e-5)
    for wrong in ([], [3], [-1]):
        with pytest.raises(InvalidInput, match="layers"):
            keep_layers(loaded.model, wrong)
    assert loaded.model.config.num_hidden_layers == 3


def _write_gguf(folder: Path, path: Path) -> None:
    """A tiny model as a GGUF file, 32-bit weights and a byte-level tokenizer."""
    import gguf
    from safetensors.numpy import load_file

    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 3)
    writer = gguf.GGUFWriter(str(path), "llama")
    config = load_tiny(folder).model.config
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10_000.0)
    tokenizer = load_tiny(folder).tokenizer
    tokens = [tokenizer.convert_ids_to_tokens(i) for i in range(len(tokenizer))]
    tokens += [f"<pad{n}>" for n in range(config.vocab_size - len(tokens))]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([1] * len(tokens))
    merges = json.loads((folder / "tokenizer.json").read_text())["model"]["merges"]
    writer.add_token_merges([" ".join(pair) for pair in merges])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    for name, value in load_file(folder / "model.safetensors").items():
        short, _, kind = name.rpartition(".")
        heads = {"q_proj": 4, "k_proj": 2}.get(short.rpartition(".")[2])
        if heads:  # GGUF keeps rotary pairs side by side
            rows = value.reshape(heads, 2, -1, value.shape[1]).swapaxes(1, 2)
            value = rows.reshape(value.shape)
        writer.add_tensor(f"{names.get_name(short)}.{kind}", np.ascontiguousarray(value))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_gguf_file_becomes_the_same_model(folder: Path, tmp_path: Path) -> None:
    _write_gguf(folder / "tiny", tmp_path / "tiny.gguf")
    done = convert(tmp_path / "tiny.gguf", tmp_path / "out")
    again = load_tiny(tmp_path / "out")
    with torch.inference_mode():
        logits = again.model(golden_ids(304)).logits[0, -1, :8]
    assert np.allclose(done["golden"], logits, atol=1e-4)  # type: ignore[arg-type]
    torch.testing.assert_close(
        _logits(again.model), _logits(load_tiny(folder / "tiny").model), atol=1e-4, rtol=1e-4
    )
    with pytest.raises(ValueError, match="golden logits are"):
        convert(tmp_path / "tiny.gguf", tmp_path / "third", (1.0,) * 8)
    assert not (tmp_path / "third").exists()


ENTRY = """
[entries.mine]
kind = "language-model"
licence = "mine"
{}
"""


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ('loader = "gguf"', "give source"),
        ('loader = "openai"\nurl = "ftp://x"\nremote_model = "m"', "http"),
        ('loader = "openai"\nurl = "http://x"', "remote_model"),
        ('loader = "gguf"\nsource = "file:a.gguf"\nbase = "smollm2-135m"', "adapter"),
        ('loader = "transformers"\nsource = "file:a.bin"', "pickled"),
    ],
)
def test_wrong_entries_are_explained(tmp_path: Path, fields: str, said: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(ENTRY.format(fields))
    with pytest.raises(CatalogueError, match=said):
        load_catalogue([path])


@pytest.mark.slow
def test_a_damaged_gguf_file_is_refused_in_its_own_process(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(ENTRY.format('loader = "gguf"\nsource = "file:a.gguf"'))
    (tmp_path / "a.gguf").write_bytes(b"GGUF" + bytes(40))
    entry = load_catalogue([path]).language_model("mine")
    with pytest.raises(FetchError, match="conversion failed"):
        ensure(entry, tmp_path / "cache")
