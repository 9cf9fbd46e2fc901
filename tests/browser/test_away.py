"""The gateway dies: the page says so, keeps the edits, and goes on once it is back."""

from __future__ import annotations

from playwright.sync_api import expect

from tests.browser.driver import STUDENT, Bench
from tests.browser.running import Running

BANNER = "The gateway does not answer."


def test_edits_outlive_a_dead_gateway(bench: Bench, suite: Running) -> None:
    page = bench.page
    before = suite.head(STUDENT)
    bench.open("tuning")
    (concept,) = bench.first_concepts(1)
    bench.nudge(concept, 12)
    expect(bench.preview()).to_be_visible()

    # A suite that others use is only hidden from this tab.
    if suite.data_dir is None:
        page.context.set_offline(True)
    else:
        suite.kill_gateway()
    bench.save()
    banner = page.get_by_role("status").filter(has_text=BANNER)
    expect(banner).to_contain_text("Your edits are kept here")
    expect(page.get_by_role("alert")).to_contain_text("Try again")
    expect(bench.preview()).to_be_visible()
    bench.shot("gateway-away")
    assert bench.violations() == []

    page.context.set_offline(False)
    expect(banner).to_have_count(0, timeout=90_000)
    bench.save()
    bench.result().wait_for()
    assert suite.head(STUDENT) == bench.saved_version()
    bench.result().get_by_role("button", name="Undo this edit").click()
    expect(page.get_by_role("combobox", name="Version", exact=True)).to_have_value(before)


def test_an_unknown_student_says_so(bench: Bench) -> None:
    bench.open("tuning", student="nobody")
    expect(bench.page.get_by_role("alert").first).to_contain_text("nobody")
    bench.shot("unknown-student")
    assert bench.violations() == []
