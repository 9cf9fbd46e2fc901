"""A day's work: where the student does worst, why, tune it, its gain and cost, compare, undo."""

from __future__ import annotations

import re

from playwright.sync_api import expect

from tests.browser.driver import Bench
from tests.browser.running import Running

STUDENT = "fruit-fine"


def test_from_the_worst_class_to_undo(bench: Bench, suite: Running) -> None:
    page = bench.page
    page.goto(bench.url)
    page.get_by_role("combobox", name="Student", exact=True).select_option(STUDENT)
    bench.settle()
    before = suite.head(STUDENT)

    # The table begins with the class that loses most to the teacher.
    table = page.get_by_role("table").filter(has=page.get_by_role("columnheader", name="Class"))
    worst = table.get_by_role("rowheader").first.get_by_role("button").inner_text()
    bench.pick_class(worst)
    bench.shot("scenario-1-worst-class")

    parting = page.get_by_role(
        "button", name=re.compile(rf"\d+ of \d+ {worst}: Teacher right, student wrong")
    )
    missed = int((parting.get_attribute("aria-label") or "").split()[0])
    assert missed > 0
    parting.click()
    grid = page.get_by_role("region", name=f"Images, {missed}")
    grid.wait_for()
    bench.settle()
    bench.shot("scenario-2-misaligned")

    grid.get_by_role("button").first.click()
    dialog = page.get_by_role("dialog")
    reasons = dialog.get_by_role("list", name=re.compile("Contributions of concepts to"))
    reasons.get_by_role("button").first.click()
    bench.settle()
    bench.shot("scenario-3-why")
    tune = dialog.get_by_role("button", name=re.compile("^Tune “"))
    found = re.fullmatch(r"Tune “(.+)” for (.+)", tune.inner_text())
    assert found, tune.inner_text()
    concept, label = found[1], found[2]
    tune.click()

    # What speaks for the wrong class shall speak less for it.
    slider = bench.slider(concept)
    slider.wait_for()
    bench.settle()
    weight = float(slider.get_attribute("aria-valuenow") or 0)
    bench.drag(concept, -0.2 if weight > 0 else 0.2)
    expect(bench.preview()).to_be_visible()
    expect(bench.preview()).to_contain_text("before refit")
    first = bench.preview().inner_text()
    bench.drag(concept, -0.15 if weight > 0 else 0.15)
    expect(bench.preview()).not_to_have_text(first)
    expect(bench.preview()).not_to_contain_text("No decision changes yet")
    bench.shot("scenario-4-preview")

    bench.save()
    bench.result().wait_for()
    after = bench.saved_version()
    # The new version is on show a moment later than the answer.
    expect(page.get_by_role("combobox", name="Version", exact=True)).to_have_value(after)
    bench.settle()
    bench.shot("scenario-5-gain-and-cost")
    assert suite.head(STUDENT) == after != before
    expect(bench.result()).to_contain_text("Change [95 %]")
    expect(bench.result()).to_contain_text("Agrees with teacher")
    expect(bench.preview()).to_have_count(0)

    bench.result().get_by_role("button", name="Compare versions").click()
    page.get_by_role("button", name="Compare …").click()
    comparison = page.get_by_role("region", name="Compare")
    expect(comparison).to_contain_text(f"{label}: {concept}")
    bench.settle()
    bench.shot("scenario-6-compare")
    expect(page.get_by_role("heading", name=f"Version {after}")).to_be_visible()

    page.get_by_role("button", name="Undo", exact=True).last.click()
    expect(page.get_by_role("combobox", name="Version", exact=True)).to_have_value(before)
    bench.settle()
    bench.shot("scenario-7-undone")
    assert suite.head(STUDENT) == before


def test_a_bar_moves_by_keyboard_number_and_factor(bench: Bench) -> None:
    page = bench.page
    bench.open("tuning")
    (concept,) = bench.first_concepts(1)
    slider = bench.slider(concept)
    start = slider.get_attribute("aria-valuenow")

    bench.nudge(concept, 5)
    expect(slider).not_to_have_attribute("aria-valuenow", start or "")
    expect(bench.preview()).to_be_visible()
    page.keyboard.press("Escape")
    expect(slider).to_have_attribute("aria-valuenow", start or "")

    box = page.get_by_role("spinbutton", name=f"Weight of {concept}", exact=True)
    box.fill("0.1")
    box.press("Enter")
    expect(slider).to_have_attribute("aria-valuenow", "0.1")
    page.get_by_role("button", name=f"Take back the edit of {concept}", exact=True).click()
    expect(slider).to_have_attribute("aria-valuenow", start or "")

    page.get_by_role("button", name=concept, exact=True).click()
    page.get_by_role("button", name="▴ Up").click()
    expect(slider).not_to_have_attribute("aria-valuenow", start or "")
    page.get_by_role("button", name="Discard").click()
    expect(slider).to_have_attribute("aria-valuenow", start or "")
    expect(bench.preview()).to_have_count(0)
