"""The workbench's speed in a headless Chromium, by the browser's own clock.

Dragging: from the input event to the updated charts, on the demo's student and on made-up data of
5,000 images x 584 concepts x 20 classes. Saving: from the click to the verified answer on show.
Then what the first load weighs, when the page can be used, and how a grid of 10,000 scrolls.
Suite and browser are those of `make browser`: BROWSER_URL or BROWSER_DATA_DIR name them.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import re
import statistics
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors.numpy import save

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from tests.browser.chromium import FLAGS, find
from tests.browser.running import Running, running_suite

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page, Route

STUDENT = "fruit-fine"
BIG = "projects/default/students/big"
ARRAYS, HELDOUT = "a" * 64, "b" * 64
LONG_FRAME_MS = 50
INTERACTIVE = """
new MutationObserver((_, self) => {
  if (!document.querySelector("[role=slider]")) return;
  window.interactiveMs = performance.now();
  self.disconnect();
}).observe(document, { childList: true, subtree: true });
"""
SAVED = """
() => {
  const button = [...document.querySelectorAll("button")].find((one) => one.textContent === "Save");
  const answer = () => document.body.innerText.includes("Saved as version");
  return new Promise((resolve) => {
    const start = performance.now();
    new MutationObserver((_, self) => {
      if (!answer()) return;
      self.disconnect();
      resolve(performance.now() - start);
    }).observe(document.body, { childList: true, subtree: true });
    button.click();
  });
}
"""
SCROLL = """
(frames) => new Promise((resolve) => {
  const grid = document.querySelector("[role=region][aria-label^=Images]");
  const spans = [];
  let last = performance.now();
  const step = (now) => {
    spans.push(now - last);
    last = now;
    grid.scrollTop += 120;
    if (spans.length <= frames) requestAnimationFrame(step);
    else resolve(spans.slice(1));
  };
  requestAnimationFrame(step);
})
"""


class Synthetic:
    """A student of random numbers, answered in the gateway's place; pictures are real ones."""

    def __init__(self, items: int, concepts: int, classes: int, digests: list[str]) -> None:
        rng = np.random.default_rng(0)
        labels = np.eye(classes, dtype=np.uint8)[rng.integers(0, classes, items)]
        self.classes = [f"class {k}" for k in range(classes)]
        self.concepts = [f"concept {j}" for j in range(concepts)]
        self.arrays = save(
            {
                "presence": rng.random((items, concepts), dtype=np.float32) ** 3,
                "mean": np.full(concepts, 0.25, np.float32),
                "std": np.full(concepts, 0.28, np.float32),
                "responses": labels.astype(np.float32),
                "labels": labels,
                "concept_map": rng.random((concepts, 2), dtype=np.float32),
                "class_map": rng.random((classes, 2), dtype=np.float32),
            }
        )
        logits = 3 * rng.random((items, classes), dtype=np.float32) + 1.5 * labels
        self.heldout = save({"logits": logits.astype(np.float32)})
        self.items = [
            {"itemId": f"{n}.jpg", "digest": digests[n % len(digests)], "split": "train"}
            for n in range(items)
        ]
        self.weights = rng.normal(0, 0.3, (classes, 30))

    def version(self) -> dict[str, Any]:
        """Return the one version there is: 30 concepts a class."""
        rows = [
            {
                "label": label,
                "intercept": 0,
                "concepts": [
                    {
                        "concept": self.concepts[j * 17 % len(self.concepts)],
                        "weight": float(self.weights[k, j]),
                        "influence": 0,
                    }
                    for j in range(30)
                ],
            }
            for k, label in enumerate(self.classes)
        ]
        name = f"{BIG}/versions/1"
        empty = {"parent": "", "job": "", "effects": [], "changes": [], "displayName": ""}
        return {**empty, "name": name, "classConcepts": rows}

    def answer(self, route: Route) -> None:
        """Answer a call about the student; pass on everything else."""
        path = route.request.url.split("?")[0].split("/v1/")[1]
        version, head = self.version(), f"{BIG}/versions/1"
        student = {"name": BIG, "headVersion": head, "promotedVersion": head, "dataset": ""}
        student |= {"teacher": "", "encoder": "", "classes": self.classes}
        inspection = {
            "arrays": {"digest": ARRAYS},
            "heldout": {"digest": HELDOUT},
            "items": self.items,
            "classes": self.classes,
            "concepts": self.concepts,
            "loss": "LOSS_SOFTMAX",
        }
        known: list[tuple[str, object]] = [
            (rf"{BIG}$", {"student": student}),
            (rf"{BIG}/versions$", {"versions": [version], "nextPageToken": ""}),
            (rf"{BIG}/versions/.*:inspect$", {"data": inspection, "version": head}),
            (rf"{BIG}/versions/.*:evaluate$", {"metrics": {}, "undefined": {}, "itemCount": 0}),
            (rf"{BIG}/versions/\w+$", {"version": version}),
            (rf"{BIG}.*", {"examples": [], "presences": []}),
        ]
        if path.endswith((ARRAYS, HELDOUT)):
            route.fulfill(body=self.arrays if path.endswith(ARRAYS) else self.heldout)
        elif body := next((body for form, body in known if re.match(form, path)), None):
            route.fulfill(json=body)
        else:
            route.continue_()


def drag(page: Page, moves: int) -> list[float]:
    """Drag a bar to and fro with the mouse; return the page's own measures in ms."""
    slider = page.get_by_role("slider").nth(2)
    slider.scroll_into_view_if_needed()
    bounds = slider.bounding_box()
    assert bounds is not None
    x, y = bounds["x"] + bounds["width"] / 2, bounds["y"] + bounds["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    for at in range(moves):
        page.mouse.move(x + 0.4 * bounds["width"] * float(np.sin(at / 12)), y)
        page.wait_for_timeout(20)
    page.mouse.up()
    page.wait_for_timeout(300)
    found: list[float] = page.evaluate(
        "performance.getEntriesByName('drag').map((one) => one.duration)"
    )
    return found


def ready(browser: Browser, address: str, synthetic: Synthetic | None = None) -> Page:
    """Open a page of 1440 x 900 and wait for its bars or its pictures."""
    page = browser.new_page(viewport={"width": 1440, "height": 900})
    page.add_init_script(INTERACTIVE)
    if synthetic:
        page.route("**/v1/**", synthetic.answer)
    page.goto(address)
    page.get_by_role("slider").first.wait_for(timeout=120_000)
    page.wait_for_load_state("networkidle")
    return page


def first_load(page: Page, suite: Running) -> dict[str, float]:
    """Return what the page's own files weigh and when it could be used."""
    urls: list[str] = page.evaluate(
        "[location.href.split('#')[0], ...performance.getEntriesByType('resource')"
        ".map((one) => one.name)]"
    )
    own = {url for url in urls if "/v1/" not in url and url.startswith(suite.url)}
    bodies = [suite.opener.open(url, timeout=60).read() for url in own]
    return {
        "first_load_gzip_bytes": sum(len(gzip.compress(body, 9)) for body in bodies),
        "interactive_ms": page.evaluate("window.interactiveMs"),
    }


def save_ms(page: Page, rounds: int) -> float:
    """Return the median time of saving one edit, taking each back again."""
    times = []
    for at in range(rounds):
        page.get_by_role("slider").nth(at % 3).focus()
        for _ in range(8):
            page.keyboard.press("ArrowRight")
        page.wait_for_timeout(200)
        times.append(float(page.evaluate(SAVED)))
        page.get_by_role("button", name="Undo this edit").click()
        page.get_by_role("button", name="Undo this edit").wait_for(state="detached")
        page.wait_for_load_state("networkidle")
    return statistics.median(times)


def scrolling(page: Page, frames: int) -> dict[str, float]:
    """Return how evenly the grid's frames come while it scrolls fast."""
    spans: list[float] = page.evaluate(SCROLL, frames)
    return {
        "scroll_frame_ms": statistics.median(spans),
        "scroll_p95_ms": float(np.percentile(spans, 95)),
        "scroll_long_frames": sum(span > LONG_FRAME_MS for span in spans) / len(spans),
    }


def measure(browser: Browser, suite: Running, args: argparse.Namespace) -> dict[str, float]:
    """Return all figures."""
    version = suite.call(f"students/{STUDENT}")["student"]["headVersion"]
    path = version.removeprefix("projects/default/")
    items = suite.call(f"{path}:inspect")["data"]["items"]
    digests = [one["digest"] for one in items]

    page = ready(browser, f"{suite.url}/#/p/default/s/{STUDENT}/tuning")
    found = first_load(page, suite)
    found["drag_ms"] = statistics.median(drag(page, args.moves))
    page.get_by_role("button", name="Discard").click()
    found["save_ms"] = save_ms(page, args.rounds)
    page.close()

    large = Synthetic(*args.large, digests)
    page = ready(browser, f"{suite.url}/#/p/default/s/big/tuning?class=class%203", large)
    times = drag(page, args.moves)
    found["drag_large_ms"] = statistics.median(times)
    found["drag_large_p95_ms"] = float(np.percentile(times, 95))
    page.close()

    grid = Synthetic(args.pictures, 40, 10, digests)
    page = ready(browser, f"{suite.url}/#/p/default/s/big/images", grid)
    found |= scrolling(page, args.frames)
    page.close()
    return {key: round(value, 3) for key, value in found.items()}


@contextmanager
def a_suite() -> Iterator[Running]:
    """Yield the suite that the environment names, or one in a temporary folder."""
    if url := os.environ.get("BROWSER_URL"):
        yield Running(url.rstrip("/"))
        return
    with tempfile.TemporaryDirectory() as folder:
        given = os.environ.get("BROWSER_DATA_DIR")
        with running_suite(Path(given or folder)) as suite:
            yield suite


def main() -> None:
    """Measure, print a table, then one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--moves", type=int, default=120)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--large", type=int, nargs=3, default=[5000, 584, 20])
    parser.add_argument("--pictures", type=int, default=10_000)
    parser.add_argument("--frames", type=int, default=240)
    args = parser.parse_args()
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        print(json.dumps({"skipped": "no playwright; pip install -e .[browser]"}))
        return
    found = find()
    if found is None:
        print(json.dumps({"skipped": "no Chromium; python tests/browser/chromium.py"}))
        return
    path, environment = found
    with a_suite() as suite, sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=path, args=FLAGS, env={**os.environ, **environment}
        )
        figures = measure(browser, suite, args)
        browser.close()
    for name, value in figures.items():
        print(f"{name:24} {value:12,.3f}")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
