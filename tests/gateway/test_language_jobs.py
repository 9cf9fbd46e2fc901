"""Language and tuneshift jobs through the whole gateway; teacher and student answer by rule."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from services.common.model_records import LanguageModelRecord
from services.common.texts import unpack_records
from tests.gateway.edge_world import make_archive
from tests.gateway.lab import JOBS, Lab, facts, lab_root, prompts
from tests.gateway.language_peers import HERE, WORDS, name_of

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_stored_targets_become_a_model(lab: Lab) -> None:
    data = await prompts(lab, count=300)
    spec = {"dataset": data, "teacher": name_of("tuned"), "student": name_of("twin")}
    spec |= {"evaluationDatasets": [await facts(lab)], "modelId": "small"}
    job = await lab.done(await lab.start(language=spec))
    assert "facts/choice_accuracy" not in job["json"]["after"]  # of one dataset there is one figure
    stages = [stage["stage"] for stage in job["stages"]]
    assert stages == ["ingest", "check", "estimate", "targets", "fit", "publish"]
    assert job["model"] == name_of("small")
    assert job["json"]["targets"] == {
        "tokens": 2100,
        "sequences": 210,
        "bytes_per_token": 40.0,
        "draws_per_token": 20.0,
    }
    (recipe,) = lab.student.recipes
    assert (recipe.student, recipe.training.sequence_length) == ("twin", 64)
    assert len(recipe.target_shards) == 2
    assert not recipe.text_shards
    assert len(recipe.evaluation.target_shards) == len(recipe.evaluation.text_shards) == 1
    assert len(recipe.evaluation.choice_shards) == 1
    assert dict(recipe.provenance)["teacher_digest"] == "d-tuned"
    calls = dict(lab.teacher.calls)
    assert calls["TARGET_KIND_SAMPLED"] == 2
    assert calls["TARGET_KIND_TOP_K"] == 1
    record = LanguageModelRecord.from_bytes(lab.blobs.get_ref(HERE.project, "models/small"))
    assert record.base == "twin"
    again = await lab.done(await lab.start(language=spec))
    assert again["model"] == job["model"]
    assert lab.teacher.calls["TARGET_KIND_SAMPLED"] == 2  # found, as the training run was
    assert len(lab.student.recipes) == 1


async def test_uld_stores_targets_for_another_tokenizer(lab: Lab) -> None:
    spec = {
        "dataset": await prompts(lab),
        "teacher": name_of("tuned"),
        "student": name_of("target"),
        "training": {"loss": "LANGUAGE_LOSS_ULD"},
    }
    job = await lab.done(await lab.start(language=spec))
    calls = lab.teacher.calls
    assert (calls["TARGET_KIND_TOP_K"], calls["TARGET_KIND_SAMPLED"]) == (1, 0)
    (recipe,) = lab.student.recipes
    assert (recipe.student, recipe.tokenizer_digest) == ("target", "tok")
    assert len(recipe.target_shards) == len(recipe.text_shards) == 1
    records = unpack_records(lab.blobs.get(HERE.project, recipe.text_shards[0].digest))
    assert len(records) == job["json"]["targets"]["sequences"]
    assert all(record.answer for record in records)
    assert not recipe.evaluation.target_shards  # there is no agreement, token by token

    rows = [{"prompt": "q", "answer": "a"}, {"text": "a plain text"}]
    mixed = await lab.dataset("mixed", rows)
    for change, words in (
        ({"dataset": mixed}, ["prompts with answers", "1 plain texts"]),
        ({"mode": "LANGUAGE_MODE_ON_POLICY"}, ["ULD", "LANGUAGE_MODE_STORED_TARGETS"]),
        ({"mode": "LANGUAGE_MODE_ON_POLICY", "training": {}}, ["different tokenizers"]),
        ({"mode": "LANGUAGE_MODE_SUPERVISED"}, ["ULD", "LANGUAGE_MODE_STORED_TARGETS"]),
        ({"training": {"loss": "LANGUAGE_LOSS_JSD"}}, ["different tokenizers"]),
    ):
        message = await lab.refused(language={**spec, **change})
        assert all(word in message for word in words), (change, message)


async def test_a_curve_comes_to_watchers(lab: Lab) -> None:
    data = await prompts(lab)
    spec = {"dataset": data, "student": name_of("twin"), "mode": "LANGUAGE_MODE_SUPERVISED"}
    name = await lab.start(language=spec)
    await lab.done(name)
    answer = await lab.world.http.get(f"/v1/{name}:watch")
    events = [
        json.loads(line[6:])
        for line in answer.text.splitlines()
        if line[:7] == "data: {" and "job" in line
    ]
    curve = [event for event in events if event.get("metrics")]
    assert curve[0]["metrics"] == {"loss": 1.5, "heldout_cross_entropy": 2.5}
    assert (curve[0]["metricsStep"], curve[0]["metricsRun"]) == ("5", "")
    fit = next(one for one in events[-1]["job"]["stages"] if one["stage"] == "fit")
    assert (fit["total"], fit["unit"]) == ("10", "steps")
    (recipe,) = lab.student.recipes
    assert recipe.text_shards
    assert not recipe.target_shards


async def test_sequence_level_keeps_verified_answers(lab: Lab) -> None:
    rows = [{"prompt": f"colour of {word}?", "split": "train"} for word in WORDS[:10]]
    rows += [{"prompt": p, "split": "train"} for p in ("endless", "silent", "else")]
    rows += [{"prompt": "q", "answer": "a", "split": "test"}]
    spec = {
        "dataset": await lab.dataset("asked", rows),
        "teacher": name_of("tuned"),
        "student": name_of("target"),
        "mode": "LANGUAGE_MODE_SEQUENCE_LEVEL",
        "verifier": {"regex": {"pattern": "colour [0-9]+"}},
        "answersPerPrompt": 2,
    }
    job = await lab.done(await lab.start(language=spec))
    assert job["json"]["answers"] == {
        "asked": 26,
        "kept": 10,
        "duplicate": 10,
        "cut off": 2,
        "empty": 2,
        "verifier": 2,
    }
    (recipe,) = lab.student.recipes
    (shard,) = recipe.text_shards
    records = unpack_records(lab.blobs.get(HERE.project, shard.digest))
    assert {r.answer for r in records} == {f"{w} is colour {n}" for n, w in enumerate(WORDS[:10])}


async def test_every_dataset_has_figures_of_its_own(lab: Lab) -> None:
    trivia = [
        {"prompt": f"p{n}", "choices": ["no", f"a{n}"], "choice_index": 1, "split": "test"}
        for n in range(20)
    ]
    spec = {
        "dataset": await prompts(lab),
        "student": name_of("twin"),
        "mode": "LANGUAGE_MODE_SUPERVISED",
        "evaluationDatasets": [await facts(lab), await lab.dataset("trivia", trivia)],
    }
    report = (await lab.done(await lab.start(language=spec)))["json"]
    found = {name: one["value"] for name, one in report["after"].items()}
    assert found["facts/choice_accuracy"] == 0
    assert found["trivia/choice_accuracy"] == 0.7  # those whose answer is in the train split
    assert report["change"]["trivia/choice_accuracy"]["value"] == 0.7
    assert found["choice_accuracy"] == pytest.approx(14 / 60)


async def test_on_policy_hands_the_teacher_on(lab: Lab) -> None:
    spec = {
        "dataset": await prompts(lab),
        "teacher": name_of("tuned"),
        "student": name_of("base"),
        "mode": "LANGUAGE_MODE_ON_POLICY",
        "chat": True,
    }
    await lab.done(await lab.start(language=spec))
    (recipe,) = lab.student.recipes
    assert recipe.on_policy.teacher == name_of("tuned")
    records = unpack_records(lab.blobs.get(HERE.project, recipe.text_shards[0].digest))
    assert all(record.chat for record in records)


async def test_what_does_not_fit_is_refused_before_any_work(lab: Lab) -> None:
    data, quiz = await prompts(lab), await facts(lab)
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    chats = await lab.dataset("chats", [{"messages": turns, "split": "train"}])
    good = {"dataset": data, "teacher": name_of("tuned"), "student": name_of("twin")}
    cases = [
        ({"student": name_of("target")}, ["different tokenizers", "tuned", "target", "500 ids"]),
        ({"student": name_of("photos")}, ["not a language model"]),
        ({"student": name_of("tuned")}, ["same model"]),
        ({"teacher": name_of("bigger")}, ["cannot serve SampleTargets"]),
        ({"training": {"sequenceLength": 100}}, ["context of", "twin", "64 tokens"]),
        ({"training": {"epochs": "NaN"}}, ["training.epochs"]),
        ({"training": {"learningRate": -1}}, ["learning_rate"]),
        ({"training": {"intermediateStates": 2}}, ["for prune jobs alone"]),
        ({"sampling": {"topP": 1.5}}, ["top_p"]),
        ({"chat": True}, ["no chat template"]),
        ({"keepLayers": [3, 1]}, ["keep_layers"]),
        ({"keepLayers": [1, 4]}, ["keep_layers has 4", "twin", "0 to 3"]),
        ({"modelId": "bigger"}, ["of the catalogue"]),
        ({"dataset": chats}, ["no chat template"]),
        ({"bytesPerToken": 1}, ["bytes_per_token"]),
        ({"modelId": "tuned"}, ["would replace"]),
        ({"modelId": "../x"}, ["model_id"]),
        ({"teacher": ""}, ["teacher: is required"]),
        ({"teacher": "projects/other/models/x"}, ["not of project"]),
        ({"verifier": {"regex": {"pattern": "(a"}}}, ["pattern"]),
        ({"verifier": {"pythonTests": {}}}, ["runs no code"]),
        ({"dataset": quiz}, ["no text or answer", "40 prompt"]),
    ]
    for change, words in cases:
        message = await lab.refused(language={**good, **change})
        assert all(word in message for word in words), (change, message)
    missing = await lab.post(JOBS, {"job": {"language": {**good, "student": name_of("no")}}})
    assert missing.status_code == 404
    estimate = await lab.post(f"{JOBS}:estimate", {"job": {"language": good}})
    assert estimate.status_code == 200, estimate.text
    assert int(estimate.json()["itemCount"]) == 14
    assert int(estimate.json()["storedBytes"]) > 0


async def test_a_job_says_which_kind_of_dataset_it_needs(lab: Lab) -> None:
    answer = await lab.world.http.post(f"{lab_root()}/archives", content=make_archive())
    await lab.post("/datasets", {"datasetId": "photos", "archive": answer.json()["archive"]})
    photos, texts = await lab.ready("photos"), await prompts(lab)
    spec = {"dataset": photos, "teacher": name_of("tuned"), "student": name_of("twin")}
    assert "holds images" in await lab.refused(language=spec)
    assert "holds texts" in await lab.refused(
        concept={"dataset": texts, "teacher": name_of("photos")}
    )


def shift(**more: Any) -> dict[str, Any]:
    return {
        "base": name_of("base"),
        "tuned": name_of("tuned"),
        "target": name_of("target"),
        "seedPrompts": ["what of {word}?", "tell me of {word}"],
        "words": list(WORDS[:30]),
        "rounds": 2,
        "promptsPerRound": 20,
        **more,
    }


async def test_knowledge_moves_with_its_ablations(lab: Lab) -> None:
    off = await lab.dataset("off", [{"prompt": f"off {n}"} for n in range(60)])
    general = await lab.dataset("general", [{"text": f"t{n}", "split": "test"} for n in range(9)])
    spec = shift(
        offDomainDataset=off,
        evaluationDatasets=[await facts(lab), general],
        ablations=True,
        styleModel=name_of("style"),
        tauArms=True,
        trainingSeeds=2,
        training={"batchSequences": 4},
    )
    name = await lab.start(tuneshift=spec)
    job = await lab.done(name)
    report = job["json"]
    assert job["model"] == name_of("target-tuned")
    kept = [one["kept"] for one in report["rounds"]]
    assert all(12 <= one <= 14 for one in kept), kept  # all of the domain but the least confident
    assert sum(one["off_domain_kept"] for one in report["rounds"]) == 0
    arms = {arm["arm"]: arm for arm in report["arms"]}
    assert list(arms)[:4] == ["tuneshift", "no_filter", "random_filter", "seeds_only"]
    assert {"tau_1.1", "tau_3"} <= set(arms)
    assert "style" not in arms  # the style model kept nothing, so there is nothing to train on
    own, other = arms["tuneshift"], arms["random_filter"]
    assert abs(own["tokens"] - other["tokens"]) <= 10
    assert {arm["steps"] for arm in report["arms"]} == {10}
    assert {arm["seeds"] for arm in report["arms"]} == {2}
    accuracy = own["metrics"]["choice_accuracy"]
    assert accuracy["value"] == pytest.approx(sum(kept) / 40)
    assert accuracy["low"] < accuracy["value"] < accuracy["high"]
    assert report["before"]["choice_accuracy"]["value"] == 0
    assert report["references"]["tuned"]["choice_accuracy"]["value"] == 1
    gain = report["paired_random"]["choice_accuracy"]
    assert gain["low"] > 0
    assert own["change"]["choice_accuracy"]["value"] == accuracy["value"]
    assert own["metrics"]["cross_entropy"]["value"] == 2.5
    assert report["fact_coverage"]["covered"] == sum(kept)
    assert report["tau_counts"]["1.5"] == sum(kept)
    assert {point["run"] for point in report["curves"]} >= {"tuneshift/0", "tuneshift/1"}
    recipes = [r for r in lab.student.recipes if not r.evaluate_only]
    assert [r.discard_model for r in recipes] == [False] + [True] * (len(recipes) - 1)
    assert len({r.training.max_steps for r in recipes}) == 1
    assert {r.training.seed for r in recipes} == {0, 1}
    fit = next(one for one in job["stages"] if one["stage"] == "fit")
    assert int(fit["total"]) == len(recipes) * recipes[0].training.max_steps
    assert sum(r.evaluate_only for r in lab.student.recipes) == 3
    page = (await lab.world.http.get(f"/v1/{name}/samples?page_size=7")).json()
    assert len(page["samples"]) == 7
    assert page["stateCounts"] == {
        "KEPT": sum(kept),
        "FILTERED": 40 - sum(kept),
        "DROPPED": 0,
        "RESTORED": 0,
    }
    query = f"/v1/{name}/samples?state=SAMPLE_STATE_FILTERED&page_size=1000"
    filtered = (await lab.world.http.get(query)).json()["samples"]
    assert {one["reason"] for one in filtered} <= {"gap", "not confident"}
    assert len(filtered) == 40 - sum(kept)


async def test_a_person_reviews_before_training(lab: Lab) -> None:
    spec = shift(review=True, rounds=1, promptsPerRound=10, filter={"confidentShare": 0.8})
    name = await lab.start(tuneshift=spec)
    await lab.stage(name, "review")
    samples = (await lab.world.http.get(f"/v1/{name}/samples")).json()["samples"]
    states = {s: [o["sampleId"] for o in samples if o["state"] == s] for s in KINDS}
    kept, filtered = states["SAMPLE_STATE_KEPT"], states["SAMPLE_STATE_FILTERED"]
    assert (len(kept), len(filtered)) == (8, 2)
    bad = [
        {"dropIds": ["9-9"]},
        {"dropIds": kept[:1], "keepIds": kept[:1]},
    ]
    for body in bad:
        assert (await review(lab, name, body)).status_code == 400
    body = {"dropIds": kept[:3], "keepIds": filtered[:1], "requestId": "one"}
    for _ in range(2):
        answer = await review(lab, name, body)
        assert answer.json()["stateCounts"] == {
            "KEPT": 5,
            "FILTERED": 1,
            "DROPPED": 3,
            "RESTORED": 1,
        }
    await lab.restart()  # a gateway that goes and comes back waits on
    await asyncio.sleep(0.5)
    assert (await lab.job(name))["state"] == "JOB_STATE_RUNNING"
    await review(lab, name, {"dropIds": [kept[7]], "finish": True})
    job = await lab.done(name)
    assert job["json"]["examples"] == 5
    recipe = next(r for r in lab.student.recipes if not r.evaluate_only)
    records = unpack_records(lab.blobs.get(HERE.project, recipe.text_shards[0].digest))
    assert {r.record_id for r in records} == {*kept[3:7], filtered[0]}
    late = await review(lab, name, {"finish": True})
    assert late.status_code == 400
    assert "not in its review stage" in late.json()["message"]


KINDS = ("SAMPLE_STATE_KEPT", "SAMPLE_STATE_FILTERED")


async def review(lab: Lab, name: str, body: dict[str, Any]) -> Any:
    headers = {"Content-Type": "application/json"}
    path = f"/v1/{name}:reviewSamples"
    return await lab.world.http.post(path, content=json.dumps(body), headers=headers)


async def test_a_generator_writes_prompts_and_rounds_end(lab: Lab) -> None:
    spec = shift(seedPrompts=["what is a thing?"], words=[], rounds=5, promptsPerRound=8)
    name = await lab.start(tuneshift=spec)
    job = await lab.until(name, "SUCCEEDED", "FAILED")
    assert "no example is left to train on" in job["error"]["message"]
    samples = (await lab.world.http.get(f"/v1/{name}/samples")).json()["samples"]
    texts = [one["prompt"] for one in samples]
    assert texts[0] == "what is a thing?"
    assert len(set(texts)) == len(texts) > 1
    events = (await lab.world.http.get(f"/v1/{name}:watch")).text
    assert "two rounds kept less than 2%" in events or "no new prompts" in events


async def test_rounds_are_found_again_and_a_budget_ends_them(lab: Lab) -> None:
    first = await lab.done(await lab.start(tuneshift=shift(tokenBudget=60, rounds=4)))
    assert len(first["json"]["rounds"]) == 1
    assert "budget of 60 tokens" in first["json"]["ended"]
    calls = dict(lab.teacher.calls)
    again = await lab.done(await lab.start(tuneshift=shift(targetExamples=5, rounds=4)))
    assert len(again["json"]["rounds"]) == 1
    assert lab.teacher.calls["Generate"] == calls["Generate"]


async def test_a_gateway_that_stops_in_a_round_goes_on_in_it(lab: Lab) -> None:
    whole = await lab.done(await lab.start(tuneshift=shift(promptsPerRound=64, seed=5)))
    lab.fresh("again")
    lab.teacher.hold_after = 1  # the second shard of answers
    name = await lab.start(tuneshift=shift(promptsPerRound=64, seed=5))
    async with asyncio.timeout(20):
        while lab.teacher.calls["Generate"] <= lab.teacher.hold_after:
            await asyncio.sleep(0.02)
    await lab.restart()
    lab.teacher.hold_after = 10**9
    job = await lab.done(name)
    assert job["json"]["arms"] == whole["json"]["arms"]
    assert job["json"]["rounds"] == whole["json"]["rounds"]


async def test_a_tuneshift_that_cannot_work_is_refused(lab: Lab) -> None:
    cases = [
        ({"seedPrompts": []}, "1 to 64 are needed, not 0"),
        ({"seedPrompts": ["a {word}"] * 65}, "not 65"),
        ({"words": []}, "needs `words`"),
        ({"seedPrompts": ["a"]}, "no seed prompt holds"),
        ({"tuned": name_of("base")}, "same model as base"),
        ({"tuned": name_of("target"), "target": name_of("base")}, "different tokenizers"),
        ({"styleModel": name_of("twin"), "base": name_of("bigger")}, "different tokenizers"),
        ({"modelId": "base"}, "would replace"),
        ({"arms": ["all"]}, "is none of no_filter"),
        ({"verifier": {"numeric": {}}}, "no reference"),
        ({"filter": {"confidentShare": 1.2}}, "confident_share"),
        ({"chat": True}, "no chat template"),
        ({"rounds": -1}, "rounds"),
    ]
    for change, words in cases:
        assert words in await lab.refused(tuneshift=shift(**change)), change
    estimate = await lab.post(f"{JOBS}:estimate", {"job": {"tuneshift": shift()}})
    assert int(estimate.json()["itemCount"]) == 40


async def test_cancelling_stops_the_training(lab: Lab) -> None:
    lab.student.hang = True
    name = await lab.start(tuneshift=shift(rounds=1))
    await lab.stage(name, "fit")
    async with asyncio.timeout(10):
        while not lab.student.recipes:
            await asyncio.sleep(0.02)
    headers = {"Content-Type": "application/json"}
    await lab.world.http.post(f"/v1/{name}:cancel", content="{}", headers=headers)
    assert (await lab.job(name))["state"] == "JOB_STATE_CANCELLED"
    assert len(lab.student.stopped) == 1
    lab.student.hang = False


async def test_a_model_is_tried_and_its_files_are_shown(lab: Lab) -> None:
    spec = {
        "dataset": await prompts(lab),
        "student": name_of("twin"),
        "mode": "LANGUAGE_MODE_SUPERVISED",
        "modelId": "mine",
    }
    await lab.done(await lab.start(language=spec))
    await lab.done(await lab.start(language=spec))  # a model of the project may be made again
    found = (await lab.get("/models/mine")).json()
    assert found["files"]["base"] == "twin"
    assert found["files"]["files"]["adapter_model.safetensors"]["sizeBytes"] == "7"
    assert json.loads(found["files"]["cardJson"]) == {"student": "twin"}
    assert (await lab.get("/models/tuned")).json().get("files") is None
    body = {"prompt": {"text": "colour of word03?"}, "sampling": {"maxTokens": 20}}
    answer = await lab.post("/models/tuned:generate", body)
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = [json.loads(x[6:]) for x in answer.text.splitlines() if x[:6] == "data: "]
    assert [e["text"] for e in events if "text" in e] == ["word03", "is", "colour", "3"]
    assert events[-2]["generation"]["text"] == "word03 is colour 3"
    assert "event: end" in answer.text
    assert (await lab.post("/models/no:generate", body)).status_code == 404
    assert (await lab.post("/models/tuned:generate", {})).status_code == 400
