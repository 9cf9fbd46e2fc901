"""Prune jobs through the whole gateway; teacher and student answer by rule."""

from __future__ import annotations

import asyncio
import errno
from typing import Any

import pytest
from stillhouse.common.v1 import language_pb2
from stillhouse.gateway.v1 import jobs_pb2

from services.common.model_records import LanguageModelRecord
from services.gateway.jobs.prune_specs import correction_of
from tests.gateway.edge_world import make_archive
from tests.gateway.lab import JOBS, Lab, facts, lab_root, prompts
from tests.gateway.language_peers import HERE, WHOLE, name_of

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def pruned(lab: Lab, **more: Any) -> dict[str, Any]:
    """A specification that fits."""
    dataset = more.pop("dataset", "") or await prompts(lab)
    return {"dataset": dataset, "model": name_of("tuned"), "nonEmbeddingShare": 0.5, **more}


async def test_a_model_becomes_smaller(lab: Lab) -> None:
    data, quiz = await prompts(lab, count=300), await facts(lab)
    spec = await pruned(lab, dataset=data, evaluationDatasets=[quiz], modelId="small")
    job = await lab.done(await lab.start(prune=spec))
    stages = [stage["stage"] for stage in job["stages"]]
    assert stages == ["ingest", "check", "estimate", "importance", "targets", "fit", "publish"]
    (asked,) = lab.student.measured
    assert (asked.student, asked.budget.non_embedding_share) == ("tuned", 0.5)
    assert dict(asked.provenance)["model_digest"] == "d-tuned"
    full, recipe = lab.student.recipes
    assert full.evaluate_only
    assert not full.HasField("cut")
    assert lab.blobs.get(HERE.project, recipe.cut.importance.digest) == b"importance"
    assert (recipe.cut.shape.layers, recipe.cut.shape.hidden_size) == (3, 48)
    assert not recipe.cut.shape.kept_layers
    assert len(recipe.target_shards) == 2
    assert not recipe.text_shards
    assert recipe.training.loss == language_pb2.LANGUAGE_LOSS_FORWARD_KL
    assert recipe.training.max_steps == 79  # 210 sequences, three times, by eight
    assert len(recipe.evaluation.target_shards) == len(recipe.evaluation.choice_shards) == 1
    assert dict(lab.teacher.calls) == {
        "Score": 1,
        "TARGET_KIND_SAMPLED": 2,
        "TARGET_KIND_TOP_K": 1,
    }
    assert job["model"] == name_of("small")
    record = LanguageModelRecord.from_bytes(lab.blobs.get_ref(HERE.project, "models/small"))
    assert record.card == {"student": "tuned"}
    report = job["json"]
    values = {when: report[when]["cross_entropy"]["value"] for when in ("before", "after")}
    assert values == pytest.approx({"before": 6.0, "after": 3.2})
    assert report["references"]["full"]["cross_entropy"]["value"] == 2.5
    assert report["change"]["cross_entropy"]["value"] == pytest.approx(-2.8)
    assert report["size"]["asked"] == {"non_embedding_share": 0.5}
    assert report["size"]["got"] == {
        "non_embedding_share": 0.5,
        "non_embedding_parameters": 50_000,
        "parameters": 60_000,
        "bytes": 240_000,
    }
    assert report["cut"]["kind"] == "mixed"
    assert report["cut"]["from_shape"] == WHOLE
    assert [one["chosen"] for one in report["candidates"]] == [True, False, False]
    assert {one["cross_entropy"] for one in report["candidates"]} == {None}
    assert {point["run"] for point in report["curves"]} == {"prune/0"}
    again = await lab.done(await lab.start(prune=spec))
    assert again["json"] == report
    assert len(lab.student.recipes) == 2  # found, as importance and targets were
    assert lab.teacher.calls["TARGET_KIND_SAMPLED"] == 2


async def test_a_time_is_a_size_too(lab: Lab) -> None:
    spec = await pruned(lab, maxLatencyMs=4.5, training={"precision": "bfloat16", "maxSteps": 3})
    del spec["nonEmbeddingShare"]
    estimate = await lab.post(f"{JOBS}:estimate", {"job": {"prune": spec}})
    assert int(estimate.json()["storedBytes"]) > 0
    name = await lab.start(prune=spec)
    job = await lab.done(name)
    (asked,) = lab.student.measured
    assert (asked.budget.max_latency_ms, asked.budget.precision) == (4.5, "bfloat16")
    size = job["json"]["size"]
    assert size["asked"] == {"max_latency_ms": 4.5}
    assert size["got"]["latency_ms"] == 4.0
    assert size["measured_on"] == {"tokens": 128, "device_name": "abacus"}
    assert [one["latency_ms"] for one in job["json"]["candidates"]] == [4.0] * 3
    assert "4 ms a pass" in (await lab.world.http.get(f"/v1/{name}:watch")).text


async def test_ranking_finds_what_the_prior_did_not(lab: Lab) -> None:
    spec = await pruned(lab, candidates=3, training={"maxSteps": 40, "patience": 2})
    name = await lab.start(prune=spec)
    job = await lab.done(name)
    report, tried = job["json"], [one for one in lab.student.recipes if one.cut.shape.layers]
    assert [one.cut.shape.hidden_size for one in tried] == [48, 32, 64, 32]
    assert [one.training.max_steps for one in tried] == [4, 4, 4, 40]
    assert [one.discard_model for one in tried] == [True] * 3 + [False]
    assert [one.training.patience for one in tried] == [0, 0, 0, 2]
    assert all(one.target_shards == tried[0].target_shards for one in tried)
    losses = [one["cross_entropy"] for one in report["candidates"]]
    assert losses == pytest.approx([3.2, 2.8, 3.0])
    assert [one["chosen"] for one in report["candidates"]] == [False, True, False]
    assert report["cut"]["kind"] == "width"
    assert report["after"]["cross_entropy"]["value"] == pytest.approx(2.8)
    stages = {one["stage"]: one for one in job["stages"]}
    assert (stages["rank"]["total"], stages["rank"]["unit"]) == ("12", "steps")
    assert {point["run"] for point in report["curves"]} > {"candidate/0", "prune/0"}
    events = (await lab.world.http.get(f"/v1/{name}:watch")).text
    assert "candidate 1 of 3 is taken" in events
    assert "is a large cut: `rounds`, to 0.70, 0.50" in events


async def test_controls_get_the_same_steps_and_targets(lab: Lab) -> None:
    training = {"seed": "7", "maxSteps": 5, "patience": 2}
    spec = await pruned(lab, controls=True, trainingSeeds=2, training=training)
    job = await lab.done(await lab.start(prune=spec))
    report, runs = job["json"], [one for one in lab.student.recipes if not one.evaluate_only]
    arms = {arm["arm"]: arm for arm in report["arms"]}
    assert list(arms) == ["prune", "no_distillation", "random_cut", "random_weights"]
    assert [one.training.seed for one in runs] == [7, 8] * 4
    assert {(one.training.max_steps, one.training.patience) for one in runs} == {(5, 0)}
    assert [one.discard_model for one in runs] == [False] + [True] * 7
    assert all(one.target_shards == runs[0].target_shards for one in runs)
    assert {one.cut.shape.SerializeToString() for one in runs} == {
        runs[0].cut.shape.SerializeToString()
    }
    plain, chance, empty = runs[2], runs[4], runs[6]
    assert plain.training.loss == language_pb2.LANGUAGE_LOSS_CROSS_ENTROPY
    assert plain.cut == runs[0].cut
    assert (chance.cut.random, chance.cut.seed, runs[5].cut.seed) == (True, 7, 8)
    assert empty.cut.from_random_weights
    assert not chance.cut.HasField("importance")
    assert {one.training.loss for one in (chance, empty)} == {language_pb2.LANGUAGE_LOSS_FORWARD_KL}
    found = {name: arm["metrics"]["cross_entropy"]["value"] for name, arm in arms.items()}
    assert found == pytest.approx(
        {"prune": 3.2, "no_distillation": 3.4, "random_cut": 3.7, "random_weights": 5.2}
    )
    assert arms["random_weights"]["before"]["cross_entropy"]["value"] == 9.0
    gains = {name: one["cross_entropy"]["value"] for name, one in report["paired"].items()}
    assert gains == pytest.approx(
        {"no_distillation": -0.2, "random_cut": -0.5, "random_weights": -2.0}
    )
    fit = next(one for one in job["stages"] if one["stage"] == "fit")
    assert fit["total"] == "40"
    assert {arm["seeds"] for arm in report["arms"]} == {2}


async def test_states_are_of_arms_that_learn_from_the_whole_model(lab: Lab) -> None:
    training = {"maxSteps": 3, "intermediateStates": 2}
    spec = await pruned(lab, controls=True, correctTeacher=True, training=training)
    await lab.done(await lab.start(prune=spec))
    asked = {one.provenance["arm"]: one for one in lab.student.recipes}
    assert {arm: one.training.intermediate_states for arm, one in asked.items()} == {
        "teacher": 0,
        "full": 0,
        "prune": 2,
        "no_distillation": 0,
        "random_cut": 2,
        "random_weights": 2,
    }


async def test_rounds_go_on_from_what_the_last_one_made(lab: Lab) -> None:
    training = {"seed": "7", "maxSteps": 9}
    spec = await pruned(lab, rounds=2, candidates=2, controls=True, training=training)
    estimate = await lab.post(f"{JOBS}:estimate", {"job": {"prune": spec}})
    assert estimate.status_code == 200
    job = await lab.done(await lab.start(prune=spec))
    report = job["json"]
    first, second = lab.student.measured
    assert (first.student, first.budget.rounds, first.budget.share_of_parameters) == ("tuned", 2, 0)
    assert (second.budget.rounds, second.budget.share_of_parameters) == (0, 100_000)
    assert second.budget.non_embedding_share == 0.5
    runs = [one for one in lab.student.recipes if not one.evaluate_only]
    ranked, hop, again, own, controls = runs[:2], runs[2], runs[3:5], runs[5], runs[6:]
    assert {one.student for one in [*ranked, hop, *controls]} == {"tuned"}
    assert {one.student for one in [*again, own]} == {second.student}
    made = LanguageModelRecord.from_bytes(lab.blobs.get(HERE.project, second.student))
    assert made.card == {"student": "tuned"}
    assert [one.training.max_steps for one in runs] == [1, 1, 4, 1, 1, 5, 9, 9, 9, 9]
    assert all(one.target_shards == hop.target_shards for one in runs)
    assert lab.teacher.calls["TARGET_KIND_SAMPLED"] == 1
    assert not hop.discard_model
    assert (hop.training.seed, own.training.seed) == (6, 7)
    assert own.provenance["student_digest"] == second.student
    assert hop.cut.importance.digest == controls[0].cut.importance.digest
    assert {one.cut.shape.hidden_size for one in [own, *controls]} == {32}
    arms = {arm["arm"]: arm for arm in report["arms"]}
    assert list(arms) == ["prune", "one_round", "no_distillation", "random_cut", "random_weights"]
    assert set(report["paired"]) == set(arms) - {"prune"}
    assert arms["prune"]["steps"] == 20  # of two runs that the stand-in says took 10
    told = report["rounds"]
    assert [one["round"] for one in told] == [1, 2]
    assert [one["non_embedding_share"] for one in told] == [0.7, 0.5]
    assert [one["kept_layers"] for one in told] == [[0, 1, 3], [0, 3]]
    assert [one["after"]["cross_entropy"]["value"] for one in told] == pytest.approx([2.8, 2.8])
    assert [[c["cross_entropy"] for c in one["candidates"]] for one in told] == [
        pytest.approx([3.2, 2.8, None], nan_ok=True)
    ] * 2
    assert report["size"]["got"]["non_embedding_share"] == 0.5
    assert report["cut"]["from_shape"] == WHOLE
    assert {point["run"] for point in report["curves"]} >= {"round/1", "prune/0", "one_round/0"}
    stages = {one["stage"]: one for one in job["stages"]}
    assert (stages["rounds"]["total"], stages["rounds"]["complete"]) == ("4", True)
    assert list(lab.blobs.list_refs(HERE.project, "models")) == ["tuned-pruned"]


async def test_a_round_that_finds_the_model_small_enough_only_trains_it(lab: Lab) -> None:
    lab.student.first_step = 50_000
    spec = await pruned(lab, rounds=3, training={"maxSteps": 9}, controls=True)
    job = await lab.done(await lab.start(prune=spec))
    assert len(lab.student.measured) == 1
    runs = [one for one in lab.student.recipes if not one.evaluate_only]
    assert [one.HasField("cut") for one in runs] == [True, False, False, True, True, True, True]
    assert [one.training.max_steps for one in runs] == [3, 3, 3, 9, 9, 9, 9]
    assert len({one.student for one in runs[:3]}) == 3
    assert [one["is_cut"] for one in job["json"]["rounds"]] == [True, False, False]


async def test_a_gateway_that_stops_in_a_round_goes_on_in_it(lab: Lab) -> None:
    spec = {"rounds": 3, "candidates": 2, "training": {"maxSteps": 30}}
    whole = await lab.done(await lab.start(prune=await pruned(lab, **spec)))
    lab.fresh("again in a round")
    name = await lab.start(prune=await pruned(lab, **spec))
    for held in (1, 3, 7):
        lab.student.hold_after = held
        async with asyncio.timeout(20):
            while len(lab.student.recipes) <= held:
                await asyncio.sleep(0.02)
        await lab.restart()
    lab.student.hold_after = 10**9
    assert (await lab.done(name))["json"] == whole["json"]


async def test_rounds_that_lead_nowhere_end_before_any_target(lab: Lab) -> None:
    spec = await pruned(lab, rounds=2, axes="PRUNE_AXES_WIDTH")
    job = await lab.until(await lab.start(prune=spec), "SUCCEEDED", "FAILED")
    assert "cannot be reached by cutting width alone" in job["error"]["message"]
    assert "mixed, depth would do" in job["error"]["message"]
    assert not lab.teacher.calls["TARGET_KIND_SAMPLED"]
    few = await pruned(lab, rounds=4, dataset=await prompts(lab, "few", 6))
    job = await lab.until(await lab.start(prune=few), "SUCCEEDED", "FAILED")
    assert "steps are too few for 4 rounds" in job["error"]["message"]
    assert not [one for one in lab.student.recipes if one.cut.shape.layers]


async def test_a_corrected_teacher_is_what_is_pruned(lab: Lab) -> None:
    training = {"maxSteps": 5, "patience": 2}
    spec = await pruned(lab, correctTeacher=True, modelId="small", training=training)
    job = await lab.done(await lab.start(prune=spec))
    stages = [stage["stage"] for stage in job["stages"]]
    assert stages[2:5] == ["estimate", "correct", "importance"]
    teacher, full, own = lab.student.recipes
    assert (teacher.student, teacher.training.patience) == ("tuned", 0)
    assert teacher.training.learning_rate == pytest.approx(2e-5)
    assert teacher.training.max_steps == own.training.max_steps == 5
    assert teacher.training.loss == language_pb2.LANGUAGE_LOSS_CROSS_ENTROPY
    assert teacher.text_shards
    assert not teacher.HasField("cut")
    (asked,) = lab.student.measured
    assert asked.student == full.student == own.student == "small-teacher"
    assert job["model"] == name_of("small")
    assert set(job["json"]["references"]) == {"full", "uncorrected"}
    assert {point["run"] for point in job["json"]["curves"]} == {"teacher", "prune/0"}
    for change, words in (
        ({"modelId": "x" * 60}, "model_id"),
        ({"training": {"lora": {"rank": 2}}}, "must stay whole"),
    ):
        assert words in await lab.refused(prune={**spec, **change})


@pytest.mark.parametrize(("epochs", "passes"), [(0, 1), (3, 1), (0.5, 0.5)])
async def test_a_teacher_is_corrected_by_one_pass_at_most(epochs: float, passes: float) -> None:
    asked = language_pb2.LanguageTraining(epochs=epochs, learning_rate=5e-4)
    training = correction_of(jobs_pb2.PruneJobSpec(training=asked))
    assert (training.epochs, training.learning_rate) == (passes, pytest.approx(1e-4))


async def test_axes_leave_candidates_out(lab: Lab) -> None:
    data = await prompts(lab)
    for axes, hidden in (("WIDTH", 32), ("DEPTH", 64), ("BOTH", 48)):
        tried = 1 if axes == "BOTH" else 3
        spec = await pruned(lab, dataset=data, axes=f"PRUNE_AXES_{axes}", candidates=tried)
        job = await lab.done(await lab.start(prune=spec))
        assert "rank" not in [one["stage"] for one in job["stages"]]  # there is nothing to choose
        assert lab.student.recipes[-1].cut.shape.hidden_size == hidden


async def test_a_gateway_that_stops_in_a_run_goes_on_in_it(lab: Lab) -> None:
    spec = {"candidates": 3, "controls": True, "training": {"maxSteps": 20}}
    whole = await lab.done(await lab.start(prune=await pruned(lab, **spec)))
    count = len(lab.student.recipes)
    lab.fresh("again")
    lab.student.hold_after = 1
    name = await lab.start(prune=await pruned(lab, **spec))
    for held in (1, 5):  # the second candidate; then, one run having come twice, the first arm
        lab.student.hold_after = held
        async with asyncio.timeout(20):
            while len(lab.student.recipes) <= held:
                await asyncio.sleep(0.02)
        await lab.restart()
    lab.student.hold_after = 10**9
    job = await lab.done(name)
    assert job["json"] == whole["json"]
    assert len(lab.student.recipes) == count + 2


async def test_a_prune_that_cannot_work_is_refused(lab: Lab) -> None:
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    chats = await lab.dataset("chats", [{"messages": turns, "split": "train"}])
    trained = await lab.dataset("trained", [{"text": f"t{n}", "split": "train"} for n in range(9)])
    quiz = await facts(lab)
    good = await pruned(lab)
    sized = {key: value for key, value in good.items() if key != "nonEmbeddingShare"}
    cases = [
        (sized, ["one of non_embedding_share, max_parameters, max_bytes, max_latency_ms"]),
        ({**sized, "maxLatencyMs": -1}, ["max_latency_ms"]),
        ({**sized, "maxLatencyMs": "Infinity"}, ["max_latency_ms"]),
        ({**good, "nonEmbeddingShare": 1}, ["non_embedding_share", "between 0 and 1"]),
        ({**good, "nonEmbeddingShare": "NaN"}, ["non_embedding_share"]),
        ({**sized, "maxParameters": "-1"}, ["max_parameters"]),
        ({**sized, "maxParameters": "100000"}, ["max_parameters", "nothing is to be cut"]),
        (
            {**sized, "maxBytes": "400000"},
            ["room for 100,000", "nothing is to be cut"],
        ),
        ({**good, "calibrationSequences": 1}, ["calibration_sequences", "at least 2"]),
        ({**good, "candidates": 33}, ["candidates"]),
        ({**good, "trainingSeeds": -1}, ["training_seeds"]),
        ({**good, "rounds": 17}, ["rounds"]),
        ({**sized, "maxLatencyMs": 5, "rounds": 2}, ["rounds", "no even steps"]),
        ({**good, "rounds": 3, "training": {"maxSteps": 2}}, ["3 rounds share 2 steps"]),
        (
            {**good, "rounds": 2, "training": {"intermediateStates": 2}},
            ["intermediate_states", "take 1 round"],
        ),
        ({**good, "training": {"intermediateStates": -1}}, ["training.intermediate_states"]),
        ({**good, "bytesPerToken": 1}, ["bytes_per_token"]),
        ({**good, "training": {"loss": "LANGUAGE_LOSS_CROSS_ENTROPY"}}, ["training.loss"]),
        ({**good, "training": {"loss": "LANGUAGE_LOSS_ULD"}}, ["training.loss"]),
        ({**good, "controls": True, "training": {"lora": {"rank": 2}}}, ["training.lora"]),
        ({**good, "training": {"sequenceLength": 600}}, ["context of", "512 tokens"]),
        ({**good, "model": name_of("photos")}, ["not a language model"]),
        ({**good, "model": name_of("bigger")}, ["cannot serve SampleTargets"]),
        ({**good, "model": name_of("adapter")}, ["adapter on tuned"]),
        ({**good, "model": name_of("twin"), "dataset": chats}, ["no chat template"]),
        ({**good, "dataset": quiz}, ["no text or answer"]),
        ({**good, "dataset": trained, "candidates": 2}, ["no dataset has test records"]),
        ({**good, "modelId": "tuned"}, ["would replace"]),
        ({**good, "modelId": "bigger"}, ["of the catalogue"]),
        ({**good, "verifier": {"regex": {"pattern": "(a"}}}, ["pattern"]),
        ({**good, "model": "projects/other/models/x"}, ["not of project"]),
    ]
    for spec, words in cases:
        message = await lab.refused(prune=spec)
        assert all(word in message for word in words), (spec, message)
    missing = await lab.post(JOBS, {"job": {"prune": {**good, "model": name_of("no")}}})
    assert missing.status_code == 404
    estimate = await lab.post(f"{JOBS}:estimate", {"job": {"prune": {**good, "candidates": 2}}})
    assert int(estimate.json()["itemCount"]) == 14
    assert int(estimate.json()["storedBytes"]) > 0


async def test_what_only_the_measurement_knows_fails_the_job_before_any_target(lab: Lab) -> None:
    lonely = await lab.dataset("lonely", [{"text": "t", "split": "train"}])
    data = await prompts(lab)
    cases = [
        ({"dataset": lonely}, "give at least 2"),
        ({"dataset": data, "maxParameters": "10000"}, "the least possible is 20,000"),
    ]
    for change, words in cases:
        spec = {key: one for key, one in (await pruned(lab, **change)).items()}
        if "maxParameters" in change:
            del spec["nonEmbeddingShare"]
        job = await lab.until(await lab.start(prune=spec), "SUCCEEDED", "FAILED")
        assert words in job["error"]["message"]
    assert not lab.teacher.calls["TARGET_KIND_SAMPLED"]
    assert not lab.student.recipes


async def test_a_full_disk_ends_the_job_and_the_next_one_goes_on(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = await pruned(lab, training={"maxSteps": 3})
    lab.student.is_full = True
    job = await lab.until(await lab.start(prune=spec), "SUCCEEDED", "FAILED")
    assert (job["error"]["code"], job["state"]) == (8, "JOB_STATE_FAILED")
    assert "make room and start the job again" in job["error"]["message"]
    assert len(lab.student.recipes) == 1  # nobody tries again by himself
    assert not list(lab.blobs.list_refs(HERE.project, "models"))
    lab.student.is_full = False

    def no_room(*_: Any) -> str:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(lab.world.gateway.engine._tools.blobs, "put", no_room)
        job = await lab.until(await lab.start(prune=spec), "SUCCEEDED", "FAILED")
    assert job["error"]["code"] == 8
    assert "the disk of the gateway or of the blob store is full" in job["error"]["message"]
    assert not list(lab.blobs.list_refs(HERE.project, "models"))
    assert (await lab.done(await lab.start(prune=spec)))["model"] == name_of("tuned-pruned")
    assert len(lab.student.measured) == 1  # found from the first


async def test_a_prune_job_needs_texts(lab: Lab) -> None:
    answer = await lab.world.http.post(f"{lab_root()}/archives", content=make_archive())
    await lab.post("/datasets", {"datasetId": "photos", "archive": answer.json()["archive"]})
    spec = await pruned(lab, dataset=await lab.ready("photos"))
    assert "holds images" in await lab.refused(prune=spec)
