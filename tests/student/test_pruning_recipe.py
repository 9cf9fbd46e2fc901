"""The importance recipe, and language recipes that cut by what it found, in this process."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from stillhouse.common.v1 import items_pb2, language_pb2
from stillhouse.student.v1 import student_pb2

from services.common.catalogue import load_catalogue
from services.common.errors import InvalidInput, NotFound, Precondition
from services.common.model_records import LanguageModelRecord
from services.common.texts import TextRecord
from services.student.language.data import collate
from services.student.language.requests import check_language
from services.student.pruning.architecture import shape_of
from services.student.pruning.importance import measure_importance
from services.student.pruning.requests import check_importance
from services.student.pruning.scores import Importance
from services.student.recipes import Surroundings, Training, train
from services.student.rundir import RunDir
from services.torch_common.language.files import ModelSource
from services.torch_common.language.loading import load_language_model
from tests.student import language_suite as suite

ADAPTER = "tuned"
pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning"),
]


@pytest.fixture(scope="module")
def around(home):
    return Surroundings(cache_dir=home / "cache", catalogue=suite.make_catalogue(home))


@pytest.fixture(scope="module")
def texts(blobs):
    return suite.put_records(blobs, suite.texts())


@pytest.fixture(scope="module")
def run(home, blobs, around):
    """Train a request in this process; gives the result."""

    def go(asked: student_pb2.TrainRequest):
        folder = RunDir.of(home / "runs", suite.PROJECT, asked.run_id)
        folder.create(asked)
        made = Training(asked.project, blobs, folder.next_writer(), lambda: None, around)
        result = train(made, asked)
        go.events = folder.events()[0]  # of all workers of the run
        return getattr(result, str(result.WhichOneof("outcome")))

    return go


def importance_request(run_id: str, **recipe) -> student_pb2.TrainRequest:
    recipe = {"student": suite.MODEL, "sequence_length": 32, **recipe}
    return student_pb2.TrainRequest(
        project=suite.PROJECT, run_id=run_id, importance=student_pb2.ImportanceRecipe(**recipe)
    )


def share(value: float) -> student_pb2.PruneBudget:
    return student_pb2.PruneBudget(non_embedding_share=value)


@pytest.fixture(scope="module")
def found(run, texts):
    return run(
        importance_request(
            "measured",
            text_shards=[texts],
            budget=share(0.6),
            layer_perplexity=True,
            provenance={"dataset": "patterns"},
        )
    )


def read(blobs, ref) -> bytes:
    return blobs.get(suite.PROJECT, ref.digest)


def report_of(blobs, result) -> dict:
    return json.loads(read(blobs, result.report))


def test_importance_is_that_of_the_model_on_the_text(blobs, found):
    stored = Importance.from_bytes(read(blobs, found.importance))
    sequences = suite.sequences_of(suite.texts())
    again = measure_importance(suite.make_model(), [collate(sequences)])
    assert (stored.sequences, stored.tokens) == (again.sequences, again.tokens)
    torch.testing.assert_close(stored.neurons, again.neurons, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(stored.layers, again.layers, rtol=1e-4, atol=1e-6)
    assert len(stored.perplexities) == 4


def test_candidates_say_their_exact_size(blobs, found):
    base = shape_of(suite.make_model())
    assert found.candidates
    for one in found.candidates:
        sizes = {name: getattr(one.shape, name) for name in ("layers", "hidden_size")}
        sizes |= {
            name: getattr(one.shape, name) for name in ("intermediate_size", "attention_heads")
        }
        shape = replace(base, **sizes)
        assert one.parameters == shape.parameters
        assert one.non_embedding_parameters == shape.non_embedding_parameters
        assert one.non_embedding_parameters <= 0.6 * base.non_embedding_parameters
        assert not one.shape.kept_layers
    costs = [one.prior_cost for one in found.candidates]
    assert costs == sorted(costs)


def test_the_report_tells_it_to_people(blobs, found):
    report = report_of(blobs, found)
    assert report["shape"]["parameters"] == shape_of(suite.make_model()).parameters
    assert [set(one) for one in report["layers"]] == [{"layer", "score", "perplexity_without"}] * 3
    scores, without = (
        [one[name] for one in report["layers"]] for name in ("score", "perplexity_without")
    )
    assert report["rank_correlation"] == pytest.approx(spearmanr(scores, without).statistic)
    assert report["provenance"] == {"dataset": "patterns"}
    assert report["budget"] == {"non_embedding_share": 0.6}
    assert report["calibration"]["sequences"] == len(suite.sequences_of(suite.texts()))
    for told, one in zip(report["candidates"], found.candidates, strict=True):
        assert told["shape"]["parameters"] == one.parameters
        assert len(told["kept_layers"]) == one.shape.layers
        assert told["rounds"][-1] == told["non_embedding_share"] <= 0.6


def test_equal_recipes_give_equal_bytes_and_a_second_worker_measures_nothing(run, texts, found):
    asked = importance_request(
        "twice-measured", text_shards=[texts], budget=share(0.6), layer_perplexity=True
    )
    counts = []
    for _ in range(2):  # the first worker's phases are still there: nothing has ended the run
        assert run(asked).importance == found.importance
        stages = [event.progress.stage for event in run.events]
        counts.append([stages.count(one) for one in ("measuring importance", "leaving out layers")])
    assert counts == [[1, 4], [1, 4]]


def test_fewer_sequences_are_spread_over_the_text(run, blobs, texts):
    result = run(importance_request("few", text_shards=[texts], max_sequences=3))
    stored = Importance.from_bytes(read(blobs, result.importance))
    sequences = suite.sequences_of(suite.texts())
    some = [sequences[at] for at in (0, round((len(sequences) - 1) / 2), -1)]
    again = measure_importance(suite.make_model(), [collate(some)])
    assert stored.sequences == 3
    torch.testing.assert_close(stored.neurons, again.neurons, rtol=1e-4, atol=1e-6)
    assert not result.candidates
    assert stored.perplexities is None


def cut_of(found, shape=None, **options) -> student_pb2.PruneCut:
    shape = shape or found.candidates[0].shape
    return student_pb2.PruneCut(importance=found.importance, shape=shape, **options)


def loaded(home, blobs, around, result, name="made"):
    blobs.put_ref(suite.PROJECT, f"models/{name}", read(blobs, result.model))
    source = ModelSource(load_catalogue([around.catalogue]), blobs, home / "cache")
    return load_language_model(source, suite.PROJECT, name, precision="float32")


def test_a_cut_model_trains_and_has_the_promised_size(run, home, blobs, around, texts, found):
    exam = student_pb2.LanguageEvaluation(
        text_shards=[suite.put_records(blobs, suite.texts(6, split="test"))]
    )
    for at, one in enumerate(found.candidates):
        result = run(
            suite.request(
                f"cut-{at}", text_shards=[texts], cut=cut_of(found, one.shape), evaluation=exam
            )
        )
        model = loaded(home, blobs, around, result)
        assert model.parameter_count == one.parameters
        assert shape_of(model.model).hidden_size == one.shape.hidden_size
        report = report_of(blobs, result)
        assert report["change"]["cross_entropy"]["high"] < 0
        record = LanguageModelRecord.from_bytes(read(blobs, result.model))
        card = record.card["cut"]
        assert (record.form, record.base) == ("checkpoint", "")
        assert card == report["settings"]["cut"]
        assert card["chosen_by"] == "importance"
        assert card["importance"] == found.importance.digest
        assert card["shape"]["parameters"] == report["settings"]["parameters"] == one.parameters
        assert card["from_shape"]["layers"] == 3
        told = report_of(blobs, found)["candidates"][at]
        assert card["kept_layers"] == told["kept_layers"]


def test_a_cut_model_can_be_cut_again(run, home, blobs, around, texts, found):
    shape = student_pb2.PrunedShape(hidden_size=16)
    first = run(suite.request("once", text_shards=[texts], cut=cut_of(found, shape)))
    assert loaded(home, blobs, around, first, "once").model.config.hidden_size == 16
    again = run(importance_request("again", student="once", text_shards=[texts]))
    cut = cut_of(again, student_pb2.PrunedShape(kept_layers=[0, 2], attention_heads=2))
    second = run(suite.request("twice", student="once", text_shards=[texts], cut=cut))
    model = loaded(home, blobs, around, second, "twice").model
    base = shape_of(suite.make_model())
    wanted = replace(base, hidden_size=16, layers=2, attention_heads=2)
    assert shape_of(model) == wanted
    assert model.config.rms_norm_eps == suite.make_model().config.rms_norm_eps * 2


def test_rounds_go_on_from_a_model_without_a_name(run, home, blobs, around, texts):
    budget = student_pb2.PruneBudget(non_embedding_share=0.36, rounds=2)
    first = run(importance_request("hop-1", text_shards=[texts], budget=budget))
    report = report_of(blobs, first)
    whole = report["shape"]["non_embedding_parameters"]
    assert set(report["reachable"]) <= {"width", "depth", "mixed"}
    wide = next(one for one in first.candidates if one.kind == student_pb2.PRUNE_KIND_WIDTH)
    assert 0.4 * whole < wide.non_embedding_parameters <= 0.6 * whole
    hop = run(suite.request("hop-1-cut", text_shards=[texts], cut=cut_of(first, wide.shape)))
    asked = student_pb2.PruneBudget(non_embedding_share=0.36, share_of_parameters=whole)
    name = hop.model.digest
    second = run(importance_request("hop-2", student=name, text_shards=[texts], budget=asked))
    assert "reachable" not in report_of(blobs, second)
    best = second.candidates[0]
    assert best.non_embedding_parameters <= 0.36 * whole
    last = run(suite.request("hop-2-cut", student=name, text_shards=[texts], cut=cut_of(second)))
    model = loaded(home, blobs, around, last, "hopped")
    assert model.parameter_count == best.parameters
    assert LanguageModelRecord.from_bytes(read(blobs, last.model)).card["student"] == name
    assert "hop-1" not in list(blobs.list_refs(suite.PROJECT, "models"))


def test_an_adapter_on_a_model_without_a_name_is_merged(run, blobs, texts, found):
    whole = run(suite.request("nameless", text_shards=[texts], cut=cut_of(found)))
    options = suite.training(max_steps=2, lora=language_pb2.Lora(rank=2))
    made = run(
        suite.request(
            "on-nameless", student=whole.model.digest, text_shards=[texts], training=options
        )
    )
    record = LanguageModelRecord.from_bytes(read(blobs, made.model))
    assert (record.form, record.base) == ("checkpoint", "")
    with pytest.raises(NotFound, match="no blob"):
        run(suite.request("nobody", student="0" * 64, text_shards=[texts]))
    with pytest.raises(InvalidInput):
        run(suite.request("no-record", student=texts.digest, text_shards=[texts]))


def test_an_adapter_on_a_cut_model_is_merged(run, home, blobs, around, texts, found):
    cut = cut_of(found, student_pb2.PrunedShape(intermediate_size=24, layers=2))
    options = suite.training(max_steps=3, lora=language_pb2.Lora(rank=2))
    result = run(suite.request("lora", text_shards=[texts], cut=cut, training=options))
    assert LanguageModelRecord.from_bytes(read(blobs, result.model)).form == "checkpoint"
    model = loaded(home, blobs, around, result)
    base = shape_of(suite.make_model())
    wanted = replace(base, intermediate_size=24, layers=2).parameters
    assert model.parameter_count == wanted


@pytest.mark.parametrize("control", ["random", "from_random_weights"])
def test_controls_have_the_same_size_and_follow_the_seed(run, blobs, texts, found, control):
    shape, digests = found.candidates[0].shape, []
    for at, seed in enumerate((1, 1, 2)):
        cut = student_pb2.PruneCut(shape=shape, seed=seed, **{control: True})
        options = suite.training(max_steps=1)
        asked = suite.request(f"{control}-{at}", text_shards=[texts], cut=cut, training=options)
        result = run(asked)
        digests.append(result.weights_digest)
        card = LanguageModelRecord.from_bytes(read(blobs, result.model)).card["cut"]
        assert card["seed"] == seed
        assert card["shape"]["parameters"] == found.candidates[0].parameters
        assert "importance" not in card
    assert digests[0] == digests[1] != digests[2]


def test_what_a_cut_costs_can_be_measured_alone(run, blobs, found):
    exam = student_pb2.LanguageEvaluation(
        text_shards=[suite.put_records(blobs, suite.texts(6, split="test"))]
    )
    result = run(suite.request("alone", cut=cut_of(found), evaluate_only=True, evaluation=exam))
    report = report_of(blobs, result)
    assert report["settings"]["parameters"] == found.candidates[0].parameters
    assert report["settings"]["cut"]["shape"]["parameters"] == found.candidates[0].parameters


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"student": ""}, "student"),
        ({"text_shards": []}, "text_shards"),
        ({"text_shards": [items_pb2.BlobRef(digest="../x")]}, "text_shards"),
        ({"tokenizer_digest": "x"}, "tokenizer_digest"),
        ({"sequence_length": -1}, "sequence_length"),
        ({"max_sequences": -1}, "max_sequences"),
        ({"max_candidates": 101}, "max_candidates"),
        ({"budget": student_pb2.PruneBudget()}, "budget"),
        ({"budget": share(1.0)}, "budget.non_embedding_share"),
        ({"budget": share(float("nan"))}, "budget.non_embedding_share"),
        ({"budget": student_pb2.PruneBudget(max_bytes=-1)}, "budget.max_bytes"),
        ({"budget": student_pb2.PruneBudget(max_latency_ms=-1)}, "budget.max_latency_ms"),
        ({"budget": student_pb2.PruneBudget(max_bytes=9, rounds=-1)}, "budget.rounds"),
        ({"budget": student_pb2.PruneBudget(max_bytes=9, rounds=17)}, "budget.rounds"),
        ({"budget": student_pb2.PruneBudget(max_latency_ms=9, rounds=2)}, "budget.rounds"),
        (
            {"budget": student_pb2.PruneBudget(max_bytes=9, share_of_parameters=-1)},
            "budget.share_of_parameters",
        ),
        (
            {"budget": student_pb2.PruneBudget(max_bytes=9, precision="int8")},
            "budget.precision",
        ),
    ],
)
def test_malformed_importance_recipes_are_refused_unread(change, field):
    ref = items_pb2.BlobRef(digest="0" * 64)
    asked = importance_request("malformed", **{"text_shards": [ref], **change})
    with pytest.raises(InvalidInput) as caught:
        check_importance(asked.importance)
    assert caught.value.field == field


SOME = student_pb2.PrunedShape(layers=2)
REF = items_pb2.BlobRef(digest="0" * 64)


@pytest.mark.parametrize(
    ("cut", "field"),
    [
        ({}, "cut.importance"),
        ({"shape": SOME}, "cut.importance"),
        ({"shape": SOME, "importance": items_pb2.BlobRef(digest="x")}, "cut.importance"),
        ({"importance": REF}, "cut.shape"),
        ({"random": True, "from_random_weights": True, "shape": SOME}, "cut.random"),
        ({"random": True, "shape": student_pb2.PrunedShape(layers=-1)}, "cut.shape.layers"),
        ({"random": True, "shape": student_pb2.PrunedShape(kept_layers=[2, 1])}, "cut.shape"),
    ],
)
def test_malformed_cuts_are_refused_unread(cut, field):
    recipe = suite.request("malformed", cut=student_pb2.PruneCut(**cut)).language
    recipe.text_shards.append(REF)
    with pytest.raises(InvalidInput) as caught:
        check_language(recipe)
    assert caught.value.field == field


def test_cuts_that_contradict_the_recipe_are_refused():
    cut = student_pb2.PruneCut(shape=SOME, from_random_weights=True)
    both = suite.request("both", cut=cut, keep_layers=[0], text_shards=[REF]).language
    with pytest.raises(InvalidInput, match="either cut or keep_layers"):
        check_language(both)
    options = suite.training(lora=language_pb2.Lora(rank=2))
    adapted = suite.request("adapted", cut=cut, training=options, text_shards=[REF]).language
    with pytest.raises(InvalidInput, match="nothing to adapt"):
        check_language(adapted)


def test_too_little_text_and_impossible_budgets_are_refused(run, blobs, texts):
    one = suite.put_records(blobs, [TextRecord("a", text="only one sequence")])
    none = suite.put_records(blobs, [TextRecord("a", text="short")])
    answer = suite.put_records(blobs, [TextRecord("a", prompt="1 + 1 =", answer=" 2")])
    token = suite.put_records(blobs, [TextRecord("a", text="a")])
    whole = student_pb2.PruneBudget(max_parameters=10**9)
    for name, recipe, error, match in (
        ("one", {"text_shards": [one]}, InvalidInput, "1 sequences"),
        ("none", {"text_shards": [none]}, InvalidInput, "0 sequences"),
        ("token", {"text_shards": [token]}, InvalidInput, "at least 2 sequences"),
        ("answer", {"text_shards": [answer]}, InvalidInput, "at least 2 sequences"),
        ("max", {"text_shards": [texts], "max_sequences": 1}, InvalidInput, "at least 2"),
        ("length", {"text_shards": [texts], "sequence_length": 1}, InvalidInput, "below 8"),
        ("least", {"text_shards": [texts], "budget": share(1e-9)}, InvalidInput, "least possible"),
        ("whole", {"text_shards": [texts], "budget": whole}, InvalidInput, "nothing is"),
        ("blob", {"text_shards": [REF]}, NotFound, "no blob"),
        ("model", {"text_shards": [texts], "student": "tiny"}, NotFound, "tiny"),
        ("nan", {"text_shards": [texts], "student": suite.BROKEN}, Precondition, "damaged"),
        (
            "tokenizer",
            {"text_shards": [texts], "tokenizer_digest": "0" * 64},
            Precondition,
            "tokenizer",
        ),
    ):
        with pytest.raises(error, match=match):
            run(importance_request(f"refused-{name}", **recipe))


def test_another_architecture_is_refused_by_name(home, blobs, around, texts, found):
    from transformers import GPT2Config, GPT2LMHeadModel

    folder = home / "other"
    sizes = {"vocab_size": 264, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 96}
    GPT2LMHeadModel(GPT2Config(**sizes)).save_pretrained(folder / "gpt")
    suite.make_tokenizer().save_pretrained(folder / "gpt")
    (folder / "catalogue.toml").write_text(
        '[entries.gpt]\nkind = "language-model"\nloader = "transformers"\n'
        f'licence = "CC0-1.0"\nsource = "file:{folder / "gpt"}"\n'
    )
    elsewhere = replace(around, catalogue=folder / "catalogue.toml")
    cut = cut_of(found, SOME)
    for asked in (
        importance_request("gpt", student="gpt", text_shards=[texts], budget=share(0.6)),
        suite.request("gpt-cut", student="gpt", text_shards=[texts], cut=cut),
    ):
        run_dir = RunDir.of(home / "runs", suite.PROJECT, asked.run_id)
        run_dir.create(asked)
        made = Training(suite.PROJECT, blobs, run_dir.next_writer(), lambda: None, elsewhere)
        with pytest.raises(Precondition, match="type gpt2 cannot be pruned; llama and mistral can"):
            train(made, asked)
        stages = {event.progress.stage for event in run_dir.events()[0]}
        assert stages <= {"loading the model", "loading the student"}


def test_cuts_that_the_model_cannot_have_are_refused(run, blobs, texts, found):
    def shaped(**sizes):
        return cut_of(found, student_pb2.PrunedShape(**sizes))

    other = Importance.from_bytes(read(blobs, found.importance))
    foreign = replace(other, model_digest="0" * 64).to_bytes()
    small = replace(other, channels=other.channels[:16]).to_bytes()
    for name, cut, error, match in (
        ("heads", shaped(attention_heads=3), InvalidInput, "cut.shape.attention_heads: 3 in 2"),
        ("hidden", shaped(hidden_size=18), InvalidInput, "cut.shape.hidden_size: 18 is no"),
        ("layers", shaped(layers=4), InvalidInput, "more than the model's 3"),
        ("kept", shaped(kept_layers=[1, 3]), InvalidInput, "layers 0 to 2"),
        ("count", shaped(kept_layers=[1], layers=2), InvalidInput, "names 1 layers"),
        ("absent", student_pb2.PruneCut(importance=REF, shape=SOME), NotFound, "no blob"),
        ("text", student_pb2.PruneCut(importance=texts, shape=SOME), InvalidInput, "safetensors"),
        ("foreign", put_cut(blobs, foreign), Precondition, "another model"),
        ("small", put_cut(blobs, small), Precondition, "hidden_size"),
    ):
        with pytest.raises(error, match=match):
            run(suite.request(f"refused-cut-{name}", text_shards=[texts], cut=cut))


def put_cut(blobs, data: bytes) -> student_pb2.PruneCut:
    ref = items_pb2.BlobRef(digest=blobs.put(suite.PROJECT, data))
    return student_pb2.PruneCut(importance=ref, shape=SOME)


def test_an_adapter_is_not_measured_or_cut(run, blobs, texts, found):
    options = suite.training(max_steps=1, lora=language_pb2.Lora(rank=2))
    made = run(suite.request("adapter", text_shards=[texts], training=options))
    blobs.put_ref(suite.PROJECT, f"models/{ADAPTER}", read(blobs, made.model))
    with pytest.raises(Precondition, match="adapters merged"):
        run(importance_request("on-adapter", student=ADAPTER, text_shards=[texts]))
    with pytest.raises(Precondition, match="start from tiny-llama"):
        run(suite.request("cut-adapter", student=ADAPTER, text_shards=[texts], cut=cut_of(found)))


def test_scores_are_float32(blobs, found):
    stored = Importance.from_bytes(read(blobs, found.importance))
    assert all(
        array.dtype == np.float32
        for name, array in stored.to_arrays().items()
        if name not in ("counts", "model")
    )
    assert len(stored.model_digest) == 64
