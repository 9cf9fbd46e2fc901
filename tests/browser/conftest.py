"""The workbench in a real browser on a real suite: `make browser`.

BROWSER_URL takes a workbench that runs already, with the demo's students in it; its gateway is
left alone. BROWSER_DATA_DIR takes a data folder and what its suite and demo left there; without
either, a suite starts in a temporary folder and runs the demo there.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.browser.chromium import FLAGS, find
from tests.browser.running import Running, running_suite

if TYPE_CHECKING:
    from playwright.sync_api import Browser

    from tests.browser.driver import Bench

ROOT = Path(__file__).resolve().parent.parent.parent
WAIT_MS = 20_000

# Without the extra `browser` there is nothing to collect.
collect_ignore_glob = [] if importlib.util.find_spec("playwright") else ["test_*.py"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what is in this folder; the demo and slow machines need more than the usual time."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker("browser")
            item.add_marker(pytest.mark.timeout(1800))


@pytest.fixture(scope="session")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A suite with the demo's students."""
    if url := os.environ.get("BROWSER_URL"):
        yield Running(url.rstrip("/"))
        return
    given = os.environ.get("BROWSER_DATA_DIR")
    folder = Path(given) if given else tmp_path_factory.mktemp("workbench")
    with running_suite(folder) as running:
        yield running


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    """One browser for all tests; each has its own profile in it."""
    from playwright.sync_api import sync_playwright

    found = find()
    if found is None:
        pytest.fail("no Chromium here; `python tests/browser/chromium.py` gets one", pytrace=False)
    path, environment = found
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=path, args=FLAGS, env={**os.environ, **environment}
        )
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def shots() -> Path:
    """Where screenshots are kept."""
    folder = ROOT / ".stillhouse" / "shots"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture
def bench(suite: Running, chromium: Browser, shots: Path) -> Iterator[Bench]:
    """A tab of its own at 1280 pixels; what the page threw or logged as an error fails the test."""
    from tests.browser.driver import Bench

    context = chromium.new_context(viewport={"width": 1280, "height": 860})
    context.set_default_timeout(WAIT_MS)
    tab = Bench(context.new_page(), suite.url, shots)
    try:
        yield tab
    finally:
        context.close()
    assert not tab.problems
