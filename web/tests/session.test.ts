import { beforeEach, describe, expect, it, vi } from "vitest";

import type { Who } from "../src/lib/access";

const WHO: Who = {
  subject: "apiKeys/k1",
  displayName: "Maria",
  credential: "CREDENTIAL_KIND_SESSION",
  grants: [{ project: "fruit", role: "ROLE_VIEWER" }],
  role: "ROLE_UNSPECIFIED",
};

/** A gateway that asks who calls: its answers, and the browser's cookie. */
class Gateway {
  cookie = "";
  keepsCookies = true;
  refusal = "CREDENTIALS_MISSING";
  keys: Record<string, Who> = { shk_good: WHO };
  readonly seen: string[] = [];

  readonly fetch = async (path: string, init: RequestInit = {}): Promise<Response> => {
    const method = init.method ?? "GET";
    this.seen.push(`${method} ${path}`);
    init.signal?.throwIfAborted();
    if (path === "/v1/session" && method === "POST") {
      const key = new Headers(init.headers).get("authorization")?.replace("Bearer ", "") ?? "";
      if (!this.keys[key]) return refused("CREDENTIALS_INVALID", "this is no valid API key");
      if (this.keepsCookies) this.cookie = key;
      return new Response(null, { status: 204 });
    }
    const who = this.keys[this.cookie];
    if (!who) return refused(this.refusal, "this session has ended; log in again");
    if (path === "/v1/session") this.cookie = "";
    return path === "/v1/session" ? new Response(null, { status: 204 }) : Response.json(path === "/v1/whoami" ? who : { path });
  };

  times(request: string): number {
    return this.seen.filter((one) => one === request).length;
  }
}

function refused(reason: string, message: string): Response {
  return Response.json({ code: 16, message, details: [{ reason, metadata: {} }] }, { status: 401 });
}

const reload = vi.fn();
let gateway: Gateway;

/** The page, opened anew. */
async function page() {
  vi.resetModules();
  const { session, needs } = await import("../src/lib/session.svelte");
  const { call } = await import("../src/lib/api/client");
  const { selection } = await import("../src/lib/state.svelte");
  return { session, needs, call, selection };
}

const settled = (): Promise<void> => new Promise((resolve) => setTimeout(resolve));

beforeEach(() => {
  gateway = new Gateway();
  reload.mockClear();
  vi.stubGlobal("fetch", gateway.fetch);
  vi.stubGlobal("location", { hash: "", reload });
  vi.stubGlobal("history", { state: null, replaceState: (_: unknown, __: string, hash: string) => (location.hash = hash) });
});

describe("session", () => {
  it("asks for a login before anything else is read, without words for programs", async () => {
    const { session } = await page();
    await session.begin();
    expect([session.needed, session.open, session.why]).toEqual([true, false, ""]);
    await session.login("shk_good");
    expect([session.needed, session.open, session.who?.displayName]).toEqual([false, true, "Maria"]);
  });

  it("goes to a project of the caller where the address names none", async () => {
    const { session, selection } = await page();
    gateway.cookie = "shk_good";
    await session.begin();
    expect(selection.project).toBe("fruit");
  });

  it("stays in the project that the address names", async () => {
    location.hash = "#/p/apple/setup";
    const { session, selection, needs } = await page();
    gateway.cookie = "shk_good";
    await session.begin();
    expect(selection.project).toBe("apple");
    expect(needs("viewer").title).toContain("you have none there");
  });

  it("tells of a wrong key in the server's words and goes on asking", async () => {
    const { session } = await page();
    await session.begin();
    await expect(session.login("shk_bad")).rejects.toThrow("this is no valid API key");
    expect(session.needed).toBe(true);
  });

  it("says so where the browser keeps no cookies", async () => {
    gateway.keepsCookies = false;
    const { session } = await page();
    await session.begin();
    await expect(session.login("shk_good")).rejects.toThrow(/Allow cookies/);
    expect(session.needed).toBe(true);
  });

  it("holds calls when the session ends and sends them again after one login", async () => {
    gateway.cookie = "shk_good";
    const { session, call } = await page();
    await session.begin();
    gateway.cookie = "";
    gateway.refusal = "CREDENTIALS_EXPIRED";
    const both = Promise.all([call("POST", "/v1/save", { a: 1 }), call("GET", "/v1/list")]);
    await settled();
    expect([session.needed, session.open, session.why]).toEqual([true, true, "this session has ended; log in again"]);
    await session.login("shk_good");
    expect(await both).toEqual([{ path: "/v1/save" }, { path: "/v1/list" }]);
    expect([gateway.times("POST /v1/save"), gateway.times("POST /v1/session"), session.logins]).toEqual([2, 1, 1]);
  });

  it("sends a call again at once where somebody has logged in meanwhile", async () => {
    gateway.cookie = "shk_good";
    const { session } = await page();
    const { ApiError } = await import("../src/lib/api/client");
    await session.begin();
    const before = session.logins;
    session.needed = true;
    await session.login("shk_good");
    await session.renewed(new ApiError("ended", 401), before);
    expect(session.needed).toBe(false);
  });

  it("lets go of a held call that is not wanted any more", async () => {
    const { session, call } = await page();
    const stop = new AbortController();
    const held = call("GET", "/v1/list", undefined, stop.signal);
    await settled();
    stop.abort(new Error("another view"));
    await expect(held).rejects.toThrow("another view");
    expect(session.needed).toBe(true);
  });

  it("reads the page anew for somebody else, and sends nothing of the one before", async () => {
    gateway.cookie = "shk_good";
    gateway.keys.shk_other = { ...WHO, subject: "apiKeys/k2" };
    const { session, call } = await page();
    await session.begin();
    gateway.cookie = "";
    void call("POST", "/v1/save", {});
    await settled();
    await session.login("shk_other");
    await settled();
    expect(reload).toHaveBeenCalledOnce();
    expect([gateway.times("POST /v1/save"), session.needed]).toEqual([1, true]);
  });

  it("asks whether the login stands only where the gateway asks who calls", async () => {
    gateway.keys[""] = { ...WHO, subject: "local", credential: "CREDENTIAL_KIND_NONE" };
    const { session, needs } = await page();
    await session.begin();
    expect([session.open, session.needed, session.asks]).toEqual([true, false, false]);
    expect(needs("admin")).toEqual({});
    expect(await session.check()).toBe(false);
    expect(gateway.times("GET /v1/whoami")).toBe(1);
  });

  it("notices at a picture that did not come that the session has ended", async () => {
    gateway.cookie = "shk_good";
    const { session } = await page();
    await session.begin();
    expect(await session.check()).toBe(false);
    gateway.cookie = "";
    const both = [session.check(), session.check()];
    await settled();
    expect(session.needed).toBe(true);
    await session.login("shk_good");
    expect(await Promise.all(both)).toEqual([true, true]);
  });

  it("ends, also where the session has ended by itself", async () => {
    gateway.cookie = "shk_good";
    const { session } = await page();
    await session.begin();
    await session.logout();
    expect(gateway.cookie).toBe("");
    await session.logout();
    expect(gateway.times("DELETE /v1/session")).toBe(2);
  });

  it("gives the reason why a role is not enough", async () => {
    gateway.cookie = "shk_good";
    const { session, needs } = await page();
    await session.begin();
    expect(needs("viewer")).toEqual({});
    expect(needs("tuner")).toEqual({ disabled: true, title: "This needs the role tuner in project fruit; yours is viewer." });
  });
});
