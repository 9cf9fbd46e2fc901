"""Two tabs on one student: the second to save is asked, and no edit is lost."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from tests.browser.driver import STUDENT, Bench
from tests.browser.running import Running


@pytest.fixture
def tabs(
    suite: Running, chromium: Browser, shots: Path, bench: Bench
) -> Iterator[tuple[Bench, Bench, list[str]]]:
    """Two tabs of two people in Tuning, and the concepts there; the head is put back at the end."""
    before = suite.head(STUDENT)
    context = chromium.new_context(viewport={"width": 1280, "height": 860})
    other = Bench(context.new_page(), suite.url, shots)
    for tab in (bench, other):
        tab.open("tuning")
    yield bench, other, bench.first_concepts(2)
    context.close()
    name = f"projects/default/students/{STUDENT}/versions/{before}"
    suite.call(f"students/{STUDENT}:setHead", {"version": name})
    assert not other.problems


def both_edit(first: Bench, second: Bench, concepts: list[str]) -> str:
    """Save in the first tab, try to in the second; return the version that the first made."""
    first.nudge(concepts[0], 12)
    second.nudge(concepts[1], -12)
    first.save()
    first.result().wait_for()
    version = first.saved_version()
    second.save()
    dialog = second.page.get_by_role("dialog")
    expect(dialog).to_contain_text("Somebody else has changed this student")
    expect(dialog).to_contain_text(f"version {version}")
    assert second.violations() == []
    return version


def edits(suite: Running, version: str) -> list[str]:
    """Return the concepts that a version's edits name."""
    found = suite.call(f"students/{STUDENT}/versions/{version}")["version"]
    return [one["edit"]["concept"] for one in found["effects"]]


def parent(suite: Running, version: str) -> str:
    """Return the number of a version's parent."""
    name: str = suite.call(f"students/{STUDENT}/versions/{version}")["version"]["parent"]
    return name.rsplit("/", 1)[1]


def test_mine_on_top_of_theirs(suite: Running, tabs: tuple[Bench, Bench, list[str]]) -> None:
    first, second, concepts = tabs
    theirs = both_edit(first, second, concepts)
    second.shot("conflict")
    second.page.get_by_role("button", name=f"Put mine on top of version {theirs}").click()
    expect(second.page.get_by_role("dialog")).to_have_count(0)
    expect(second.preview()).to_be_visible()
    second.save()
    second.result().wait_for()
    mine = second.saved_version()
    assert parent(suite, mine) == theirs
    assert edits(suite, theirs) == [concepts[0]]
    assert edits(suite, mine) == [concepts[1]]


def test_keep_both(suite: Running, tabs: tuple[Bench, Bench, list[str]]) -> None:
    first, second, concepts = tabs
    before = suite.head(STUDENT)
    theirs = both_edit(first, second, concepts)
    second.page.get_by_role("button", name=f"Keep both: branch from version {before}").click()
    second.result().wait_for()
    mine = second.saved_version()
    assert parent(suite, mine) == before == parent(suite, theirs)
    assert edits(suite, theirs) == [concepts[0]]
    assert edits(suite, mine) == [concepts[1]]


def test_not_now_keeps_the_edit(tabs: tuple[Bench, Bench, list[str]]) -> None:
    first, second, concepts = tabs
    before = second.shown_version()
    both_edit(first, second, concepts)
    second.page.get_by_role("button", name="Not now, keep my edits unsaved").click()
    expect(second.preview()).to_be_visible()
    # The page then begins at the new head; the edit waits at the version it was made on.
    second.page.reload()
    second.settle()
    second.page.get_by_role("combobox", name="Version", exact=True).select_option(before)
    expect(second.page.get_by_text("1 unsaved edit", exact=True)).to_be_visible()
