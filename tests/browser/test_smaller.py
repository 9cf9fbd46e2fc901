"""Smaller models: the forms of prune and classifier jobs, and the candidates of one that ended."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from playwright.sync_api import Locator, Response, expect
from stillhouse.gateway.v1 import jobs_pb2 as jobs

from tests.browser.driver import Bench, Theme
from tests.browser.smaller import CHOSEN, found_cuts, smaller_workbench
from tests.client.fake_gateway import P, World

if TYPE_CHECKING:
    from playwright.sync_api import Browser

Desk = tuple[Bench, World]


@pytest.fixture
def desk(chromium: Browser, shots: Path) -> Iterator[Desk]:
    """Setup of a project with texts, images and two jobs that have ended."""
    with smaller_workbench() as (url, world):
        context = chromium.new_context(viewport={"width": 1280, "height": 1500})
        context.set_default_timeout(20_000)
        bench = Bench(context.new_page(), url, shots)
        bench.page.goto(f"{url}/#/p/default/setup")
        try:
            yield bench, world
        finally:
            context.close()
        assert not bench.problems


def make(bench: Bench, dataset: str, what: str) -> Locator:
    """Choose a dataset and what to make of it; return the form."""
    bench.page.get_by_role("radio", name=re.compile(f"^{dataset}")).check()
    group = bench.page.get_by_role("group", name="What to make")
    group.get_by_role("button", name=what).click()
    return bench.page.locator("form").last


def ended(bench: Bench, title: str) -> Locator:
    """Show a job of the list; return its panel."""
    bench.page.get_by_role("button", name=f"Show the stages of the job: {title}").click()
    return bench.page.get_by_role("region", name=title)


def sent(bench: Bench, world: World, form: Locator, button: str) -> jobs.DistillationJob:
    """Press the button and return the job that the gateway got."""
    with bench.page.expect_response(re.compile("/distillationJobs$")):
        form.get_by_role("button", name=button, exact=True).click()
    job: jobs.DistillationJob = world.last(jobs.CreateDistillationJobRequest).job
    return job


def test_a_model_is_pruned(desk: Desk) -> None:
    bench, world = desk
    form = make(bench, "notes", "A model is pruned")
    options = form.get_by_label("Model to prune").locator("option").all_inner_texts()
    assert options == ["big", "other"]  # an adapter has no parts of its own
    share = form.get_by_role("spinbutton", name=re.compile("^At most, %"))
    start = form.get_by_role("button", name="Prune the model")
    share.fill("100")
    expect(form.get_by_text("between 0 and 100 %")).to_be_visible()
    expect(start).to_be_disabled()
    share.fill("50")
    expect(form.get_by_text("At most about 81.4M of its 135M parameters")).to_be_visible()
    form.get_by_label("What may be cut").select_option("PRUNE_AXES_WIDTH")
    form.get_by_label("Candidates to try").fill("4")
    form.get_by_text("More settings").click()
    form.get_by_label("Train comparisons too").check()
    form.get_by_label("Training seeds").fill("2")
    form.get_by_label("Length of a trial").fill("20")
    form.get_by_label("general", exact=True).check()
    form.get_by_label(re.compile("^Steps")).fill("200")
    expect(form.get_by_text("10 records")).to_be_visible()
    bench.shot("prune-form")
    spec = sent(bench, world, form, "Prune the model").prune
    assert (spec.dataset, spec.model) == (f"{P}/datasets/notes", f"{P}/models/big")
    assert spec.WhichOneof("size") == "non_embedding_share"
    assert spec.non_embedding_share == 0.5
    assert spec.axes == jobs.PRUNE_AXES_WIDTH
    assert (spec.candidates, spec.ranking_steps, spec.training_seeds) == (4, 20, 2)
    assert spec.controls
    assert not spec.correct_teacher
    assert spec.training.max_steps == 200
    assert not spec.training.HasField("lora")
    assert [*spec.evaluation_datasets] == [f"{P}/datasets/general"]
    # Its curves come by run, as those of other jobs do.
    panel = bench.page.get_by_role("region", name="Pruned big for notes")
    curves = panel.get_by_role("img", name=re.compile("^Loss by step"))
    expect(curves).to_have_attribute("aria-label", re.compile("candidate/0: 3.30 at step 10"))


def test_sizes_are_bytes_or_parameters_too(desk: Desk) -> None:
    bench, world = desk
    form = make(bench, "notes", "A model is pruned")
    form.get_by_label("Say the size as").select_option("bytes")
    form.get_by_label("At most, MB").fill("200")
    form.get_by_label(re.compile("^Precision")).select_option("bfloat16")
    expect(form.get_by_text("At most 100M parameters of its 135M")).to_be_visible()
    form.get_by_label("Correct the teacher first").check()
    expect(form.get_by_text("it is kept as big-pruned-teacher")).to_be_visible()
    spec = sent(bench, world, form, "Prune the model").prune
    assert spec.max_bytes == 200_000_000
    assert spec.training.precision == "bfloat16"
    assert spec.correct_teacher


def test_a_time_and_rounds_are_asked_for(desk: Desk) -> None:
    bench, world = desk
    form = make(bench, "notes", "A model is pruned")
    form.get_by_label("Say the size as").select_option("latency")
    form.get_by_label("At most, ms").fill("20.5")
    form.get_by_text("More settings").click()
    form.get_by_label("Rounds").fill("2")
    expect(form.get_by_text("A time has no even steps")).to_be_visible()
    form.get_by_label("Rounds").fill("1")
    form.get_by_label("Hidden states to match").fill("4")
    spec = sent(bench, world, form, "Prune the model").prune
    assert (spec.max_latency_ms, spec.rounds) == (20.5, 0)
    assert spec.training.intermediate_states == 4


def test_a_classifier_is_made_smaller(desk: Desk) -> None:
    bench, world = desk
    form = make(bench, "pets", "A smaller classifier")
    form.get_by_text("Another model of this installation").click()
    form.get_by_role("radio", name=re.compile("^efficientnet-lite0")).check()
    start = form.get_by_role("button", name="Train the classifier")
    architecture = form.get_by_role("combobox", name=re.compile("^Architecture"))
    architecture.fill("../x")
    expect(form.get_by_text("Write timm’s name")).to_be_visible()
    expect(start).to_be_disabled()
    architecture.fill("resnet18")
    form.get_by_label("Input size, pixels").fill("96")
    form.get_by_label("How images are changed").select_option("strong")
    form.get_by_label("Views of each image").fill("2")
    form.get_by_text("More settings").click()
    form.get_by_label("Train comparisons too").check()
    form.get_by_label("Training seeds").fill("3")
    form.get_by_label(re.compile("^Temperature")).fill("2")
    expect(form.get_by_text("10 images")).to_be_visible()
    bench.shot("classifier-form")
    spec = sent(bench, world, form, "Train the classifier").classifier
    assert (spec.dataset, spec.teacher) == (
        f"{P}/datasets/pets",
        f"{P}/models/efficientnet-lite0",
    )
    assert (spec.architecture, spec.weights, spec.input_size) == ("resnet18", "", 96)
    assert (spec.augmentation.policy, spec.augmentation.views) == ("strong", 2)
    assert (spec.controls, spec.training_seeds, spec.training.temperature) == (True, 3, 2)


@pytest.mark.parametrize(
    ("what", "button", "kind"),
    [
        ("A smaller classifier", "Train the teacher, then the classifier", "classifier"),
        ("A student of concepts", "Train the teacher, then distil a student", "concept"),
    ],
)
def test_what_waits_for_a_teacher_follows_it(desk: Desk, what: str, button: str, kind: str) -> None:
    bench, world = desk
    form = make(bench, "pets", what)

    def follows(answer: Response) -> bool:
        asked = answer.request.post_data or ""
        return answer.url.endswith("/distillationJobs") and f'"{kind}":' in asked

    with bench.page.expect_response(follows):
        form.get_by_role("button", name=button).click()
    started = [c.job for c in world.calls if isinstance(c, jobs.CreateDistillationJobRequest)]
    assert [job.WhichOneof("spec") for job in started] == ["teacher_head", kind]
    spec = started[1].classifier if kind == "classifier" else started[1].concept
    assert spec.dataset == f"{P}/datasets/pets"
    assert spec.teacher == f"{P}/models/tiny"  # what the teacher's job made
    assert kind == "concept" or started[1].classifier.architecture == "small-cnn"


def test_candidates_are_shown_and_one_is_pruned_to(desk: Desk) -> None:
    bench, world = desk
    panel = ended(bench, "Pruned big for notes")
    plot = panel.get_by_role("img", name=re.compile("^Held-out cross-entropy by parameters"))
    expect(plot.locator("canvas")).to_be_visible()
    expect(plot).to_have_attribute("aria-label", re.compile("6 candidates, 4 of them trained"))
    rows = panel.get_by_role("region", name="Candidates").locator("tbody tr")
    expect(rows).to_have_count(len(found_cuts()))
    expect(rows.nth(CHOSEN)).to_contain_text("taken")
    expect(rows.nth(4)).to_contain_text("–")
    expect(panel.get_by_role("region", name="Report")).to_contain_text("random weights")
    shown = plot.get_attribute("aria-label")
    panel.get_by_role("button", name="Comparisons").click()
    expect(plot).to_have_attribute("aria-label", shown or "")  # the job's own arm stays
    button = panel.get_by_role("button", name="Prune to this shape instead")
    expect(button).to_be_disabled()
    rows.nth(5).get_by_role("radio").check()
    expect(
        panel.get_by_text("Candidates 0, 1, 2, 3, 4 are within that too, and likelier")
    ).to_be_visible()
    rows.nth(CHOSEN).get_by_role("radio").check()
    expect(button).to_be_disabled()
    bench.page.keyboard.press("ArrowDown")
    expect(rows.nth(CHOSEN + 1).get_by_role("radio")).to_be_checked()
    expect(panel.get_by_text("Of the candidates here that is candidate 2")).to_be_visible()
    bench.shot("prune-candidates")
    button.click()
    form = bench.page.locator("form").last
    expect(form.get_by_text("Filled in for candidate 2")).to_be_visible()
    expect(form.get_by_label("Model to prune")).to_be_focused()
    wanted = found_cuts()[CHOSEN + 1]
    spec = sent(bench, world, form, "Prune the model").prune
    assert spec.max_parameters == wanted["shape"]["parameters"]
    assert (spec.axes, spec.candidates) == (jobs.PRUNE_AXES_WIDTH, 0)
    assert spec.model_id == "big-pruned-candidate-2"
    assert spec.controls
    assert (spec.training_seeds, spec.training.max_steps) == (3, 400)


def test_a_candidate_is_picked_in_the_plot(desk: Desk) -> None:
    bench, _ = desk
    panel = ended(bench, "Pruned big for notes")
    canvas = panel.locator(".canvas canvas").last
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    assert box is not None
    for x in range(50, int(box["width"]) - 15, 4):  # ticks of what was not trained lie on the axis
        bench.page.mouse.click(box["x"] + x, box["y"] + box["height"] - 40)
        if panel.get_by_role("radio").nth(4).is_checked():
            return
    raise AssertionError("no tick could be picked")


def test_a_classifier_is_shown_beside_teacher_and_controls(desk: Desk) -> None:
    bench, _ = desk
    panel = ended(bench, "Classifier for pets")
    report = panel.get_by_role("region", name="Report")
    expect(report.get_by_role("rowheader")).to_have_text(
        ["the teacher", "teacher and labels", "labels alone", "teacher alone"]
    )
    expect(report).to_contain_text("Calibration error")
    expect(panel.get_by_text("0.187 ms on cpu")).to_be_visible()
    gains = panel.get_by_role("region", name="Teacher and labels minus")
    expect(gains.get_by_role("rowheader")).to_have_text(["labels alone"])


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_forms_and_reports_fit_and_can_be_read(desk: Desk, theme: Theme, width: int) -> None:
    bench, _ = desk
    bench.page.emulate_media(color_scheme=theme)
    bench.page.set_viewport_size({"width": width, "height": 1100})

    def look(name: str, shown: Locator) -> None:
        shown.scroll_into_view_if_needed()
        bench.shot(f"{name}-{width}-{theme}")
        assert bench.overflow() == []
        assert bench.violations() == []

    for dataset, what in (("notes", "A model is pruned"), ("pets", "A smaller classifier")):
        form = make(bench, dataset, what)
        form.get_by_text("More settings").click()
        look(f"form-{dataset}", form.get_by_role("button").last)
    for title in ("Pruned big for notes", "Classifier for pets"):
        panel = ended(bench, title)
        expect(panel.get_by_role("region", name="Report")).to_be_visible()
        if title.startswith("Pruned"):
            panel.get_by_role("radio").nth(2).check()
            look("candidates", panel.get_by_role("button", name="Prune to this shape instead"))
        else:
            look("classifier-report", panel.get_by_role("region", name="Report"))
