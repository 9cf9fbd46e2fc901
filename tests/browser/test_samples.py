"""The samples of a tuneshift job: sort, filter, drop and keep by mouse and keyboard, train."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from playwright.sync_api import Locator, expect
from stillhouse.gateway.v1 import jobs_pb2 as jobs

from tests.browser.driver import Bench, Theme
from tests.browser.reviewing import COUNT, EVIL, reviewed_workbench
from tests.client.fake_gateway import World

if TYPE_CHECKING:
    from playwright.sync_api import Browser


class Desk:
    """A tab with the samples on show."""

    def __init__(self, bench: Bench, world: World) -> None:
        self.bench, self.page, self.world = bench, bench.page, world
        self.panel = bench.page.get_by_role("region", name="Samples", exact=True)
        self.rows = self.panel.locator("tbody tr")

    def row(self, sample: str) -> Locator:
        """Return a sample's row."""
        choice = self.page.get_by_role("checkbox", name=f"Choose {sample}", exact=True)
        return self.rows.filter(has=choice)

    def filter(self, state: str) -> None:
        """Show samples in one state."""
        group = self.panel.get_by_role("group", name="State")
        group.get_by_role("button", name=re.compile(f"^{state}")).click()

    def reviews(self) -> list[jobs.ReviewJobSamplesRequest]:
        """Return what the gateway was asked to change."""
        return [c for c in self.world.calls if isinstance(c, jobs.ReviewJobSamplesRequest)]


@pytest.fixture
def desk(chromium: Browser, shots: Path) -> Iterator[Desk]:
    """The samples of a job that waits, at 1280 pixels."""
    with reviewed_workbench() as (url, world):
        context = chromium.new_context(viewport={"width": 1280, "height": 860})
        context.set_default_timeout(20_000)
        made = Desk(Bench(context.new_page(), url, shots), world)
        made.bench.page.goto(f"{url}/#/p/default/setup")
        expect(made.rows.first).to_be_visible()
        try:
            yield made
        finally:
            context.close()
        assert not made.bench.problems


def test_rows_are_sorted_filtered_and_searched(desk: Desk) -> None:
    gap = desk.panel.get_by_role("columnheader", name="Gap")
    gap.get_by_role("button").click()
    expect(gap).to_have_attribute("aria-sort", "ascending")
    expect(desk.rows.first).to_contain_text("stamp 0?")
    gap.get_by_role("button").click()
    expect(desk.rows.first).to_contain_text(f"stamp {COUNT - 1}?")
    desk.filter("filtered out")
    expect(desk.rows).to_have_count(COUNT // 3)
    desk.panel.get_by_role("searchbox").fill("number 42.")
    expect(desk.rows).to_have_count(1)
    expect(desk.panel.get_by_role("img", name=re.compile("Histogram of the gap"))).to_be_visible()


def test_samples_are_text_and_never_markup(desk: Desk) -> None:
    expect(desk.row("1-1")).to_contain_text(EVIL)
    assert desk.page.evaluate("window.pwned") is None
    assert desk.page.locator("main [onerror]").count() == 0


def test_a_row_is_dropped_and_a_choice_is_kept(desk: Desk) -> None:
    desk.page.get_by_role("checkbox", name="Choose 1-2", exact=True).focus()
    desk.row("1-2").get_by_role("button", name="Drop 1-2").click()
    expect(desk.row("1-2")).to_contain_text("dropped")
    desk.filter("filtered out")
    desk.panel.get_by_role("button", name=re.compile("^Choose all")).click()
    desk.panel.get_by_role("button", name="Keep chosen").click()
    expect(desk.rows).to_have_count(0)
    expect(desk.panel.get_by_role("status")).to_contain_text(f"{COUNT - 1} samples of {COUNT}")
    first, second = desk.reviews()
    assert [*first.drop_ids] == ["1-2"]
    assert len(second.keep_ids) == COUNT // 3
    assert first.request_id != second.request_id


def test_the_keyboard_is_enough(desk: Desk) -> None:
    desk.rows.first.focus()
    for key in ("ArrowDown", "ArrowDown", "d", "ArrowDown", "k", "ArrowUp", "ArrowUp", " "):
        desk.page.keyboard.press(key)
    expect(desk.row("1-2")).to_contain_text("dropped")
    expect(desk.row("1-3")).to_contain_text("restored")
    expect(desk.page.get_by_role("checkbox", name="Choose 1-1", exact=True)).to_be_checked()


def test_training_goes_on_with_what_is_kept(desk: Desk) -> None:
    desk.panel.get_by_role("button", name=re.compile("^Train with these")).click()
    job = desk.page.get_by_role("region", name=re.compile("What tuned knows"))
    expect(job.locator(".state")).to_have_text("done")
    assert desk.reviews()[-1].finish
    expect(desk.rows).to_have_count(0)
    desk.panel.get_by_role("button", name="Show the samples").click()
    expect(desk.rows.first).to_be_visible()
    expect(desk.panel.get_by_role("button", name=re.compile("^Train with"))).to_have_count(0)
    desk.panel.get_by_role("button", name="Hide the samples").click()
    expect(job.get_by_role("img", name=re.compile("Loss by step"))).to_be_visible()
    job.get_by_role("button", name="Held-out cross entropy").click()
    curve = job.get_by_role("img", name=re.compile("2.00 at step 10"))
    expect(curve.locator("canvas")).to_be_visible()
    report = job.get_by_role("region", name="Report")
    expect(report).to_contain_text("0.600 [0.550, 0.650]")
    expect(report).to_contain_text("<b>odd</b>")
    assert desk.bench.violations() == []
    desk.bench.shot("samples-trained")


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 768, 1280])
def test_it_fits_and_can_be_read(desk: Desk, theme: Theme, width: int) -> None:
    desk.page.emulate_media(color_scheme=theme)
    desk.page.set_viewport_size({"width": width, "height": 860})
    desk.row("1-4").scroll_into_view_if_needed()
    expect(desk.row("1-4").get_by_role("button", name="Drop 1-4")).to_be_visible()
    desk.bench.shot(f"samples-{width}-{theme}")
    assert desk.bench.overflow() == []
    assert desk.bench.violations() == []
