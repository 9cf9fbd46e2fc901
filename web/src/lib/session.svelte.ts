/** Who is logged in. Calls that find nobody logged in wait here for the login, then go on: nothing on the page is lost. */

import { isAsked, projectsOf, refusal, roleIn, type Role, type Who } from "./access";
import { ApiError, isUnauthenticated, request } from "./api/http";
import { connection } from "./api/connection.svelte";
import { select, selection } from "./state.svelte";

const WHO = "/v1/whoami";
const SESSION = "/v1/session";
const NO_COOKIE = "The browser has not kept the session's cookie. Allow cookies for this page, then log in again.";

class Session {
  /** Who calls; undefined until the gateway has said so. */
  who = $state.raw<Who | undefined>(undefined);
  /** True from when there is something to show: somebody is logged in, or nobody needs to be. */
  open = $state(false);
  /** True while a login is asked for. */
  needed = $state(false);
  /** What the server says of the login that ended; empty where there was none. */
  why = $state("");
  /** Logins since the page was opened. */
  logins = $state(0);
  /** True where the gateway asks who calls. */
  asks = $derived(!!this.who && isAsked(this.who));
  private readonly waiting = new Set<() => void>();
  private checking: Promise<void> | undefined;

  /** Asks who is logged in: once, when the page is opened. */
  async begin(): Promise<void> {
    try {
      this.enter(await whoAmI());
    } catch (error) {
      if (isUnauthenticated(error)) return this.ask(error);
      // The page says itself that the gateway is away, and asks again.
      this.open = true;
      const stop = connection.onBack(() => {
        stop();
        void this.begin();
      });
    }
  }

  /** Opens a session with an API key or a token. Throws ApiError with the server's words. */
  async login(key: string): Promise<void> {
    await request(SESSION, { method: "POST", headers: { authorization: `Bearer ${key}` } });
    try {
      this.enter(await whoAmI());
    } catch (error) {
      throw isUnauthenticated(error) ? new Error(NO_COOKIE) : error;
    }
  }

  /** Ends the session; the page must be read anew after it. Throws ApiError. */
  async logout(): Promise<void> {
    try {
      await request(SESSION, { method: "DELETE" });
    } catch (error) {
      // One that has ended already is what was wanted.
      if (!isUnauthenticated(error)) throw error;
    }
  }

  /** Waits for a login, where there was none since `seen` were counted; an aborted wait throws the signal's reason. */
  async renewed(error: ApiError, seen = this.logins, signal?: AbortSignal | null): Promise<void> {
    if (this.logins !== seen) return;
    signal?.throwIfAborted();
    this.ask(error);
    await new Promise<void>((resolve, reject) => {
      const stop = (): void => {
        this.waiting.delete(go);
        reject(signal?.reason);
      };
      const go = (): void => {
        signal?.removeEventListener("abort", stop);
        resolve();
      };
      this.waiting.add(go);
      signal?.addEventListener("abort", stop, { once: true });
    });
  }

  /** Asks whether the login still stands, as where a picture has not come; true once it was made anew. */
  async check(): Promise<boolean> {
    if (!this.asks) return false;
    const seen = this.logins;
    this.checking ??= this.look(seen).finally(() => (this.checking = undefined));
    await this.checking;
    return this.logins !== seen;
  }

  /** Somebody may have logged in from another tab: looks each time the page comes to the front. */
  followFront(): () => void {
    const look = (): void => {
      if (document.visibilityState === "visible" && this.needed) whoAmI().then((who) => this.enter(who), () => undefined);
    };
    document.addEventListener("visibilitychange", look);
    return () => document.removeEventListener("visibilitychange", look);
  }

  /** Why the caller may not do here what needs a role; empty where he may. */
  refusal(needed: Role, what?: string): string {
    return refusal(this.who, selection.project, needed, what);
  }

  private async look(seen: number): Promise<void> {
    try {
      await whoAmI();
    } catch (error) {
      if (isUnauthenticated(error)) await this.renewed(error, seen);
    }
  }

  private ask(error: ApiError): void {
    // Without any credentials there is nothing to explain: the server's words then are for programs.
    if (!this.needed) this.why = error.reason === "CREDENTIALS_MISSING" ? "" : error.message;
    this.needed = true;
  }

  private enter(who: Who): void {
    // What is in memory was read by somebody else, who may see other things.
    if (this.who && this.who.subject !== who.subject) return location.reload();
    this.who = who;
    if (!location.hash && !roleIn(who, selection.project)) select({ project: projectsOf(who)[0] ?? selection.project }, true);
    this.open = true;
    if (!this.needed) return;
    this.logins += 1;
    this.needed = false;
    this.why = "";
    for (const go of this.waiting) go();
    this.waiting.clear();
  }
}

export const session = new Session();

/** Attributes of a control that needs a role: none where the caller has it, else disabled with the reason as its title. */
export function needs(role: Role): { disabled?: true; title?: string } {
  const why = session.refusal(role);
  return why ? { disabled: true, title: why } : {};
}

async function whoAmI(): Promise<Who> {
  return (await (await request(WHO)).json()) as Who;
}
