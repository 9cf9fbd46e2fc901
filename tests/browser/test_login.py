"""The workbench of a gateway that asks who calls: log in, work, be logged out, come back, leave."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from playwright.sync_api import Locator, Route, expect

from tests.browser.driver import Bench, Theme
from tests.browser.guarded import STUDENT, Guarded, guarded_workbench
from tests.support import free_port, service

if TYPE_CHECKING:
    from playwright.sync_api import Browser

SIZES = {1280: 860, 390: 844}
CONCEPT = "red skin"
CLASS = "Granny-Smith"


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    with guarded_workbench(tmp_path_factory.mktemp("guarded")) as running:
        yield running


@pytest.fixture
def bench(guarded: Guarded, chromium: Browser, shots: Path) -> Iterator[Bench]:
    context = chromium.new_context(viewport={"width": 1280, "height": 860})
    context.set_default_timeout(20_000)
    tab = Bench(context.new_page(), guarded.url, shots)
    try:
        yield tab
    finally:
        context.close()
    assert not tab.problems


def dialog(bench: Bench) -> Locator:
    return bench.page.get_by_role("dialog", name="Log in to Stillhouse")


def log_in(bench: Bench, key: str) -> None:
    bench.page.get_by_label("API key").fill(key)
    bench.page.keyboard.press("Enter")
    expect(dialog(bench)).to_have_count(0)


def tuning(bench: Bench) -> None:
    page = f"{bench.url}/#/p/default/s/{STUDENT}/tuning?class={CLASS}&concept={CONCEPT}"
    bench.page.goto(page.replace(" ", "%20"))


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", SIZES)
def test_how_the_login_looks(bench: Bench, width: int, theme: Theme) -> None:
    bench.page.set_viewport_size({"width": width, "height": SIZES[width]})
    bench.page.emulate_media(color_scheme=theme, reduced_motion="reduce")
    bench.page.goto(bench.url)
    expect(dialog(bench)).to_be_visible()
    expect(bench.page.get_by_label("API key")).to_be_focused()
    bench.shot(f"login-{width}-{theme}")
    assert bench.violations() == []
    assert bench.overflow() == []
    log_in_fails(bench)
    bench.shot(f"login-refused-{width}-{theme}")
    assert bench.violations() == []


def test_a_gateway_that_takes_tokens_says_so(bench: Bench) -> None:
    def with_tokens(route: Route) -> None:
        body = route.fetch().json()
        body["credentials"].append("CREDENTIAL_KIND_TOKEN")
        route.fulfill(json=body)

    bench.page.route("**/v1/info", with_tokens)
    bench.page.goto(bench.url)
    expect(bench.page.get_by_label("API key or token")).to_be_focused()
    expect(dialog(bench)).to_contain_text("token of your identity provider")
    bench.shot("login-tokens")


def test_a_gateway_that_asks_nobody_shows_no_login(
    chromium: Browser, tmp_path: Path, shots: Path
) -> None:
    port = free_port()
    with service("gateway", tmp_path, GATEWAY_HTTP_PORT=str(port)):
        page = chromium.new_page()
        bench = Bench(page, f"http://127.0.0.1:{port}", shots)
        page.goto(bench.url)
        bench.settle()
        expect(page.get_by_role("heading", name="Setup").last).to_be_visible()
        expect(dialog(bench)).to_have_count(0)
        expect(page.get_by_role("button", name="Logged in as")).to_have_count(0)
        page.close()
        assert not bench.problems


def log_in_fails(bench: Bench) -> None:
    bench.page.get_by_label("API key").fill("shk_nobody_nothing")
    bench.page.get_by_role("button", name="Log in").click()
    expect(bench.page.get_by_role("alert")).to_have_text("This is no valid API key.")
    expect(bench.page.get_by_label("API key")).to_be_focused()


def test_a_wrong_key_is_refused_a_right_one_lets_in_and_leaving_lets_out(
    bench: Bench, guarded: Guarded
) -> None:
    page = bench.page
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url.removeprefix(bench.url)))
    page.goto(bench.url)
    expect(dialog(bench)).to_be_visible()
    # Nothing is read of a project before somebody has logged in.
    assert [one for one in asked if one.startswith("/v1/")] == ["/v1/whoami", "/v1/info"]
    page.keyboard.press("Escape")
    page.keyboard.press("Escape")
    expect(dialog(bench)).to_be_visible()
    log_in_fails(bench)

    log_in(bench, f"  {guarded.keys['tuner']}\n")
    bench.settle()
    students = page.get_by_role("combobox", name="Student")
    expect(students).to_contain_text(STUDENT)
    assert page.evaluate("document.cookie") == ""
    stored = page.evaluate("JSON.stringify([{...localStorage}, {...sessionStorage}])")
    assert guarded.keys["tuner"] not in stored
    account = page.get_by_role("button", name="Logged in as")
    name = f"Logged in as key {key_id(guarded)} with the role tuner in project default"
    expect(account).to_have_accessible_name(name)
    account.click()
    panel = page.get_by_role("group", name="Account")
    expect(panel).to_contain_text("Project default: tuner, may tune students")
    bench.shot("account")
    assert bench.violations() == []

    # A second tab of the same browser is logged in by the cookie alone, and out along with this.
    page.reload()
    bench.settle()
    expect(dialog(bench)).to_have_count(0)
    account.click()
    panel.get_by_role("button", name="Log out").click()
    expect(dialog(bench)).to_be_visible()
    expect(students).to_have_count(0)
    page.reload()
    expect(dialog(bench)).to_be_visible()


def key_id(guarded: Guarded) -> str:
    return guarded.keys["tuner"].split("_")[1]


def test_a_viewer_looks_and_does_not_tune(bench: Bench, guarded: Guarded) -> None:
    page = bench.page
    tuning(bench)
    log_in(bench, guarded.keys["viewer"])
    bench.settle()
    before = guarded.versions()
    why = "needs the role tuner in project default; yours is viewer"
    save = page.get_by_role("button", name="Save", exact=True)
    expect(save).to_be_disabled()
    assert why in (save.get_attribute("title") or "")
    slider = bench.slider(CONCEPT)
    expect(slider).to_have_attribute("aria-disabled", "true")
    value = slider.get_attribute("aria-valuenow")
    bench.drag(CONCEPT, 0.2)
    bench.nudge(CONCEPT, 5)
    page.keyboard.press("Control+s")
    expect(slider).to_have_attribute("aria-valuenow", value or "")
    expect(page.get_by_text(f"Tuning {why}").first).to_be_visible()
    bench.shot("viewer-tuning")
    assert bench.violations() == []
    assert guarded.versions() == before

    page.goto(f"{bench.url}/#/p/default/setup")
    bench.settle()
    adding = page.get_by_role("button", name="Add images or texts …")
    expect(adding).to_be_disabled()
    assert "needs the role runner" in (adding.get_attribute("title") or "")
    expect(page.get_by_role("button", name="distil a student")).to_have_count(0)
    bench.shot("viewer-setup")
    assert bench.violations() == []


def test_unsaved_edits_come_back_after_a_session_has_ended(bench: Bench, guarded: Guarded) -> None:
    page = bench.page
    tuning(bench)
    log_in(bench, guarded.keys["tuner"])
    bench.settle()
    before = guarded.versions()
    bench.nudge(CONCEPT, 8)
    expect(bench.preview()).to_be_visible()
    value = bench.slider(CONCEPT).get_attribute("aria-valuenow") or ""
    guarded.end_sessions()
    bench.save()
    expect(page.get_by_role("alert")).to_have_text("This session has ended; log in again.")
    expect(dialog(bench)).to_contain_text("What you were doing is kept, with 1 unsaved change.")
    bench.shot("login-again")
    assert bench.violations() == []
    assert guarded.versions() == before

    log_in(bench, guarded.keys["tuner"])
    # What was asked for before the login is done after it, once.
    bench.result().wait_for()
    assert guarded.versions() == [*before, before[-1] + 1]
    assert float(value) != 0


def test_images_and_events_need_the_cookie_alone(bench: Bench, guarded: Guarded) -> None:
    page = bench.page
    page.goto(f"{bench.url}/#/p/default/s/{STUDENT}/images")
    log_in(bench, guarded.keys["viewer"])
    bench.settle()
    for at in range(4):
        image = page.locator(".thumb img").nth(at)
        expect(image).not_to_have_js_property("naturalWidth", 0)
    # A job that is not there: the stream's own refusal shows that it was let in.
    said = page.evaluate(
        """() => new Promise((resolve) => {
            const source = new EventSource('/v1/projects/default/distillationJobs/none:watch');
            source.addEventListener('error', (event) => { source.close(); resolve(event.data); });
        })"""
    )
    assert '"code":5' in said.replace(" ", "")
    guarded.end_sessions()
    lost = page.evaluate(
        """async () => {
            const [first, image] = [document.querySelector('.thumb img'), new Image()];
            image.id = 'late';
            first.after(image);
            image.src = first.src.replace(/size_px=\\d+/, 'size_px=48');
        }"""
    )
    assert lost is None
    expect(dialog(bench)).to_be_visible()
    log_in(bench, guarded.keys["viewer"])
    expect(page.locator("#late")).not_to_have_js_property("naturalWidth", 0)
