"""The language recipe end to end in this process, on a tiny random model."""

from __future__ import annotations

import json
import math
import os
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
from stillhouse.common.v1 import items_pb2, language_pb2
from stillhouse.student.v1 import student_pb2

from services.common.catalogue import load_catalogue
from services.common.errors import InvalidInput, NotFound, Precondition
from services.common.model_records import LanguageModelRecord
from services.common.targets import TargetShard
from services.common.texts import TextRecord
from services.student.language import options
from services.student.language.requests import check_language
from services.student.language.students import LanguageStudent, finish
from services.student.recipes import Surroundings, Training, train
from services.student.rundir import RunDir
from services.torch_common.language.files import ModelSource
from services.torch_common.language.loading import load_language_model
from tests.student import language_suite as suite

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning"),
]


@pytest.fixture(scope="module")
def around(home):
    catalogue = suite.make_catalogue(home)
    return Surroundings(cache_dir=home / "cache", catalogue=catalogue)


@pytest.fixture
def run(home, blobs, around, request):
    """Train a request in this process; gives the result."""
    events = []

    def go(asked: student_pb2.TrainRequest) -> student_pb2.LanguageModelResult:
        folder = RunDir.of(home / "runs", suite.PROJECT, asked.run_id)
        folder.create(asked)
        made = Training(asked.project, blobs, folder.next_writer(), lambda: None, around)
        result = train(made, asked).language
        events.extend(folder.events()[0])
        return result

    go.events = events
    return go


def report_of(blobs, result) -> dict:
    return json.loads(blobs.get(suite.PROJECT, result.report.digest))


def record_of(blobs, result) -> LanguageModelRecord:
    return LanguageModelRecord.from_bytes(blobs.get(suite.PROJECT, result.model.digest))


def loaded(home, blobs, around, result):
    """The stored model, loaded as any service would."""
    blobs.put_ref(suite.PROJECT, "models/made", blobs.get(suite.PROJECT, result.model.digest))
    source = ModelSource(load_catalogue([around.catalogue]), blobs, home / "cache")
    return load_language_model(source, suite.PROJECT, "made", precision="float32")


@pytest.fixture(scope="module")
def exam(blobs):
    return student_pb2.LanguageEvaluation(
        text_shards=[suite.put_records(blobs, suite.texts(6, split="test"))],
        choice_shards=[suite.put_records(blobs, suite.questions())],
    )


def test_supervised_training_lowers_the_held_out_cross_entropy(run, blobs, exam, home, around):
    texts = suite.put_records(blobs, suite.texts())
    result = run(suite.request("ce", text_shards=[texts], evaluation=exam))
    report = report_of(blobs, result)
    before, after = (report[when]["cross_entropy"] for when in ("before", "after"))
    assert after["value"] < before["value"] - 0.5
    assert before["low"] <= before["value"] <= before["high"]
    change = report["change"]["cross_entropy"]
    assert change["value"] == pytest.approx(after["value"] - before["value"])
    assert change["high"] < 0
    assert len(report["questions"]) == 6
    assert {q["group"] for q in report["questions"]} == {"g-0", "g-1"}
    assert report["trained_tokens"] == 12 * 4 * 31
    assert [p["step"] for p in report["curves"]][-1] == 12
    told = [e.progress for e in run.events if e.progress.metrics]
    assert {"loss", "learning_rate", "heldout_cross_entropy", "tokens_per_s"} == set(
        told[-1].metrics
    )
    model = loaded(home, blobs, around, result)
    assert record_of(blobs, result).form == "checkpoint"
    sequences = suite.sequences_of(suite.texts(6, split="test"))
    assert mean_nll(model.model, sequences) == pytest.approx(after["value"], abs=1e-4)


def mean_nll(model, sequences) -> float:
    """Cross-entropy per target token, one sequence at a time."""
    total, count = 0.0, 0
    for one in sequences:
        ids = torch.from_numpy(one.tokens.astype(np.int64))
        with torch.no_grad():
            log_q = model(ids[None]).logits[0].log_softmax(-1)
        for at in range(1, len(ids)):
            if one.is_target[at]:
                total -= float(log_q[at - 1, ids[at]])
                count += 1
    return total / count


@pytest.mark.parametrize(
    ("kind", "loss"),
    [
        ("sampled", language_pb2.LANGUAGE_LOSS_UNSPECIFIED),
        ("top_k", language_pb2.LANGUAGE_LOSS_REVERSE_KL),
        ("top_k", language_pb2.LANGUAGE_LOSS_JSD),
    ],
)
def test_stored_targets_teach(run, blobs, kind, loss):
    sequences = suite.sequences_of(suite.texts())
    shard = suite.put_targets(blobs, sequences, kind)
    held = suite.put_targets(blobs, sequences[:4], "top_k")
    result = run(
        suite.request(
            f"kd-{kind}-{loss}",
            target_shards=[shard],
            training=suite.training(loss=loss, max_steps=24),
            evaluation=student_pb2.LanguageEvaluation(target_shards=[held]),
        )
    )
    report = report_of(blobs, result)
    assert report["change"]["kl_to_teacher"]["high"] < 0
    assert report["targets"]["tokens"] == sum(one.target_count for one in sequences)
    assert 0 <= report["after"]["top1_agreement"]["value"] <= 1


def test_layers_are_left_out_and_an_adapter_is_merged(run, blobs, exam, home, around):
    texts = suite.put_records(blobs, suite.texts())
    lora = language_pb2.Lora(rank=4)
    result = run(
        suite.request(
            "cut",
            keep_layers=[0, 2],
            text_shards=[texts],
            training=suite.training(lora=lora),
            evaluation=exam,
        )
    )
    record = record_of(blobs, result)
    assert (record.form, record.base) == ("checkpoint", "")
    model = loaded(home, blobs, around, result)
    assert model.model.config.num_hidden_layers == 2
    value = report_of(blobs, result)["after"]["cross_entropy"]["value"]
    sequences = suite.sequences_of(suite.texts(6, split="test"))
    assert mean_nll(model.model, sequences) == pytest.approx(value, abs=1e-4)


def test_an_adapter_is_stored_on_its_base(run, blobs, exam, home, around):
    texts = suite.put_records(blobs, suite.answers())
    result = run(
        suite.request(
            "lora",
            text_shards=[texts],
            training=suite.training(lora=language_pb2.Lora(rank=2, dropout=0.1)),
            evaluation=exam,
        )
    )
    record = record_of(blobs, result)
    assert (record.form, record.base) == ("adapter", suite.MODEL)
    assert {"adapter_model.safetensors", "adapter_config.json", "tokenizer.json"} <= set(
        record.files
    )
    assert str(home) not in blobs.get(suite.PROJECT, record.files["adapter_config.json"]).decode()
    model = loaded(home, blobs, around, result)
    value = report_of(blobs, result)["after"]["cross_entropy"]["value"]
    with model.activated() as module:
        sequences = suite.sequences_of(suite.texts(6, split="test"))
        assert mean_nll(module, sequences) == pytest.approx(value, abs=1e-4)
    blobs.put_ref(suite.PROJECT, "models/tuned", blobs.get(suite.PROJECT, result.model.digest))
    with pytest.raises(Precondition, match="start from tiny-llama"):
        run(suite.request("on-adapter", student="tuned", text_shards=[texts]))


def test_bfloat16_measures_what_it_stores(run, blobs, exam, home, around):
    texts = suite.put_records(blobs, suite.texts())
    result = run(
        suite.request(
            "bf16",
            text_shards=[texts],
            training=suite.training(precision="bfloat16"),
            evaluation=exam,
        )
    )
    model = loaded(home, blobs, around, result).model
    assert all(torch.equal(w, w.bfloat16().float()) for w in model.parameters())
    value = report_of(blobs, result)["after"]["cross_entropy"]["value"]
    sequences = suite.sequences_of(suite.texts(6, split="test"))
    assert mean_nll(model, sequences) == pytest.approx(value, abs=0.02)


def test_equal_recipes_give_equal_weights_and_seeds_matter(run, blobs):
    texts, replay = (suite.put_records(blobs, some) for some in (suite.texts(), suite.answers()))
    digests = []
    for name, seed in (("one", 5), ("two", 5), ("three", 6)):
        result = run(
            suite.request(
                f"equal-{name}",
                text_shards=[texts],
                replay_shards=[replay],
                training=suite.training(max_steps=3, seed=seed),
                discard_model=True,
            )
        )
        assert not result.HasField("model")
        digests.append(result.weights_digest)
    assert digests[0] == digests[1] != digests[2]


def test_evaluate_only_trains_nothing(run, blobs, exam):
    tasks = suite.put_records(blobs, suite.questions())
    exam = replace_exam(exam, tasks)
    result = run(suite.request("measure", evaluate_only=True, evaluation=exam))
    report = report_of(blobs, result)
    assert not result.HasField("model")
    assert not result.weights_digest
    assert set(report["before"]) == {
        "cross_entropy",
        "choice_accuracy",
        "choice_accuracy_sum",
        "task_accuracy",
    }
    assert "after" not in report
    assert len(report["items"]["before"]["task_accuracy"]) == 6


def test_measuring_the_untrained_model_can_be_left_out(run, blobs, exam):
    texts = suite.put_records(blobs, suite.texts())
    again = student_pb2.LanguageEvaluation()
    again.CopyFrom(exam)
    again.skip_before = True
    options = suite.training(max_steps=2)
    asked = suite.request("arm", text_shards=[texts], training=options, evaluation=again)
    report = report_of(blobs, run(asked))
    assert report["before"] == report["change"] == {}
    assert set(report["after"]) == {"cross_entropy", "choice_accuracy", "choice_accuracy_sum"}
    assert all(
        set(q) == {"metric", "record_id", "group", "correct_after"} for q in report["questions"]
    )


def replace_exam(exam, tasks) -> student_pb2.LanguageEvaluation:
    made = student_pb2.LanguageEvaluation()
    made.CopyFrom(exam)
    made.task_shards.append(tasks)
    made.verifier.numeric.SetInParent()
    made.sampling.max_tokens = 8
    return made


def test_early_stop_keeps_the_best(run, blobs, exam):
    texts = suite.put_records(blobs, suite.texts())
    result = run(
        suite.request(
            "early",
            text_shards=[texts],
            training=suite.training(
                max_steps=40, learning_rate=3.0, patience=2, checkpoint_steps=1, warmup_share=0.01
            ),
            evaluation=exam,
        )
    )
    report = report_of(blobs, result)
    assert report["stopped_early"]
    assert report["steps"] < 40
    curve = [p["heldout_cross_entropy"] for p in report["curves"]]
    assert report["after"]["cross_entropy"]["value"] == pytest.approx(min(curve), abs=1e-4)


def test_killed_at_any_step_it_ends_with_the_same_weights(run, blobs, exam, home, around):
    """Dropout needs the generators, patience the best weights, replay the order of the data."""
    texts, replay = (suite.put_records(blobs, some) for some in (suite.texts(), suite.answers()))
    options = suite.training(
        checkpoint_steps=2, patience=50, lora=language_pb2.Lora(rank=4, dropout=0.2)
    )
    recipe = {
        "text_shards": [texts],
        "replay_shards": [replay],
        "training": options,
        "evaluation": exam,
    }
    whole = run(suite.request("whole", **recipe))
    asked = suite.request("killed", **recipe)
    folder = RunDir.of(home / "runs", suite.PROJECT, "killed")
    folder.create(asked)
    for step in (1, 5, 9):
        killed_at(step, asked, Training(asked.project, blobs, folder.next_writer(), int, around))
    assert folder.next_writer().newest_folder("training").name.endswith("08")
    run.events.clear()
    result = run(asked)
    assert result.weights_digest == whole.weights_digest
    assert report_of(blobs, result)["trained_tokens"] == report_of(blobs, whole)["trained_tokens"]
    steps = [e.progress.done for e in run.events if e.progress.stage == "training"]
    assert steps.count(1) == 2  # killed at once, begun anew; then never again from the start


def killed_at(step: int, asked: student_pb2.TrainRequest, training: Training) -> None:
    """Train in a child process that SIGKILL ends when it has told of a step."""

    def progress(stage: str, done: int, total: int, metrics=None) -> None:
        told(stage, done, total, metrics)
        if stage == "training" and done >= step:
            os.kill(os.getpid(), signal.SIGKILL)

    child = os.fork()
    if not child:
        told, training.writer.progress = training.writer.progress, progress
        try:
            train(training, asked)
        finally:
            os._exit(1)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"student": ""}, "student"),
        ({"keep_layers": [2, 1]}, "keep_layers"),
        ({"tokenizer_digest": "../x"}, "tokenizer_digest"),
        ({"text_shards": [items_pb2.BlobRef(digest="../../etc")]}, "text_shards"),
        ({"evaluate_only": True}, "evaluation"),
    ],
)
def test_malformed_recipes_are_refused_unread(change, field):
    with pytest.raises(InvalidInput) as caught:
        check_language(suite.request("malformed", **change).language)
    assert caught.value.field == field


def unusable(blobs):
    texts = suite.put_records(blobs, suite.texts())
    sequences = suite.sequences_of(suite.texts())
    sampled = suite.put_targets(blobs, sequences, "sampled")
    warm = suite.put_targets(blobs, sequences, "sampled", temperature=2.0)
    long = suite.put_targets(blobs, suite.sequences_of(suite.texts(), 96), "sampled")
    other = items_pb2.BlobRef(digest=blobs.put(suite.PROJECT, over_the_vocabulary()))
    empty = suite.put_records(blobs, [TextRecord("p", prompt="no answer")])
    reverse = suite.training(loss=language_pb2.LANGUAGE_LOSS_REVERSE_KL)
    return {
        "unknown": ({"student": "tiny-lama", "text_shards": [texts]}, NotFound, "tiny-llama"),
        "no-data": ({}, InvalidInput, "at least one"),
        "empty": ({"text_shards": [empty]}, InvalidInput, "no sequence"),
        "tokenizer": (
            {"text_shards": [texts], "tokenizer_digest": "0" * 64},
            Precondition,
            "tokenizer",
        ),
        "layers": ({"text_shards": [texts], "keep_layers": [0, 9]}, InvalidInput, "0 to 2"),
        "order": ({"text_shards": [texts], "keep_layers": [1, 1]}, InvalidInput, "rise"),
        "kind": ({"target_shards": [sampled], "training": reverse}, Precondition, "top-k"),
        "temperature": ({"target_shards": [warm]}, Precondition, "temperature"),
        "vocabulary": ({"target_shards": [other]}, Precondition, "vocabulary"),
        "unmatched": (
            {"text_shards": [texts], "target_shards": [long]},
            Precondition,
            "have no targets",
        ),
        "teacherless": ({"text_shards": [texts], "training": reverse}, InvalidInput, "teacher"),
        "nan": (
            {"text_shards": [texts], "training": suite.training(learning_rate=float("nan"))},
            InvalidInput,
            "learning_rate",
        ),
        "modules": (
            {
                "text_shards": [texts],
                "training": suite.training(lora=language_pb2.Lora(target_modules=["nothing"])),
            },
            InvalidInput,
            "target_modules",
        ),
        "nothing-to-measure": ({"evaluate_only": True}, InvalidInput, "nothing to measure"),
    }


def over_the_vocabulary() -> bytes:
    one = suite.sequences_of(suite.texts())[0]
    taught = suite.teach(suite.make_model(), one, "sampled")
    ids = taught.ids.copy()
    ids[-1] = 5000
    return TargetShard.encode([replace(taught, ids=ids)], kind="sampled")


def test_unusable_recipes_are_refused_before_any_work(run, blobs):
    for name, (recipe, error, match) in unusable(blobs).items():
        with pytest.raises(error, match=match):
            run(suite.request(f"refused-{name}", **recipe))
    assert not any(event.progress.stage == "training" for event in run.events if event)


def test_a_sequence_over_the_context_is_refused(run, blobs):
    tokens = np.ones(suite.CONTEXT + 8, np.int32)
    mask = np.ones(len(tokens), np.uint8)
    mask[0] = 0
    one = suite.PackedSequence(tokens, mask)
    rows = np.arange(len(tokens) - 1)
    made = suite.SparseTargets(one.tokens, one.is_target, np.ones_like(rows), rows, rows + 1)
    shard = blobs.put(suite.PROJECT, TargetShard.encode([made], kind="sampled"))
    with pytest.raises(Precondition, match="context"):
        run(suite.request("long", target_shards=[items_pb2.BlobRef(digest=shard)]))


def test_a_loss_that_is_no_number_says_what_to_do(run, blobs):
    texts = suite.put_records(blobs, suite.texts())
    with pytest.raises(Precondition, match="learning_rate"):
        run(suite.request("nan", student=suite.BROKEN, text_shards=[texts]))
    exam = student_pb2.LanguageEvaluation(text_shards=[texts])
    with pytest.raises(Precondition, match="before training; its weights are damaged"):
        run(suite.request("nan-before", student=suite.BROKEN, text_shards=[texts], evaluation=exam))


def test_training_that_diverges_says_what_to_do(run, home, blobs, monkeypatch):
    texts = suite.put_records(blobs, suite.texts())
    far = suite.training(learning_rate=1e6)
    with pytest.raises(InvalidInput, match="training.learning_rate: must be from 0 to 10"):
        run(suite.request("far", text_shards=[texts], training=far))
    # So far off that float32 holds it no more, which no rate within the bounds reaches.
    monkeypatch.setitem(options._RANGES, "learning_rate", (0, math.inf))
    exam = student_pb2.LanguageEvaluation(text_shards=[texts])
    for name, steps, evaluation in (("loss", 12, None), ("heldout", 2, exam)):
        setting = suite.training(learning_rate=1e38, max_steps=steps)
        asked = suite.request(
            f"diverges-{name}", text_shards=[texts], training=setting, evaluation=evaluation
        )
        with pytest.raises(Precondition, match="use a lower learning_rate") as caught:
            run(asked)
        assert caught.value.differences
        events = RunDir.of(home / "runs", suite.PROJECT, asked.run_id).events()[0]
        assert not any(event.progress.stage == "storing the student" for event in events)
    model = suite.make_model().requires_grad_(True)
    with torch.no_grad():
        model.model.norm.weight[0] = math.inf
    with pytest.raises(Precondition, match="use a lower learning_rate"):
        finish(LanguageStudent(None, model, torch.float32, None, cut=False))
