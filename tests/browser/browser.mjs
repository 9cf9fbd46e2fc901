/** Headless Chromium: CHROMIUM's, the system's, or the one of npm's @sparticuz/chromium. */
import { accessSync, constants } from "node:fs";
import packed from "@sparticuz/chromium";
import { chromium } from "playwright-core";

const SYSTEM = ["/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome"];

async function executable() {
  for (const path of [process.env.CHROMIUM, ...SYSTEM]) {
    try {
      if (path) accessSync(path, constants.X_OK);
      if (path) return path;
    } catch {
      continue;
    }
  }
  return await packed.executablePath();
}

/** Starts the browser. One process for all would hide crashes, so that the package's wishes for it are left out. */
export async function launch() {
  const args = packed.args.filter((one) => !one.includes("single-process") && !one.includes("zygote"));
  return await chromium.launch({ executablePath: await executable(), args: [...args, "--no-sandbox"], headless: true });
}

/** A page that remembers what went wrong in it. */
export async function newPage(browser, options = {}) {
  const context = await browser.newContext({ viewport: { width: 1280, height: 860 }, ...options });
  const page = await context.newPage();
  page.wrong = [];
  page.on("pageerror", (error) => page.wrong.push(error.message));
  page.on("console", (message) => {
    // A refused call is logged by the browser itself; the page shows it to people.
    if (message.type() === "error" && !message.text().startsWith("Failed to load resource")) page.wrong.push(message.text());
  });
  return page;
}
