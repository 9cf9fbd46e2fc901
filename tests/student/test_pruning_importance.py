"""Importance against loops over single sequences, and what is refused."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn.functional import cosine_similarity

from services.common.errors import InvalidInput, Precondition
from services.common.tensors import pack_arrays
from services.student.language.data import collate
from services.student.pruning.architecture import shape_of
from services.student.pruning.depth import layer_perplexities, perplexity, skipped
from services.student.pruning.importance import measure_importance
from services.student.pruning.scores import Importance
from tests.student import pruning_suite as suite

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def model():
    return suite.make_model()


@pytest.fixture(scope="module")
def importance(model):
    return measure_importance(model, suite.make_batches())


def activations(model, module, tokens, *, inputs: bool):
    """What goes into or comes out of a module for one unpadded sequence [T, C]."""
    seen = []

    def keep(_, given, made):
        seen.append(given[0] if inputs else made)

    handle = module.register_forward_hook(keep)
    model(torch.from_numpy(tokens.astype(np.int64))[None])
    handle.remove()
    return seen[0][0]


def brute_force(model, module, *, inputs: bool):
    total = 0.0
    for one in suite.make_sequences():
        values = activations(model, module, one.tokens, inputs=inputs)
        total = total + values.double().abs().mean(dim=0) ** 2
    return total.sqrt()


def close(found, wanted):
    torch.testing.assert_close(found.double(), wanted, rtol=1e-4, atol=1e-6)


def test_neurons_are_the_inputs_of_the_down_projection(model, importance):
    for at, layer in enumerate(model.model.layers):
        close(importance.neurons[at], brute_force(model, layer.mlp.down_proj, inputs=True))


def test_a_head_is_the_norm_of_its_channels(model, importance):
    """Weighed by its part of the output projection, or as it is."""
    plain = measure_importance(model, suite.make_batches(), weigh_heads=False)
    for at, layer in enumerate(model.model.layers):
        channels = brute_force(model, layer.self_attn.o_proj, inputs=True)
        for head in range(4):
            part = slice(8 * head, 8 * head + 8)
            wanted = channels[part].norm()
            close(plain.heads[at, head], wanted)
            written = layer.self_attn.o_proj.weight[:, part].double().norm()
            close(importance.heads[at, head], wanted * written)


def test_channels_are_summed_over_all_norms(model, importance):
    norms = [model.model.norm]
    for layer in model.model.layers:
        norms += [layer.input_layernorm, layer.post_attention_layernorm]
    close(importance.channels, sum(brute_force(model, norm, inputs=False) for norm in norms))


def test_layers_are_one_minus_the_mean_cosine(model, importance):
    for at, layer in enumerate(model.model.layers):
        cosines = []
        for one in suite.make_sequences():
            before = activations(model, layer, one.tokens, inputs=True)
            after = activations(model, layer, one.tokens, inputs=False)
            cosines.append(cosine_similarity(before.double(), after.double(), dim=-1))
        close(importance.layers[at], 1 - torch.cat(cosines).mean())
    assert importance.sequences == 6
    assert importance.tokens == sum(len(one.tokens) for one in suite.make_sequences())


def test_batching_and_the_side_of_the_padding_do_not_matter(model, importance):
    singles = measure_importance(model, suite.make_batches(size=1))
    batch = collate(suite.make_sequences())
    longest = batch.attention_mask.shape[1]
    shifts = [longest - int(n) for n in batch.attention_mask.sum(dim=1)]

    def moved(rows):
        return torch.stack([row.roll(by) for row, by in zip(rows, shifts, strict=True)])

    left = replace(
        batch, input_ids=moved(batch.input_ids), attention_mask=moved(batch.attention_mask)
    )
    for other in (singles, measure_importance(model, [left])):
        for name in ("neurons", "heads", "channels", "layers"):
            torch.testing.assert_close(
                getattr(other, name), getattr(importance, name), rtol=1e-3, atol=1e-5
            )


def test_perplexities_are_those_of_models_without_a_layer(model):
    from services.torch_common.language.loading import keep_layers

    batches = suite.make_batches()
    found = layer_perplexities(model, batches)
    assert len(found) == 4
    wanted = [perplexity(model, batches)]
    wanted += [
        perplexity(keep_layers(model, [i for i in range(3) if i != at]), batches) for at in range(3)
    ]
    torch.testing.assert_close(found, torch.tensor(wanted), rtol=1e-4, atol=0)
    total = tokens = 0.0
    for one in suite.make_sequences():
        ids = torch.from_numpy(one.tokens.astype(np.int64))
        log_q = model(ids[None]).logits[0].double().log_softmax(-1)
        total -= float(log_q[:-1].gather(1, ids[1:, None]).sum())
        tokens += len(ids) - 1
    assert float(found[0]) == pytest.approx(math.exp(total / tokens), rel=1e-4)


def test_measuring_leaves_the_model_as_it_was(model):
    model.train()
    measure_importance(model, suite.make_batches())
    with skipped(model, [0, 1]):
        pass
    assert model.training
    model.eval()
    hooks = [m for m in model.modules() if m._forward_hooks or m._forward_pre_hooks]
    assert not hooks


def test_scores_survive_the_way_through_bytes(importance):
    one = replace(importance, perplexities=torch.arange(4.0), model_digest="ab" * 32)
    for wanted in (importance, one):
        data = wanted.to_bytes()
        found = Importance.from_bytes(data)
        assert found.to_bytes() == data
        assert torch.equal(found.neurons, wanted.neurons)
        assert (found.tokens, found.model_digest) == (wanted.tokens, wanted.model_digest)
    assert found.layer_order == [2, 1, 0]


def test_damaged_scores_are_refused(importance):
    arrays = importance.to_arrays()
    broken = [
        {name: value for name, value in arrays.items() if name != "heads"},
        arrays | {"heads": arrays["heads"][:2]},
        arrays | {"layers": np.array(3.0, np.float32)},
        arrays | {"channels": arrays["channels"] * np.nan},
        arrays | {"perplexities": np.ones(2, np.float32)},
    ]
    for one in broken:
        with pytest.raises(InvalidInput, match="importance"):
            Importance.from_bytes(pack_arrays(one))
    with pytest.raises(InvalidInput, match="safetensors"):
        Importance.from_bytes(b"no tensors")


def test_scores_of_another_model_are_refused(model, importance):
    with pytest.raises(Precondition, match="layers") as caught:
        importance.check_of(shape_of(suite.make_model(layers=2)))
    assert caught.value.differences["layers"] == "3 measured, the model has 2"
    named = replace(importance, model_digest="ab" * 32)
    named.check_of(shape_of(model), "ab" * 32)
    with pytest.raises(Precondition, match="model"):
        named.check_of(shape_of(model), "cd" * 32)


def test_too_little_text_is_refused(model):
    sequences = suite.make_sequences()
    one_token = replace(sequences[0], tokens=np.ones(1, np.int32), is_target=np.zeros(1, np.uint8))
    for few in ([], [collate(sequences[:1])], [collate([one_token, one_token, sequences[1]])]):
        for measure in (measure_importance, layer_perplexities):
            with pytest.raises(InvalidInput, match="at least 2 sequences") as caught:
                measure(model, few)
            assert caught.value.field == "text_shards"


def test_a_damaged_model_is_refused():
    broken = suite.make_model()
    broken.model.norm.weight.fill_(float("nan"))
    for measure in (measure_importance, layer_perplexities):
        with pytest.raises(Precondition, match="damaged"):
            measure(broken, suite.make_batches())


def test_other_architectures_are_refused():
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

    sizes = {"vocab_size": 20, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 16}
    with pytest.raises(Precondition, match="llama and mistral can"):
        shape_of(GPT2LMHeadModel(GPT2Config(**sizes)))
    odd = LlamaConfig(
        vocab_size=20,
        hidden_size=48,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=6,
        num_key_value_heads=4,
    )
    with pytest.raises(Precondition, match="attention_heads: 6 in 4 groups; 4 or 8 would do"):
        shape_of(LlamaForCausalLM(odd))
    config = LlamaConfig(
        vocab_size=20,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        attention_bias=True,
    )
    with pytest.raises(Precondition, match="without biases"):
        shape_of(LlamaForCausalLM(config))
