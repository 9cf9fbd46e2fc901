"""The service as a process: train, predict, explain, tune, evaluate, export; what it refuses."""

from __future__ import annotations

import json

import grpc
import numpy as np
import onnxruntime
import pytest
from stillhouse.student.v1 import student_pb2

from services.common.errors import InvalidInput
from services.common.tensors import from_message, unpack_arrays
from services.student.artefacts import probabilities, read_student
from tests.student import suite
from tests.student.suite import CLASSES, PROJECT

UP, DOWN = student_pb2.DIRECTION_UP, student_pb2.DIRECTION_DOWN


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    with suite.service(tmp_path_factory.mktemp("student")) as service:
        yield service


@pytest.fixture(scope="module")
def data(running):
    return suite.make_data(running.blobs)


@pytest.fixture(scope="module")
def trained(running, data):
    """The result of a concept recipe."""
    return running.train(suite.concept_request(data, "first"))[-1].result.concept


@pytest.fixture(scope="module")
def student(running, trained):
    return read_student(running.blobs, PROJECT, trained.student)


@pytest.fixture(scope="module")
def report(running, trained):
    return json.loads(running.blobs.get(PROJECT, trained.report.digest))


def refit(running, ref, *edits, **options):
    messages = [
        student_pb2.ConceptEdit(label=label, concept=concept, direction=direction, factor=factor)
        for label, concept, direction, factor in edits
    ]
    request = student_pb2.RefitRequest(project=PROJECT, student=ref, edits=messages, **options)
    return running.stub.Refit(request)


def used_concept(student, label: str, rank: int = 0) -> str:
    """The concept with the `rank`-th largest weight of a class."""
    weights = np.abs(student.weight[CLASSES.index(label)])
    return student.concepts[int(np.argsort(-weights)[rank])]


def test_student_meets_its_budget_and_agrees_with_the_teacher(data, student, report):
    assert student.classes == list(CLASSES)
    assert student.nec == 4.0
    assert report["student"]["fidelity"]["low"] > 0.5  # four classes: chance is 0.25
    test = data.split == "test"
    assert report["n_test"] == test.sum()
    assert report["n_train"] + report["n_val"] == (~test).sum() - 1  # one item has no regions


def test_report_holds_all_contenders_at_both_budgets(report):
    names = {"student", "random_control", "random_words", "sparse_probe", "dense_probe"}
    for part in (report, report["at_nec_10"]):
        for name in names:
            for metric in ("fidelity", "accuracy", "nec"):
                found = part[name][metric]
                assert found["low"] <= found["value"] <= found["high"]
        assert set(part["paired_random"]) == {"fidelity", "accuracy"}
    assert set(report["curves"]) == names - {"dense_probe"}
    assert np.sum(report["confusion"]["counts"]) == report["n_test"]
    assert set(report["per_class"]) == set(CLASSES)
    assert report["out_of_fold"]["fidelity"]["value"] > 0.5


def test_report_says_what_the_student_does(running, data, trained, report):
    """Fidelity in the report is what Predict gives on the test items."""
    test = np.flatnonzero(data.split == "test")
    items = [suite.region_input(data.region_rows[i], str(i)) for i in test]
    request = student_pb2.PredictRequest(project=PROJECT, student=trained.student, items=items)
    response = running.stub.Predict(request)
    predicted = [list(CLASSES).index(one.prediction.label) for one in response.results]
    agree = np.mean(np.array(predicted) == data.logits[test].argmax(1))
    assert report["student"]["fidelity"]["value"] == pytest.approx(agree, abs=1e-9)
    for one in response.results:
        assert from_message(one.prediction.probabilities).sum() == pytest.approx(1, abs=1e-5)
    spent = response.timings
    assert min(spent.compute_ms, spent.queue_ms, spent.encode_ms) > 0
    assert spent.batch_size == len(items)


def test_same_recipe_under_another_id_gives_the_same_bytes(running, data, trained):
    again = running.train(suite.concept_request(data, "again"))[-1].result.concept
    assert again == trained


def test_seed_changes_controls_but_not_the_student(running, data, trained):
    other = running.train(suite.concept_request(data, "seed", seed=3))[-1].result.concept
    assert other.student.weights_digest == trained.student.weights_digest
    assert other.report.digest != trained.report.digest


def test_contributions_add_up_and_name_their_region(running, data, trained, student):
    items = [suite.region_input(data.region_rows[i], f"item {i}") for i in range(20)]
    request = student_pb2.ExplainRequest(
        project=PROJECT, student=trained.student, items=items, top=2
    )
    predict = student_pb2.PredictRequest(project=PROJECT, student=trained.student, items=items)
    predictions = running.stub.Predict(predict).results
    for result, prediction in zip(running.stub.Explain(request).results, predictions, strict=True):
        found = result.explanation
        assert result.item_id == prediction.item_id
        assert found.label == prediction.prediction.label
        parts = [one.contribution for one in found.contributions]
        assert found.intercept + sum(parts) + found.rest == found.logit
        logits = from_message(prediction.prediction.logits)
        assert found.logit == pytest.approx(float(logits.max()), abs=1e-4)
        assert len(parts) == 2
        assert abs(parts[0]) >= abs(parts[1])


def test_explained_region_is_the_one_that_holds_the_concept(running, trained, student):
    centred = student.bank.text.astype(np.float32) - student.bank.text_mean
    label = CLASSES[0]
    word = used_concept(student, label)
    shown = centred[student.concepts.index(word)] + student.bank.image_mean
    rows = np.stack([student.bank.image_mean, -shown, shown, -shown]).astype(np.float16)
    request = student_pb2.ExplainRequest(
        project=PROJECT,
        student=trained.student,
        items=[suite.region_input(rows)],
        label=label,
        top=50,
    )
    (result,) = running.stub.Explain(request).results
    found = {one.concept: one for one in result.explanation.contributions}[word]
    assert found.region == 2
    assert found.presence == pytest.approx(1, abs=1e-3)
    assert result.explanation.rest == 0


def test_bad_items_fail_alone(running, data, trained):
    good = data.region_rows[0]
    nan = good.copy()
    nan[0, 0] = np.nan
    short = suite.region_input(good)
    short.embeddings.data = short.embeddings.data[:-1]
    bad = {
        "narrow": suite.region_input(good[:, :-1]),
        "none": suite.region_input(good[:0]),
        "flat": suite.region_input(good[0]),
        "wide type": suite.region_input(good.astype(np.float32)),
        "nan": suite.region_input(nan),
        "short": short,
        "empty": student_pb2.RegionInput(),
        "long name": suite.region_input(good, "x" * 1000),
    }
    for name, item in bad.items():
        item.item_id = item.item_id or name
    items = [suite.region_input(good, "first"), *bad.values(), suite.region_input(good, "last")]
    request = student_pb2.PredictRequest(project=PROJECT, student=trained.student, items=items)
    results = running.stub.Predict(request).results
    assert results[0].prediction.logits == results[-1].prediction.logits
    for result in results[1:-1]:
        assert suite.status_code(result.error) == grpc.StatusCode.INVALID_ARGUMENT, result


def test_edit_moves_the_weight_within_its_box(running, trained, student):
    label = CLASSES[1]
    word = used_concept(student, label)
    row, column = CLASSES.index(label), student.concepts.index(word)
    response = refit(running, trained.student, (label, word, UP, 2.0), random_edits=4)
    (effect,) = response.effects
    before = float(student.weight[row, column])
    assert effect.weight_before == before
    assert (effect.box_low, effect.box_high) == (before + abs(before), before + 2 * abs(before))
    assert effect.box_low <= effect.weight_after <= effect.box_high
    edited = read_student(running.blobs, PROJECT, response.student)
    assert float(edited.weight[row, column]) == effect.weight_after
    others = np.delete(np.arange(len(CLASSES)), row)
    np.testing.assert_array_equal(edited.weight[others], student.weight[others])
    assert edited.card["parent"] == trained.student.weights_digest
    assert edited.card["edits"][0]["concept"] == word
    changes = {one.metric: one for one in response.changes}
    assert {"fidelity", "accuracy"} <= set(changes)
    for one in changes.values():
        assert one.change.low <= one.change.value <= one.change.high
        assert one.change.value == pytest.approx(one.after - one.before)
        assert one.HasField("random_change")


def test_unused_concept_is_measured_by_the_median_weight(running, trained, student):
    row = student.weight[2]
    word = student.concepts[int(np.flatnonzero(row == 0)[0])]
    response = refit(running, trained.student, (CLASSES[2], word, DOWN, 3.0), random_edits=-1)
    (effect,) = response.effects
    median = float(np.median(np.abs(row[row != 0]).astype(np.float64)))
    assert effect.box_low == pytest.approx(-4 * median)
    assert effect.box_high == pytest.approx(-2 * median)
    assert effect.box_low <= effect.weight_after <= effect.box_high
    assert not any(one.HasField("random_change") for one in response.changes)


def test_edits_of_one_call_hold_together(running, trained, student):
    label = CLASSES[0]
    words = [used_concept(student, label, rank) for rank in range(3)]
    edits = [(label, words[0], UP, 2.0), (label, words[1], DOWN, 1.5)]
    edits += [(CLASSES[3], words[2], UP, 4.0)]
    response = refit(running, trained.student, *edits)
    for effect in response.effects:
        assert effect.box_low <= effect.weight_after <= effect.box_high
    again = refit(running, trained.student, *edits)
    assert again == response


def test_an_edited_student_can_be_edited_and_evaluated(running, trained, student):
    label, word = CLASSES[1], used_concept(student, CLASSES[1])
    first = refit(running, trained.student, (label, word, UP, 2.0))
    second = refit(running, first.student, (label, word, DOWN, 2.0))
    assert second.effects[0].weight_before == first.effects[0].weight_after
    after = {one.metric: one.after for one in first.changes}
    before = {one.metric: one.before for one in second.changes}
    assert before["fidelity"] == after["fidelity"]  # the log has no gaps


def test_absurd_edit_hurts_and_says_so(running, trained, student):
    label, other = CLASSES[0], used_concept(student, CLASSES[2])
    response = refit(running, trained.student, (label, other, UP, 100.0))
    assert response.flipped_items > 0
    changes = {one.metric: one.change for one in response.changes}
    assert changes["fidelity"].high < 0
    assert any("falls" in warning for warning in response.warnings)


def test_evaluate_names_metrics_and_splits(running, data, trained, report):
    def evaluate(split: str) -> student_pb2.EvaluateResponse:
        request = student_pb2.EvaluateRequest(project=PROJECT, student=trained.student, split=split)
        return running.stub.Evaluate(request)

    test = evaluate("test")
    assert test.item_count == report["n_test"]
    assert test.nec == 4.0
    assert test.metrics["fidelity"].value == report["student"]["fidelity"]["value"]
    assert {f"recall/{name}" for name in CLASSES} <= set(test.metrics) | set(test.undefined)
    known = evaluate("train").item_count + evaluate("val").item_count
    assert known == report["n_train"] + report["n_val"] == evaluate("").item_count
    out_of_fold = report["out_of_fold"]["fidelity"]["value"]
    assert evaluate("").metrics["fidelity"].value == pytest.approx(out_of_fold)
    with pytest.raises(grpc.RpcError) as caught:
        evaluate("dev")
    assert suite.violations(caught.value) == ["split"]


def export(running, ref, form) -> dict[str, bytes]:
    request = student_pb2.ExportRequest(project=PROJECT, student=ref, format=form)
    files = running.stub.Export(request).files
    return {one.file_name: running.blobs.get(PROJECT, one.blob.digest) for one in files}


def test_exports_hold_the_student(running, data, trained, student):
    plain = export(running, trained.student, student_pb2.EXPORT_FORMAT_SAFETENSORS)
    np.testing.assert_array_equal(
        unpack_arrays(plain["student.safetensors"])["weight"], student.weight
    )
    assert json.loads(plain["student.json"])["concepts"] == data.words
    graph = export(running, trained.student, student_pb2.EXPORT_FORMAT_ONNX)["student.onnx"]
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    rows = data.region_rows[3]
    request = student_pb2.PredictRequest(
        project=PROJECT, student=trained.student, items=[suite.region_input(rows)]
    )
    ours = from_message(running.stub.Predict(request).results[0].prediction.logits)
    (logits,) = session.run(["logits"], {"regions": rows.astype(np.float32)})
    np.testing.assert_allclose(logits, ours, atol=1e-4)


def test_l1_recipe_keeps_its_lambda(running, data):
    request = suite.concept_request(data, "l1", nec=None, l1=0.03)
    ref = running.student(request)
    found = read_student(running.blobs, PROJECT, ref)
    assert found.card["lambda"] == 0.03
    assert 0 < found.nec < len(data.words)
    looser = suite.concept_request(data, "l1-looser", nec=None, l1=0.003)
    other = read_student(running.blobs, PROJECT, running.student(looser))
    assert np.abs(other.weight).sum() > np.abs(found.weight).sum()


def test_whole_image_recipe_reads_the_first_region_alone(running, data):
    ref = running.student(suite.concept_request(data, "whole", whole_image_only=True))
    first = data.region_rows[0]
    other = np.concatenate([first[:1], first[1:] * 0 + 1])
    items = [suite.region_input(first), suite.region_input(other)]
    request = student_pb2.PredictRequest(project=PROJECT, student=ref, items=items)
    one, two = running.stub.Predict(request).results
    assert one.prediction == two.prediction


def test_multi_label_data_get_a_bce_student(running):
    data = suite.make_data(running.blobs, multi_label=True)
    last = running.train(suite.concept_request(data, "multi"))[-1]
    trained = last.result.concept
    student = read_student(running.blobs, PROJECT, trained.student)
    assert student.loss == "bce"
    report = json.loads(running.blobs.get(PROJECT, trained.report.digest))
    for name in CLASSES:
        ap = report["per_class"][name]["ap"]
        assert ap["low"] <= ap["value"] <= ap["high"]
    assert 0.5 < report["mean_average_precision"]["student"] <= 1
    request = student_pb2.EvaluateRequest(project=PROJECT, student=trained.student, split="test")
    metrics = running.stub.Evaluate(request).metrics
    assert metrics["mean_average_precision"].value == pytest.approx(
        report["mean_average_precision"]["student"]
    )
    word = used_concept(student, CLASSES[0])
    response = refit(running, trained.student, (CLASSES[0], word, UP, 2.0))
    effect = response.effects[0]
    assert effect.box_low <= effect.weight_after <= effect.box_high


def test_linear_head_is_cross_fitted(running, data):
    recipe = suite.head_recipe(data)
    request = student_pb2.TrainRequest(project=PROJECT, run_id="head", linear_head=recipe)
    result = running.train(request)[-1].result.linear_head
    head = unpack_arrays(running.blobs.get(PROJECT, result.head.digest))
    card = json.loads(running.blobs.get(PROJECT, result.card.digest))
    known = np.flatnonzero(data.split != "test")
    assert head["weight"].shape == (len(CLASSES), suite.DIM)
    assert head["crossfit_logits"].shape == (len(known), len(CLASSES))
    assert head["crossfit_digests"].shape == (len(known), 32)
    features = np.stack([data.region_rows[i][0] for i in known]).astype(np.float32)
    fitted = features @ head["weight"].T + head["bias"]
    truth = data.hot[known]
    seen, unseen = (
        np.log(probabilities(logits.astype(np.float64), "softmax")[truth]).mean()
        for logits in (fitted, head["crossfit_logits"])
    )
    assert unseen < seen  # items that a fold has not seen are harder
    crossed = (head["crossfit_logits"].argmax(1) == truth.argmax(1)).mean()
    assert card["cross_validated_accuracy"]["value"] == pytest.approx(crossed)
    assert card["classes"] == list(CLASSES)


def unknown_student(trained) -> student_pb2.StudentRef:
    return student_pb2.StudentRef(weights_digest="0" * 64, card_digest=trained.student.card_digest)


def test_unknown_and_malformed_students(running, data, trained):
    item = suite.region_input(data.region_rows[0])
    for ref, code in (
        (unknown_student(trained), grpc.StatusCode.NOT_FOUND),
        (student_pb2.StudentRef(), grpc.StatusCode.INVALID_ARGUMENT),
        (student_pb2.StudentRef(weights_digest="../x"), grpc.StatusCode.INVALID_ARGUMENT),
    ):
        for method, request in (
            ("Predict", student_pb2.PredictRequest(items=[item])),
            ("Explain", student_pb2.ExplainRequest(items=[item])),
            ("Refit", student_pb2.RefitRequest()),
            ("Evaluate", student_pb2.EvaluateRequest()),
            ("Export", student_pb2.ExportRequest()),
        ):
            request.project = PROJECT
            request.student.CopyFrom(ref)
            with pytest.raises(grpc.RpcError) as caught:
                getattr(running.stub, method)(request)
            assert caught.value.code() == code, (method, caught.value.details())


def test_a_student_of_another_project_does_not_exist(running, data, trained):
    item = suite.region_input(data.region_rows[0])
    request = student_pb2.PredictRequest(project="other", student=trained.student, items=[item])
    with pytest.raises(grpc.RpcError) as caught:
        running.stub.Predict(request)
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND


def test_batches_have_a_limit(running, data, trained):
    items = [suite.region_input(data.region_rows[0])] * 257
    for count in (0, 257):
        request = student_pb2.PredictRequest(
            project=PROJECT, student=trained.student, items=items[:count]
        )
        with pytest.raises(grpc.RpcError) as caught:
            running.stub.Predict(request)
        assert suite.violations(caught.value) == ["items"]


@pytest.mark.parametrize(
    ("edits", "field", "text"),
    [
        ([], "edits", "needs 1 to"),
        ([("aple", "word 1", UP, 2.0)], "edits[0].label", "did you mean 'apple'"),
        ([("apple", "wurd 1", UP, 2.0)], "edits[0].concept", "did you mean 'word 1'"),
        ([("apple", "word 1", 0, 2.0)], "edits[0].direction", "up or down"),
        ([("apple", "word 1", 9, 2.0)], "edits[0].direction", "up or down"),
        ([("apple", "word 1", UP, 1.0)], "edits[0].factor", "more than 1"),
        ([("apple", "word 1", UP, -3.0)], "edits[0].factor", "more than 1"),
        ([("apple", "word 1", UP, 100.5)], "edits[0].factor", "at most 100"),
        ([("apple", "word 1", UP, float("nan"))], "edits[0].factor", "more than 1"),
        ([("apple", "word 1", UP, float("inf"))], "edits[0].factor", "more than 1"),
        (
            [("apple", "word 1", UP, 2.0), ("apple", "word 1", DOWN, 2.0)],
            "edits[1].concept",
            "twice in one call",
        ),
        ([("apple", f"word {k % 30}", UP, 2.0) for k in range(65)], "edits", "got 65"),
    ],
)
def test_edits_that_make_no_sense_are_refused(running, trained, edits, field, text):
    with pytest.raises(grpc.RpcError) as caught:
        refit(running, trained.student, *edits)
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert suite.violations(caught.value) == [field]
    assert text in caught.value.details()


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"concepts": []}, "concepts"),
        ({"concepts": ["a", "a"]}, "concepts"),
        ({"concepts": ["a", ""]}, "concepts"),
        ({"nec": -1.0}, "nec"),
        ({"nec": float("nan")}, "nec"),
        ({"l1": 0.0}, "l1"),
        ({"control_draws": 100_000}, "control_draws"),
    ],
)
def test_recipes_that_make_no_sense_are_refused(running, data, change, field):
    request = suite.concept_request(data, "senseless")
    for name, value in change.items():
        request.concept.ClearField(name)
        if isinstance(value, list):
            getattr(request.concept, name).extend(value)
        else:
            setattr(request.concept, name, value)
    with pytest.raises(grpc.RpcError) as caught:
        running.train(request)
    assert suite.violations(caught.value) == [field]


def test_words_must_fit_their_embeddings(running, data):
    request = suite.concept_request(data, "words")
    request.concept.concepts.append("one too many")
    error = running.train(request)[-1].error
    assert suite.status_code(error) == grpc.StatusCode.INVALID_ARGUMENT
    assert "31 concepts" in error.message


def test_damaged_card_is_refused_by_tuning(running, trained, student):
    card = json.loads(running.blobs.get(PROJECT, trained.student.card_digest))
    for change in ({"data": None}, {"data": {"manifest": "../x"}}, {"fold_fits": "zz"}):
        damaged = running.blobs.put(PROJECT, json.dumps({**card, **change}).encode())
        ref = student_pb2.StudentRef(
            weights_digest=trained.student.weights_digest, card_digest=damaged
        )
        with pytest.raises(grpc.RpcError) as caught:
            refit(running, ref, (CLASSES[0], used_concept(student, CLASSES[0]), UP, 2.0))
        assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT, change


def test_names_are_checked_where_students_are_used_directly(student):
    with pytest.raises(InvalidInput, match="there is no concept"):
        student.concept_index("zzz")
