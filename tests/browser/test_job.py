"""A tab closed in the middle of a job: who comes back sees the same job go on."""

from __future__ import annotations

import re
import time
import uuid

from playwright.sync_api import Locator, expect

from tests.browser.driver import Bench
from tests.browser.running import Running

PROJECT = "projects/default"


def done(stages: Locator) -> list[str]:
    """Return the stages that are done."""
    return [text for text in stages.locator("li").all_inner_texts() if ", done" in text]


def test_coming_back_shows_the_same_progress(bench: Bench, suite: Running) -> None:
    name = f"browser-{uuid.uuid4().hex[:8]}"
    # A new split makes work that no cache knows, for long enough to come back to.
    spec = {
        "dataset": f"{PROJECT}/datasets/fruit-coarse",
        "teacher": f"{PROJECT}/models/fruit-coarse-teacher",
        "studentId": name,
        "seed": str(time.time_ns() % 10_000),
    }
    job = suite.call("distillationJobs", {"job": {"concept": spec}})["job"]["name"]
    job = job.removeprefix(f"{PROJECT}/")
    try:
        bench.open("setup", student="")
        stages = bench.page.get_by_role("region", name=re.compile("^Student for")).get_by_role(
            "list"
        )
        expect(stages.locator("[aria-current=step]")).to_be_visible()
        expect(bench.page.get_by_text("You may close this page")).to_be_visible()
        bench.shot("job-before-closing")
        before = done(stages)
        titles = [text.split(",")[0] for text in before]

        again = bench.page.context.new_page()
        bench.page.close()
        bench.page = again
        bench.open("setup", student="")
        stages = again.get_by_role("region", name=re.compile("^Student for")).get_by_role("list")
        expect(stages.locator("li").first).to_contain_text(", done")
        after = [text.split(",")[0] for text in done(stages)]
        assert after[: len(titles)] == titles
        state = suite.call(job)["job"]["state"]
        assert state in ("JOB_STATE_RUNNING", "JOB_STATE_SUCCEEDED"), state
        bench.shot("job-after-coming-back")

        again.get_by_role("button", name="Cancel …").click()
        again.get_by_role("button", name="Yes, cancel it").click()
        expect(again.get_by_text("Cancelled. What it computed is kept")).to_be_visible()
    finally:
        if suite.call(job)["job"]["state"] in ("JOB_STATE_QUEUED", "JOB_STATE_RUNNING"):
            suite.call(f"{job}:cancel", {})
