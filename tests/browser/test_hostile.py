"""Uploads that are broken, too large or named to do harm: a clear message, nothing injected."""

from __future__ import annotations

import io
import uuid
import zipfile
from pathlib import Path

import pytest
from playwright.sync_api import expect

from tests.browser.driver import Bench
from tests.support import photo

EVIL_CLASS = "<img src=x onerror=window.pwned=1>"
EVIL_FILE = "<svg onload=window.pwned=2>.jpg"


@pytest.fixture
def setup(bench: Bench) -> Bench:
    """Setup with the place to drop files open."""
    bench.open("setup", student="")
    more = bench.page.get_by_role("button", name="Add images or texts …")
    if more.count():
        more.click()
    return bench


def pick(bench: Bench, path: Path) -> None:
    """Choose an archive."""
    with bench.page.expect_file_chooser() as chooser:
        bench.page.get_by_role("button", name="Choose an archive").click()
    chooser.value.set_files(path)


def archive() -> bytes:
    """Two classes, one named to do harm, and a broken image named so."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as packed:
        for at in range(12):
            packed.writestr(f"set/{EVIL_CLASS}/{at}.jpg", photo(at))
            packed.writestr(f"set/plain/{at}.jpg", photo(100 + at))
        packed.writestr(f"set/plain/{EVIL_FILE}", b"no image at all")
    return buffer.getvalue()


def test_names_with_html_are_text(setup: Bench, tmp_path: Path) -> None:
    page = setup.page
    path = tmp_path / "names.zip"
    path.write_bytes(archive())
    pick(setup, path)
    name = f"names-{uuid.uuid4().hex[:8]}"
    page.get_by_role("textbox", name="Name", exact=True).fill(name)
    page.get_by_role("button", name="Upload", exact=True).click()
    classes = page.get_by_role("list", name="Classes")
    expect(classes.get_by_text(EVIL_CLASS, exact=True)).to_be_visible(timeout=60_000)
    page.get_by_text("1 file left out").click()
    expect(page.get_by_text(EVIL_FILE)).to_be_visible()
    setup.shot("names-with-html")
    assert page.evaluate("window.pwned") is None
    assert page.locator("main [onerror], main [onload]").count() == 0


def test_a_corrupt_archive_says_so(setup: Bench, tmp_path: Path) -> None:
    path = tmp_path / "broken.zip"
    path.write_bytes(archive()[:4000])
    pick(setup, path)
    name = f"broken-{uuid.uuid4().hex[:8]}"
    setup.page.get_by_role("textbox", name="Name", exact=True).fill(name)
    setup.page.get_by_role("button", name="Upload", exact=True).click()
    trouble = setup.page.get_by_role("alert").filter(has_text="The upload did not work")
    expect(trouble).to_be_visible(timeout=60_000)
    setup.shot("corrupt-archive")
    assert setup.violations() == []


def test_ten_gigabytes_are_refused_at_once(setup: Bench, tmp_path: Path) -> None:
    path = tmp_path / "huge.zip"
    with path.open("wb") as file:
        # Sparse: no disk is used.
        file.truncate(10 << 30)
    pick(setup, path)
    expect(setup.page.get_by_role("alert")).to_contain_text("at most")
    setup.shot("too-large")
    assert setup.violations() == []
