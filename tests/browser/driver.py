"""One tab of the workbench: what several tests do in it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal

from playwright.sync_api import ConsoleMessage, Locator, Page, expect

AXE = Path(__file__).resolve().parents[2] / "web" / "node_modules" / "axe-core" / "axe.min.js"
STUDENT = "fruit-fine"
Theme = Literal["light", "dark"]
# What a dead gateway or a refused request makes the browser itself write.
NETWORK = "Failed to load resource"


class Bench:
    """A tab; `problems` collects what the page throws or logs as an error."""

    def __init__(self, page: Page, url: str, shots: Path) -> None:
        self.page, self.url, self.shots = page, url, shots
        self.problems: list[str] = []
        page.on("pageerror", lambda error: self.problems.append(f"thrown: {error}"))
        page.on("console", self._heard)

    def _heard(self, message: ConsoleMessage) -> None:
        if message.type == "error" and NETWORK not in message.text:
            self.problems.append(f"console: {message.text}")

    def open(self, view: str, student: str = STUDENT, **query: str) -> None:
        """Go to a view by its address and wait until it shows data."""
        part = f"/s/{student}" if student else ""
        values = "&".join(f"{key}={value}" for key, value in query.items())
        self.page.goto(f"{self.url}/#/p/default{part}/{view}{'?' if values else ''}{values}")
        self.settle()

    def settle(self) -> None:
        """Wait until a view is there and nothing loads any more."""
        self.page.locator("main .view").first.wait_for()
        expect(self.page.locator("[aria-busy=true]")).to_have_count(0)
        self.page.wait_for_load_state("networkidle")

    def shot(self, name: str) -> None:
        """Keep a screenshot."""
        self.page.screenshot(path=self.shots / f"{name}.png", animations="disabled")

    def pick_class(self, label: str) -> None:
        """Choose a class in Performance."""
        button = self.page.get_by_role("button", name=label, exact=True)
        if button.get_attribute("aria-pressed") != "true":
            button.click()

    def slider(self, concept: str) -> Locator:
        """Return the bar of a concept."""
        return self.page.get_by_role("slider", name=concept, exact=True)

    def drag(self, concept: str, share: float, steps: int = 20) -> None:
        """Drag a bar's handle with the mouse by a share of the track's width."""
        slider = self.slider(concept)
        slider.scroll_into_view_if_needed()
        bounds = slider.bounding_box()
        low, high, now = (
            float(slider.get_attribute(f"aria-value{what}") or 0) for what in ("min", "max", "now")
        )
        assert bounds is not None
        x = bounds["x"] + bounds["width"] * (now - low) / (high - low)
        y = bounds["y"] + bounds["height"] / 2
        self.page.mouse.move(x, y)
        self.page.mouse.down()
        self.page.mouse.move(x + share * bounds["width"], y, steps=steps)
        self.page.mouse.up()

    def nudge(self, concept: str, presses: int) -> None:
        """Move a bar with the keyboard: right for more than 0 presses, left for fewer."""
        self.slider(concept).focus()
        for _ in range(abs(presses)):
            self.page.keyboard.press("ArrowRight" if presses > 0 else "ArrowLeft")

    def preview(self) -> Locator:
        """Return what unsaved edits change."""
        return self.page.get_by_role("group", name="Preview, before refit")

    def save(self) -> None:
        """Press Save."""
        self.page.get_by_role("button", name="Save", exact=True).click()

    def result(self) -> Locator:
        """Return what a saved edit did."""
        return self.page.get_by_role("status").filter(has_text="Saved as version")

    def saved_version(self) -> str:
        """Wait for the verified answer; return the new version's number."""
        text = self.result().inner_text()
        found = re.search(r"Saved as version (\d+)", text)
        assert found, text
        return found[1]

    def shown_version(self) -> str:
        """Return the number of the version on show."""
        return self.page.get_by_role("combobox", name="Version", exact=True).input_value()

    def first_concepts(self, count: int) -> list[str]:
        """Return the names of the first bars in Tuning."""
        sliders = self.page.get_by_role("slider")
        sliders.nth(count - 1).wait_for()
        ids = [sliders.nth(at).get_attribute("aria-labelledby") for at in range(count)]
        return [self.page.locator(f"[id='{one}']").inner_text() for one in ids]

    def violations(self) -> list[str]:
        """Return what axe-core calls serious or critical, one line each."""
        self.page.evaluate(AXE.read_text())
        found: list[dict[str, Any]] = self.page.evaluate(
            "async () => (await axe.run(document, { resultTypes: ['violations'] })).violations"
        )
        return [
            f"{one['impact']} {one['id']}: {one['help']}; "
            + "; ".join(f"{node['html'][:160]} ({node['target']})" for node in one["nodes"][:3])
            for one in found
            if one["impact"] in ("serious", "critical")
        ]

    def overflow(self) -> list[str]:
        """Return what sticks out of the page to the right, as far as it makes the page scroll."""
        found: list[str] = self.page.evaluate(
            """() => {
                const root = document.documentElement;
                const scrolls = (one) => /auto|scroll/.test(getComputedStyle(one).overflowX);
                return [root, ...document.querySelectorAll("main, .view, dialog")]
                    .filter((one) => one === root || scrolls(one))
                    .filter((one) => one.scrollWidth > one.clientWidth + 1)
                    .map((one) => `${one.tagName} ${one.scrollWidth} > ${one.clientWidth}`);
            }"""
        )
        return found
