/** What a stranger does with the workbench, on the real suite; WORKBENCH is its address, STUDENT the student's id. */
import assert from "node:assert/strict";
import { mkdirSync, readFileSync } from "node:fs";
import { after, before, test } from "node:test";
import { launch, newPage } from "./browser.mjs";

const WORKBENCH = process.env.WORKBENCH ?? "http://127.0.0.1:7180/";
const STUDENT = process.env.STUDENT ?? "fruit-fine";
const SHOTS = process.env.SHOTS ?? "shots";
const VIEWS = ["setup", "performance", "concepts", "tuning", "images", "provenance"];
const AXE = readFileSync(new URL("node_modules/axe-core/axe.min.js", import.meta.url), "utf8");

let browser;
before(async () => {
  mkdirSync(SHOTS, { recursive: true });
  browser = await launch();
});
after(() => browser?.close());

const address = (view, query = "") => `${WORKBENCH}#/p/default/s/${STUDENT}/${view}${query}`;
const shot = (page, name) => page.screenshot({ path: `${SHOTS}/${name}.png` });

async function ready(page, view, query) {
  await page.goto(address(view, query));
  await page.locator("main .view h2").first().waitFor();
  await page.waitForFunction(() => ![...document.querySelectorAll(".skeleton")].some((one) => one.checkVisibility()));
  await page.waitForLoadState("networkidle");
}

/** Turns the nth bar with the keyboard; positive steps up. */
async function turn(page, nth, steps) {
  const bar = page.getByRole("slider").nth(nth);
  await bar.focus();
  for (let step = 0; step < Math.abs(steps); step++) await page.keyboard.press(steps > 0 ? "ArrowRight" : "ArrowLeft");
  await page.getByRole("group", { name: "Preview, before refit" }).waitFor();
}

async function save(page) {
  await page.keyboard.press("Control+s");
  await page.locator(".result h3").waitFor();
}

const shownVersion = (page) => page.getByRole("combobox", { name: "Version" }).inputValue();

test("from the worst class to a saved, compared and undone edit", async () => {
  const page = await newPage(browser, { viewport: { width: 1440, height: 900 } });
  await ready(page, "performance");
  const was = await shownVersion(page);
  await shot(page, "1-performance");
  const missed = page.locator("tbody .teacher-right").first();
  const count = Number(await missed.innerText());
  await missed.click();
  await page.locator(".thumb").first().waitFor();
  await page.getByText(`${count} image`).first().waitFor();
  await page.locator(".thumb").first().click();
  await page.locator(".why button").first().hover();
  await page.locator("svg .chosen").waitFor({ state: "attached" });
  await shot(page, "2-why");
  await page.getByRole("button", { name: /^Tune “/ }).click();

  const handle = await page.locator(".bar.chosen .handle").boundingBox();
  await page.mouse.move(handle.x + 5, handle.y + 10);
  await page.mouse.down();
  for (let step = 1; step <= 40; step++) {
    await page.mouse.move(handle.x + 5 - step, handle.y + 10);
    await page.waitForTimeout(16);
  }
  await page.mouse.up();
  assert.match(await page.getByRole("group", { name: "Preview, before refit" }).innerText(), /before refit/);
  const drags = await page.evaluate(() => performance.getEntriesByName("drag").map((one) => one.duration).sort((a, b) => a - b));
  const median = drags[drags.length >> 1];
  console.log(`drag: median ${median.toFixed(1)} ms of ${drags.length}`);
  assert.ok(median < 50, `a drag took ${median} ms`);
  await shot(page, "3-preview");

  await page.getByRole("button", { name: "Save", exact: true }).click();
  await page.locator(".result h3").waitFor();
  assert.match(await page.locator(".result").innerText(), /Random edits/);
  await shot(page, "4-result");
  await page.getByRole("button", { name: "Compare versions" }).click();
  await page.getByRole("heading", { name: "Provenance" }).waitFor();
  await page.waitForLoadState("networkidle");
  await shot(page, "5-provenance");
  await page.getByRole("banner").getByRole("button", { name: "Undo" }).click();
  await page.waitForFunction((number) => document.querySelectorAll("header select")[1].value === number, was);
  assert.deepEqual(page.wrong, []);
});

test("an edit on a version that somebody else moved is never lost", async () => {
  const [first, second] = [await newPage(browser), await newPage(browser)];
  for (const page of [first, second]) await ready(page, "tuning");
  const was = await shownVersion(first);
  await turn(first, 0, 8);
  await turn(second, 1, -8);
  await save(first);
  await second.keyboard.press("Control+s");
  const dialog = second.getByRole("dialog", { name: "Somebody else has changed this student" });
  await dialog.waitFor();
  await shot(second, "6-conflict");
  await dialog.getByRole("button", { name: /^Put mine on top/ }).click();
  await dialog.waitFor({ state: "detached" });
  await save(second);
  await turn(first, 2, 8);
  await first.locator(".result").getByRole("button", { name: "Close" }).click();
  await first.keyboard.press("Control+s");
  await first.getByRole("button", { name: /^Keep both/ }).click();
  await first.locator(".result h3").waitFor();
  const api = `${WORKBENCH}v1/projects/default/students/${STUDENT}`;
  await first.request.post(`${api}:setHead`, { data: { version: was } });
  assert.deepEqual([...first.wrong, ...second.wrong], []);
});

test("edits outlive a gateway that is away, and a page that is loaded again", async () => {
  const page = await newPage(browser);
  await ready(page, "tuning");
  await turn(page, 0, 8);
  await page.context().setOffline(true);
  await page.keyboard.press("Control+s");
  await page.getByText("The gateway does not answer.").first().waitFor();
  await shot(page, "7-offline");
  await page.context().setOffline(false);
  await page.locator(".banner").waitFor({ state: "detached", timeout: 30_000 });
  await page.reload();
  await page.getByText("1 unsaved edit").first().waitFor();
});

for (const [width, scheme] of [[1280, "light"], [1280, "dark"], [390, "light"], [390, "dark"]]) {
  test(`every view at ${width} pixels, ${scheme}`, async () => {
    const page = await newPage(browser, { viewport: { width, height: 844 }, colorScheme: scheme, hasTouch: width < 700, bypassCSP: true });
    for (const view of VIEWS) {
      await ready(page, view);
      await shot(page, `${view}-${width}-${scheme}`);
      const wide = await page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth);
      assert.equal(wide, 0, `${view} is ${wide} pixels too wide`);
      await page.evaluate(AXE);
      const found = await page.evaluate(async () => (await globalThis.axe.run(document)).violations
        .filter((one) => ["serious", "critical"].includes(one.impact)).map((one) => `${one.id}: ${one.nodes[0].html}`));
      assert.deepEqual(found, [], view);
    }
    assert.deepEqual(page.wrong, []);
  });
}
