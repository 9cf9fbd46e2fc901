"""Intermediate states: the loss against loops, what is compared, and cuts trained by it."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from stillhouse.common.v1 import items_pb2, language_pb2
from stillhouse.student.v1 import student_pb2

from services.common.blobs import BlobStore
from services.common.errors import InvalidInput
from services.common.model_records import LanguageModelRecord
from services.common.targets import TargetShard
from services.student.language.data import TargetBank, collate
from services.student.language.losses import balanced, intermediate_loss
from services.student.language.objective import distillation_loss, target_logits
from services.student.language.options import LoraOptions, LossOptions
from services.student.language.requests import check_language
from services.student.language.sparse_losses import entropy
from services.student.language.states import StateGuide, attach, detach, guided_loss
from services.student.language.students import LanguageStudent, make_trainable
from services.student.pruning.applied import Pruned
from services.student.pruning.architecture import shape_of
from services.student.pruning.choice import choose
from services.student.pruning.cut import cut
from services.student.pruning.importance import measure_importance
from services.student.pruning.shape import spread
from services.student.recipes import Surroundings, Training, train
from services.student.rundir import RunDir
from tests.student import language_suite as suite
from tests.student import pruning_suite

pytestmark = pytest.mark.usefixtures("one_thread")

OPTIONS = LossOptions("forward_kl")


def value(scalar: torch.Tensor) -> float:
    return float(scalar.detach())


def test_the_loss_is_its_definition_and_so_is_its_gradient():
    torch.manual_seed(0)
    mine = [torch.randn(5, 3, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    its = [torch.randn(5, 4, requires_grad=True) for _ in range(2)]
    projection = torch.randn(4, 3, requires_grad=True)
    total = 0.0
    for layer in range(2):
        for token in range(5):
            a = (projection @ mine[layer][token].float()).tolist()
            b = its[layer][token].tolist()
            dot = sum(x * y for x, y in zip(a, b, strict=True))
            total += 1 - dot / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))
    loss = intermediate_loss(mine, its, projection)
    assert value(loss) == pytest.approx(total / 10, rel=1e-5)
    loss.backward()
    assert projection.grad.abs().sum() > 0
    assert mine[0].grad.abs().sum() > 0
    assert its[0].grad is None
    assert value(intermediate_loss(mine, mine)) == pytest.approx(0, abs=1e-6)
    with torch.autocast("cpu", torch.bfloat16):
        assert intermediate_loss(mine, its, projection).dtype == torch.float32
    for wrong in ([], its[:1]):
        with pytest.raises(ValueError, match="layers"):
            intermediate_loss(mine, wrong)


def test_both_losses_weigh_the_same_and_the_weight_has_no_gradient():
    x = torch.tensor(2.0, requires_grad=True)
    loss, other = 3 * x, x**3
    total = balanced(loss, other)
    assert value(total) == pytest.approx(12)  # twice the loss
    total.backward()
    assert value(x.grad) == pytest.approx(3 + 6 / 8 * 3 * 4)
    assert value(balanced(loss, other, size=loss / 3)) == pytest.approx(8)
    assert value(balanced(loss, torch.tensor(0.0))) == 6
    assert value(balanced(torch.tensor(0.0), other)) == 0


def test_what_draws_cost_any_student_is_their_entropy():
    sequences = suite.sequences_of(suite.texts())[:2]
    targets = collate(sequences, bank_of(sequences, "sampled")).targets
    total = 0.0
    for row in range(len(targets.tail)):
        weights = targets.weight[targets.row == row].double()
        total -= float((weights * weights.log()).sum())
    assert value(entropy(targets)) == pytest.approx(total / len(targets.tail), rel=1e-5)


def bank_of(sequences, kind: str) -> TargetBank:
    """What another model says of sequences."""
    taught = [suite.teach(suite.make_teacher(), one, kind) for one in sequences]
    return TargetBank([TargetShard.from_bytes(TargetShard.encode(taught, kind=kind))])


def test_layers_are_spread_evenly_and_end_with_the_last():
    assert spread(15, 3) == [4, 9, 14]
    assert spread(4, 3) == [1, 2, 3]
    assert spread(3, 1) == [2]
    assert spread(2, 9) == [0, 1]


def student_of(*, layers: int, hidden: int, lora=None) -> LanguageStudent:
    """A cut of a random model, ready to be trained."""
    whole = pruning_suite.make_model(layers=4)
    base = shape_of(whole)
    importance = measure_importance(whole, pruning_suite.make_batches())
    shape = replace(base, layers=layers, hidden_size=hidden)
    kept = choose(importance, base, shape)
    made = cut(whole, shape, kept)
    guide = Pruned(made, whole, kept.layers, kept.channels, {})
    student = LanguageStudent(None, made, torch.float32, lora, cut=True, guide=guide)
    make_trainable(student, 0)
    return student


def test_states_are_those_after_the_same_layers():
    student = student_of(layers=2, hidden=32)
    guide, kept = attach(student, 5), student.guide.layers
    assert guide.pairs == ((0, kept[0]), (1, kept[1]))
    sequences = pruning_suite.make_sequences()
    batch = collate(sequences)
    logits, apart = guide.compare(student.model, batch, torch.float32)
    torch.testing.assert_close(logits, target_logits(student.model, batch))
    cosines = []
    for layer, its in guide.pairs:
        for one in sequences:
            ids = torch.from_numpy(one.tokens.astype(np.int64))[None]
            mine = after(student.model, layer, ids)[one.is_target[1:].nonzero()[0]]
            told = after(guide.teacher, its, ids)[one.is_target[1:].nonzero()[0]]
            cosines.append(torch.cosine_similarity(mine, told, dim=-1))
    count = len(torch.cat(cosines))
    assert count == 2 * batch.token_count
    assert value(apart) == pytest.approx(float(1 - torch.cat(cosines).mean()), rel=1e-4)


@torch.no_grad()
def after(model, layer: int, ids):
    """States [T, h] after a layer of a model, without hooks of ours."""
    seen = model.model(ids, use_cache=False, output_hidden_states=True).hidden_states
    if layer + 1 < len(model.model.layers):
        return seen[layer + 1][0]
    made = []
    handle = model.model.norm.register_forward_pre_hook(lambda _, given: made.append(given[0]))
    model.model(ids, use_cache=False)
    handle.remove()
    return made[0][0]


def test_rows_in_several_passes_give_the_same_states():
    student = student_of(layers=2, hidden=32)
    guide = attach(student, 2)
    sequences = sorted(pruning_suite.make_sequences(12), key=lambda one: len(one.tokens))
    longer = replace(
        sequences[-1],
        tokens=np.resize(sequences[-1].tokens, 60),
        is_target=np.resize(sequences[-1].is_target, 60),
    )
    rising = [*sequences, longer]
    falling = rising[::-1]
    (_, one), (_, other) = (
        guide.compare(student.model, collate(some), torch.float32) for some in (rising, falling)
    )
    assert value(one) == pytest.approx(value(other), rel=1e-4)


def test_a_narrower_cut_learns_a_projection_that_begins_with_its_channels():
    student = student_of(layers=4, hidden=16)
    guide = attach(student, 4)
    channels = student.guide.channels
    x = torch.randn(3, 16)
    placed = torch.zeros(3, 32)
    placed[:, channels] = x
    torch.testing.assert_close(student.model.state_projection(x), placed)
    batch = collate(pruning_suite.make_sequences())
    _, apart = guide.compare(student.model, batch, torch.float32)
    apart.backward()
    assert student.model.state_projection.weight.grad.abs().sum() > 0
    assert all(weight.grad is None for weight in guide.teacher.parameters())
    names = {name for name, _ in student.model.named_parameters()}
    detach(student)
    assert names - {name for name, _ in student.model.named_parameters()} == {
        "state_projection.weight"
    }
    assert student.guide is None


def test_an_adapter_on_a_cut_is_guided_too():
    student = student_of(layers=2, hidden=16, lora=LoraOptions(2, 4.0, 0.0, ()))
    guide = attach(student, 1)
    _, apart = guide.compare(student.model, collate(pruning_suite.make_sequences()), torch.float32)
    apart.backward()
    trained = [name for name, one in student.model.named_parameters() if one.requires_grad]
    assert all("lora_" in name or name == "state_projection.weight" for name in trained)
    detach(student)
    assert not hasattr(student.model, "state_projection")


def test_the_loss_of_a_step_is_twice_what_can_be_learned():
    sequences = suite.sequences_of(suite.texts(4))
    model = suite.make_model()
    guide = StateGuide(suite.make_model(seed=3), ((0, 1), (2, 2)))
    for kind in ("sampled", "top_k"):
        batch = collate(sequences, bank_of(sequences, kind))
        plain = distillation_loss(target_logits(model, batch), batch, OPTIONS, kind)
        alone = guided_loss(model, batch, None, OPTIONS, kind, dtype=torch.float32)
        assert value(alone) == pytest.approx(value(plain))
        floor = float(entropy(batch.targets)) if kind == "sampled" else 0.0
        found = guided_loss(model, batch, guide, OPTIONS, kind, dtype=torch.float32)
        assert value(found) == pytest.approx(2 * value(plain) - floor, rel=1e-4)


@pytest.fixture(scope="module")
def run(home, blobs):
    around = Surroundings(cache_dir=home / "cache", catalogue=suite.make_catalogue(home, layers=6))

    def go(asked: student_pb2.TrainRequest):
        folder = RunDir.of(home / "runs", suite.PROJECT, asked.run_id)
        folder.create(asked)
        made = Training(asked.project, blobs, folder.next_writer(), lambda: None, around)
        result = train(made, asked)
        return getattr(result, str(result.WhichOneof("outcome")))

    return go


@pytest.fixture(scope="module")
def targets(blobs):
    """Draws of the model itself, as it is."""
    model = suite.make_model(layers=6)
    return suite.put_targets(blobs, suite.sequences_of(suite.texts()), "sampled", teacher=model)


@pytest.fixture(scope="module")
def importance(run, blobs):
    texts = suite.put_records(blobs, suite.texts())
    recipe = student_pb2.ImportanceRecipe(
        student=suite.MODEL, text_shards=[texts], sequence_length=32
    )
    asked = student_pb2.TrainRequest(project=suite.PROJECT, run_id="measured", importance=recipe)
    return run(asked).importance


def shaped(importance=None, **more) -> student_pb2.PruneCut:
    """A cut to a third of the layers and half of the width."""
    shape = student_pb2.PrunedShape(layers=2, hidden_size=16)
    return student_pb2.PruneCut(shape=shape, importance=importance, **more)


def test_a_deep_cut_trains_on_states_and_is_a_plain_model_afterwards(
    run, blobs, targets, importance
):
    digests = []
    for name, layers in (("none", 0), ("two", 2), ("again", 2)):
        options = suite.training(intermediate_states=layers)
        asked = suite.request(
            f"deep-{name}", target_shards=[targets], cut=shaped(importance), training=options
        )
        result = run(asked)
        digests.append(result.weights_digest)
        record = LanguageModelRecord.from_bytes(blobs.get(suite.PROJECT, result.model.digest))
        assert record.card["training"].get("intermediate_states", 0) == layers
        report = json.loads(blobs.get(suite.PROJECT, result.report.digest))
        kept = report["settings"]["cut"]["shape"]["parameters"]
        assert report["settings"]["parameters"] == kept  # the projection is gone
    assert digests[0] != digests[1] == digests[2]


@pytest.mark.parametrize("control", ["random", "from_random_weights"])
def test_controls_are_guided_as_well(run, targets, control):
    made = shaped(seed=1, **{control: True})
    options = suite.training(intermediate_states=2, max_steps=2)
    asked = suite.request(f"of-{control}", target_shards=[targets], cut=made, training=options)
    assert run(asked).weights_digest


def test_a_worker_that_takes_over_ends_with_the_same_weights(home, run, targets, importance):
    def asked(run_id: str):
        options = suite.training(intermediate_states=2, checkpoint_steps=4)
        return suite.request(
            run_id, target_shards=[targets], cut=shaped(importance), training=options
        )

    whole = run(asked("whole"))
    broken = asked("broken")
    folder = RunDir.of(home / "runs", suite.PROJECT, broken.run_id)
    folder.create(broken)
    first = folder.next_writer()

    def ring() -> None:  # another worker takes over after the first checkpoint
        if first.newest_folder("training") is not None:
            raise KeyboardInterrupt

    around = Surroundings(cache_dir=home / "cache", catalogue=home / "catalogue.toml")
    blobs = BlobStore(str(home / "blobs"))
    with pytest.raises(KeyboardInterrupt):
        train(Training(suite.PROJECT, blobs, first, ring, around), broken)
    assert run(broken).weights_digest == whole.weights_digest


REF = items_pb2.BlobRef(digest="0" * 64)
SHAPE = student_pb2.PrunedShape(layers=2)


@pytest.mark.parametrize(
    ("recipe", "match"),
    [
        ({"target_shards": [REF]}, "give a cut"),
        ({"target_shards": [REF], "keep_layers": [0]}, "give a cut"),
        ({"text_shards": [REF], "cut": True}, "weighs as much as the distillation loss"),
        (
            {"target_shards": [REF], "cut": True, "loss": "LANGUAGE_LOSS_CROSS_ENTROPY"},
            "weighs as much as the distillation loss",
        ),
    ],
)
def test_states_of_nothing_are_refused_unread(recipe, match):
    recipe = dict(recipe)
    loss = recipe.pop("loss", "LANGUAGE_LOSS_UNSPECIFIED")
    if recipe.pop("cut", False):
        recipe["cut"] = student_pb2.PruneCut(random=True, shape=SHAPE)
    options = suite.training(intermediate_states=2, loss=language_pb2.LanguageLoss.Value(loss))
    asked = suite.request("refused", training=options, **recipe).language
    with pytest.raises(InvalidInput, match=match) as caught:
        check_language(asked)
    assert caught.value.field == "training.intermediate_states"
