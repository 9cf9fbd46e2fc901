"""Each view: shots at two widths in both themes, nothing serious from axe, no sideways scroll."""

from __future__ import annotations

import pytest

from tests.browser.driver import Bench, Theme
from tests.browser.running import Running

VIEWS = ("setup", "performance", "concepts", "tuning", "images", "provenance", "detail", "welcome")
SIZES = {1280: 860, 390: 844}


def go(bench: Bench, suite: Running, view: str) -> None:
    """Open a view, the detail of an image, or what a project without any data begins with."""
    if view == "detail":
        student = suite.call("students/fruit-fine")["student"]["headVersion"]
        path = student.removeprefix("projects/default/")
        item = suite.call(f"{path}:inspect")["data"]["items"][0]["itemId"]
        bench.open("images", image=item)
        bench.page.get_by_role("dialog").get_by_role("list").wait_for()
        bench.settle()
    elif view == "welcome":
        bench.page.goto(f"{bench.url}/#/p/nothing-yet/setup")
        bench.page.get_by_role("heading", name="Welcome").wait_for()
        bench.settle()
    else:
        bench.open(view)


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", SIZES)
@pytest.mark.parametrize("view", VIEWS)
def test_view(bench: Bench, suite: Running, view: str, width: int, theme: Theme) -> None:
    bench.page.set_viewport_size({"width": width, "height": SIZES[width]})
    bench.page.emulate_media(color_scheme=theme, reduced_motion="reduce")
    go(bench, suite, view)
    bench.shot(f"{view}-{width}-{theme}")
    assert bench.violations() == []
    assert bench.overflow() == []
