"""Each view: shots at two widths in both themes, nothing serious from axe, no sideways scroll."""

from __future__ import annotations

import pytest
from playwright.sync_api import Route

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


@pytest.mark.parametrize("width", SIZES)
def test_many_branches_leave_room_for_the_words(bench: Bench, suite: Running, width: int) -> None:
    bench.page.set_viewport_size({"width": width, "height": SIZES[width]})

    def branch(route: Route) -> None:
        """Answer with fifty more children of the first version."""
        body = route.fetch().json()
        first = body["versions"][0]
        body["versions"] += [
            {**first, "name": f"{first['name']}{at:03}", "parent": first["name"], "job": ""}
            for at in range(50)
        ]
        route.fulfill(json=body)

    bench.page.route("**/versions?*", branch)
    bench.open("provenance")
    tree = bench.page.get_by_role("region", name="Versions, newest first")
    bounds = tree.get_by_role("button").first.bounding_box()
    bench.shot(f"provenance-branches-{width}")
    assert bounds is not None
    assert bounds["width"] > 150
