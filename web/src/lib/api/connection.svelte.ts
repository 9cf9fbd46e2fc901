/** Whether the gateway answers. Once it does not, it is asked again until it does. */

const FIRST_WAIT_MS = 1_000;
const LONGEST_WAIT_MS = 15_000;

class Connection {
  /** True from the first call without an answer to the next answer. */
  offline = $state(false);
  private waitMs = FIRST_WAIT_MS;
  private timer: ReturnType<typeof setTimeout> | undefined;
  private readonly listeners = new Set<() => void>();

  /** Calls back each time the gateway is there again; returns the function that stops it. */
  onBack(listener: () => void): () => void {
    this.listeners.add(listener);
    return () => this.listeners.delete(listener);
  }

  /** A call had no answer. */
  lost(): void {
    this.offline = true;
    this.timer ??= setTimeout(() => void this.retry(), this.waitMs);
  }

  /** A call had an answer, whatever it was. */
  found(): void {
    clearTimeout(this.timer);
    this.timer = undefined;
    this.waitMs = FIRST_WAIT_MS;
    if (!this.offline) return;
    this.offline = false;
    for (const listener of this.listeners) listener();
  }

  /** Asks now. */
  async retry(): Promise<void> {
    clearTimeout(this.timer);
    this.timer = undefined;
    try {
      await fetch("/openapi.json", { method: "HEAD", cache: "no-store" });
      this.found();
    } catch {
      this.waitMs = Math.min(this.waitMs * 2, LONGEST_WAIT_MS);
      this.lost();
    }
  }
}

export const connection = new Connection();
