"""A cut model computes what the whole one does with the cut parts silent."""

from __future__ import annotations

import subprocess
import sys
from contextlib import ExitStack
from dataclasses import replace

import pytest
import torch

from services.common.errors import InvalidInput
from services.student.pruning.architecture import shape_of
from services.student.pruning.choice import Kept, choose, choose_at_random
from services.student.pruning.cut import cut, with_random_weights
from services.student.pruning.depth import skipped
from services.student.pruning.importance import measure_importance
from services.student.pruning.shape import Shape
from tests.student import pruning_suite as suite

pytestmark = pytest.mark.usefixtures("one_thread")

AXES = {
    "none": {},
    "layers": {"layers": 2},
    "named-layers": {"layers": 2, "kept_layers": (0, 2)},
    "channels": {"hidden_size": 20},
    "neurons": {"intermediate_size": 17},
    "heads": {"attention_heads": 2},
    "all": {"layers": 1, "hidden_size": 12, "intermediate_size": 9, "attention_heads": 2},
}


@pytest.fixture(scope="module", params=["tied", "untied", "one-group", "no-groups"])
def model(request):
    groups = {"one-group": 1, "no-groups": 4}.get(request.param, 2)
    return suite.make_model(tied=request.param != "untied", groups=groups)


def ids():
    return torch.randint(1, suite.VOCAB, (2, 11), generator=torch.Generator().manual_seed(3))


def mask_of(indices, size):
    return torch.zeros(size).index_fill_(0, indices, 1.0)


def silenced(model, kept: Kept):
    """Logits of the whole model with everything that is not kept set to zero. The norms see zeros
    in the channels cut: they normalise over the channels kept."""
    base = shape_of(model)
    channels = mask_of(kept.channels, base.hidden_size)
    dropped = [at for at in range(base.layers) if at not in kept.layers]
    with ExitStack() as stack:

        def outputs(module, mask):
            hook = module.register_forward_hook(lambda _, __, made: made * mask)
            stack.callback(hook.remove)

        def inputs(module, mask):
            hook = module.register_forward_pre_hook(lambda _, given: (given[0] * mask,))
            stack.callback(hook.remove)

        stack.enter_context(skipped(model, dropped))
        outputs(model.model.embed_tokens, channels)
        for row, at in enumerate(kept.layers):
            layer = model.model.layers[at]
            outputs(layer.self_attn.o_proj, channels)
            outputs(layer.mlp.down_proj, channels)
            inputs(layer.mlp.down_proj, mask_of(kept.neurons[row], base.intermediate_size))
            heads = mask_of(kept.heads[row], base.attention_heads)
            inputs(layer.self_attn.o_proj, heads.repeat_interleave(base.head_dim))
        return model(ids(), use_cache=False).logits


def shape_after(model, change) -> Shape:
    base = shape_of(model)
    if "attention_heads" in change and base.key_value_heads == 4:
        change = change | {"attention_heads": 4}
    return replace(base, **change)


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("way", ["important", "random"])
def test_a_cut_model_is_the_whole_one_with_parts_silenced(model, axis, way):
    base, shape = shape_of(model), shape_after(model, AXES[axis])
    if way == "random":
        kept = choose_at_random(base, shape, 5)
    else:
        kept = choose(measure_importance(model, suite.make_batches()), base, shape)
    small = cut(model, shape, kept)
    torch.testing.assert_close(small(ids()).logits, silenced(model, kept), rtol=1e-4, atol=1e-4)
    assert shape_of(small) == replace(shape, kept_layers=())
    count = sum(weight.numel() for weight in small.parameters())
    assert count == shape.parameters
    embeddings = {small.get_input_embeddings().weight, small.get_output_embeddings().weight}
    assert len(embeddings) == (1 if shape.tied else 2)
    inner = sum(weight.numel() for weight in embeddings)
    assert count - inner == shape.non_embedding_parameters


def test_a_cut_model_has_weights_of_its_own(model):
    shape = shape_of(model)
    small = cut(model, shape, choose_at_random(shape, shape, 0))
    theirs = {weight.data_ptr() for weight in model.parameters()}
    assert not theirs & {weight.data_ptr() for weight in small.parameters()}
    assert small.generation_config is not model.generation_config
    assert small.config is not model.config


def test_the_cache_gives_the_logits_of_the_whole_sequence(model):
    shape = shape_after(model, AXES["all"] | {"layers": 2})
    kept = choose_at_random(shape_of(model), replace(shape, kept_layers=(1, 2)), 1)
    small = cut(model, shape, kept)
    assert [layer.self_attn.layer_idx for layer in small.model.layers] == [0, 1]
    whole, cache, found = ids(), None, []
    for at in range(whole.shape[1]):
        step = small(whole[:, at : at + 1], past_key_values=cache, use_cache=True)
        cache = step.past_key_values
        found.append(step.logits)
    torch.testing.assert_close(torch.cat(found, 1), small(whole).logits, rtol=1e-4, atol=1e-4)


def test_important_parts_stay():
    model = suite.make_model()
    base = shape_of(model)
    importance = measure_importance(model, suite.make_batches())
    shape = replace(base, hidden_size=8, intermediate_size=5, attention_heads=2, layers=2)
    kept = choose(importance, base, shape)
    assert set(kept.channels.tolist()) == set(importance.channels.topk(8).indices.tolist())
    dropped = ({0, 1, 2} - set(kept.layers)).pop()
    assert importance.layers[dropped] == importance.layers.min()
    for row, at in enumerate(kept.layers):
        wanted = importance.neurons[at].topk(5).indices.tolist()
        assert kept.neurons[row].tolist() == sorted(wanted)
        first, second = importance.heads[at].view(2, 2).argmax(dim=1).tolist()
        assert kept.heads[row].tolist() == [first, 2 + second]
    order = torch.tensor([9.0, 3.0, 1.0, 2.0])  # the whole model's, then without layers 0 to 2
    by_perplexity = choose(replace(importance, perplexities=order), base, shape)
    assert by_perplexity.layers == (0, 2)


def test_random_choices_follow_the_seed_and_keep_every_group():
    base = shape_of(suite.make_model())
    shape = replace(base, hidden_size=8, intermediate_size=5, attention_heads=2, layers=2)
    one, same, other = (choose_at_random(base, shape, seed) for seed in (1, 1, 2))
    assert torch.equal(one.channels, same.channels)
    assert torch.equal(one.neurons, same.neurons)
    assert not torch.equal(one.channels, other.channels)
    assert not torch.equal(one.neurons[0], one.neurons[1])
    assert ((one.heads // 2) == torch.tensor([0, 1])).all()


def test_random_weights_follow_the_seed_and_leave_the_generator():
    model = suite.make_model()
    shape = replace(shape_of(model), layers=2, hidden_size=16)
    before = torch.get_rng_state()
    one, same, other = (with_random_weights(model, shape, seed) for seed in (1, 1, 2))
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(one.lm_head.weight, same.lm_head.weight)
    assert not torch.equal(one.lm_head.weight, other.lm_head.weight)
    assert shape_of(one) == shape
    assert one.config.rms_norm_eps == model.config.rms_norm_eps


def test_bfloat16_rounds_once():
    model = suite.make_model().bfloat16()
    base = shape_of(model)
    shape = replace(base, hidden_size=20)
    kept = choose_at_random(base, shape, 0)
    small = cut(model, shape, kept)
    assert small.dtype == torch.bfloat16
    wanted = model.model.norm.weight[kept.channels].float() * (32 / 20) ** 0.5
    assert torch.equal(small.model.norm.weight, wanted.bfloat16())


def test_layer_types_are_those_of_the_layers_kept():
    from transformers import MistralConfig, MistralForCausalLM

    config = MistralConfig(
        vocab_size=suite.VOCAB,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        sliding_window=4,
    )
    config.layer_types = ["full_attention", "sliding_attention", "full_attention"]
    model = MistralForCausalLM(config).eval().requires_grad_(False)
    base = shape_of(model)
    shape = replace(base, layers=2, kept_layers=(1, 2), hidden_size=16)
    kept = choose_at_random(base, shape, 0)
    small = cut(model, shape, kept)
    assert small.config.layer_types == ["sliding_attention", "full_attention"]
    torch.testing.assert_close(small(ids()).logits, silenced(model, kept), rtol=1e-4, atol=1e-4)


CLEAN = """
import sys, torch
sys.modules["torchvision"] = None  # PyPI's does not import beside CPU torch
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1]).eval()
assert not any(name.startswith("services") for name in sys.modules)
ids = torch.tensor([[5, 6, 7, 8]])
made = model.generate(ids, max_new_tokens=5, min_new_tokens=5, do_sample=False)
print(made[0].tolist(), sum(w.numel() for w in model.parameters()))
print(" ".join(f"{x:.4f}" for x in model(ids).logits[0, -1].tolist()))
"""


@pytest.mark.parametrize("tied", [True, False])
def test_a_saved_model_loads_and_generates_in_a_clean_process(tmp_path, tied):
    model = suite.make_model(tied=tied)
    base = shape_of(model)
    shape = replace(base, layers=2, hidden_size=20, intermediate_size=24, attention_heads=2)
    small = cut(model, shape, choose_at_random(base, shape, 4))
    small.save_pretrained(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", CLEAN, str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
        env={"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        timeout=120,
    )
    told = done.stdout.splitlines()
    prompt = torch.tensor([[5, 6, 7, 8]])
    made = small.generate(prompt, max_new_tokens=5, min_new_tokens=5, do_sample=False)
    assert told[0] == f"{made[0].tolist()} {shape.parameters}"
    logits = torch.tensor([float(x) for x in told[1].split()])
    torch.testing.assert_close(logits, small(prompt).logits[0, -1], rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    ("change", "field", "match"),
    [
        ({"layers": 0}, "layers", "at least 1"),
        ({"attention_heads": 3}, "attention_heads", "2 or 4 would do"),
        ({"hidden_size": 18}, "hidden_size", "16 or 20 would do"),
        ({"hidden_size": 2}, "hidden_size", "4 would do"),
        ({"kept_layers": (1, 0)}, "kept_layers", "rise"),
        ({"kept_layers": (0, 1)}, "kept_layers", "names 2 layers"),
        ({"layers": 4}, "layers", "more than the model's 3"),
        ({"hidden_size": 36}, "hidden_size", "more than the model's 32"),
        ({"layers": 1, "kept_layers": (7,)}, "kept_layers", "layers 0 to 2"),
        ({"vocab_size": 39}, "vocab_size", "stays"),
        ({"attention_heads": 1, "key_value_heads": 1}, "key_value_heads", "stays"),
    ],
)
def test_shapes_that_cannot_be_are_refused(change, field, match):
    base = shape_of(suite.make_model())
    with pytest.raises(InvalidInput, match=match) as caught:
        replace(base, **change).check_within(base)
    assert caught.value.field == field
