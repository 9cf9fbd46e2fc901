"""Jobs on language models from forms: what is filled in is what the gateway gets."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from playwright.sync_api import expect
from stillhouse.gateway.v1 import datasets_pb2 as datasets
from stillhouse.gateway.v1 import jobs_pb2 as jobs

from tests.browser.driver import Bench, Theme
from tests.browser.reviewing import reviewed_workbench
from tests.client.fake_gateway import P, World

if TYPE_CHECKING:
    from playwright.sync_api import Browser

Desk = tuple[Bench, World]


@pytest.fixture
def desk(chromium: Browser, shots: Path) -> Iterator[Desk]:
    """Setup of a project with two text datasets."""
    with reviewed_workbench() as (url, world):
        for name in ("notes", "general"):
            world.datasets[f"{P}/datasets/{name}"] = datasets.Dataset(
                name=f"{P}/datasets/{name}",
                state=datasets.DATASET_STATE_READY,
                kind=datasets.DATASET_KIND_TEXTS,
                item_count=120,
                split_counts={"train": 100, "test": 20},
                field_counts={"prompt": 120, "answer": 100},
            )
        context = chromium.new_context(viewport={"width": 1280, "height": 1400})
        context.set_default_timeout(20_000)
        bench = Bench(context.new_page(), url, shots)
        bench.page.goto(f"{url}/#/p/default/setup")
        try:
            yield bench, world
        finally:
            context.close()
        assert not bench.problems


def test_a_language_job_is_started_from_texts(desk: Desk) -> None:
    bench, world = desk
    page = bench.page
    expect(page.get_by_role("list", name="Fields")).to_contain_text("answer 100")
    page.get_by_label(re.compile("^Teacher")).select_option("big")
    page.get_by_label("What it learns").select_option("LANGUAGE_MODE_SEQUENCE_LEVEL")
    layers = page.get_by_label("Layers of the student to keep")
    start = page.get_by_role("button", name="Train the model")
    layers.fill("9-2")
    expect(start).to_be_disabled()
    layers.fill("0-4:2")
    page.locator("form").get_by_text("More settings").click()
    page.get_by_label("general", exact=True).check()
    page.get_by_label("Steps").fill("40")
    expect(page.get_by_text("10 records")).to_be_visible()
    bench.shot("language-form")
    with page.expect_response("**/distillationJobs"):
        start.click()
    sent = world.last(jobs.CreateDistillationJobRequest).job.language
    assert sent.dataset == f"{P}/datasets/notes"
    assert (sent.teacher, sent.student) == (f"{P}/models/big", f"{P}/models/tiny")
    assert [*sent.keep_layers] == [0, 2, 4]
    assert sent.training.max_steps == 40
    assert [*sent.evaluation_datasets] == [f"{P}/datasets/general"]


def test_knowledge_is_carried_over_from_a_tuned_model(desk: Desk) -> None:
    bench, world = desk
    page = bench.page
    page.get_by_role("button", name="From a tuned model").click()
    seeds = page.get_by_label("A few prompts of the domain")
    start = page.get_by_role("button", name="Carry it over")
    expect(start).to_be_disabled()
    seeds.fill("What is {word}?")
    page.get_by_label("Words").focus()
    expect(page.get_by_text("write the words")).to_be_visible()
    page.get_by_label("Words").fill("heron\nplover")
    page.get_by_label("Prompts outside the domain").select_option("general")
    expect(page.get_by_text("10 prompts")).to_be_visible()
    bench.shot("tuneshift-form")
    with page.expect_response("**/distillationJobs"):
        start.click()
    sent = world.last(jobs.CreateDistillationJobRequest).job.tuneshift
    models = [name.rsplit("/", 1)[1] for name in (sent.tuned, sent.base, sent.target)]
    assert models == ["tiny", "big", "other"]
    assert [*sent.seed_prompts] == ["What is {word}?"]
    assert [*sent.words] == ["heron", "plover"]
    assert sent.off_domain_dataset == f"{P}/datasets/general"
    assert sent.review
    assert sent.training.HasField("lora")


def test_texts_are_uploaded_as_texts(desk: Desk, tmp_path: Path) -> None:
    bench, world = desk
    page = bench.page
    (tmp_path / "stamps.jsonl").write_text('{"text": "A heron."}\n')
    page.get_by_role("button", name="Add images or texts …").click()
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Choose texts").click()
    chooser.value.set_files(tmp_path / "stamps.jsonl")
    expect(page.get_by_role("textbox", name="Name", exact=True).first).to_have_value("stamps")
    page.get_by_role("button", name="Upload", exact=True).click()
    expect(page.get_by_role("radio", name=re.compile("^stamps"))).to_be_checked()
    assert world.last(datasets.CreateDatasetRequest).kind == datasets.DATASET_KIND_TEXTS


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_the_forms_fit_and_can_be_read(desk: Desk, theme: Theme, width: int) -> None:
    bench, _ = desk
    bench.page.emulate_media(color_scheme=theme)
    bench.page.set_viewport_size({"width": width, "height": 900})
    for button in ("From images or texts", "From a tuned model"):
        bench.page.get_by_role("button", name=button).click()
        form = bench.page.locator("form").last
        form.get_by_text("More settings").click()
        form.get_by_role("button").last.scroll_into_view_if_needed()
        bench.shot(f"form-{button.split()[2]}-{width}-{theme}")
        assert bench.overflow() == []
        assert bench.violations() == []
