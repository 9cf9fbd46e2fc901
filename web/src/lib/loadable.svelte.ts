/** A value that is fetched: loading, there, or failed with a way to try again. The last load wins. */

import { ApiError } from "./api/client";
import { connection } from "./api/connection.svelte";

export class Loadable<T> {
  value: T | undefined = $state.raw();
  error: Error | undefined = $state.raw();
  loading = $state(false);
  private running: AbortController | undefined;
  private work: ((signal: AbortSignal) => Promise<T>) | undefined;
  private stopWaiting = () => {};

  /** Runs the work; `keep` leaves the old value on show meanwhile. Failures land in `error`. */
  async load(work: (signal: AbortSignal) => Promise<T>, keep = false): Promise<void> {
    this.running?.abort();
    this.stopWaiting();
    const control = new AbortController();
    this.running = control;
    this.work = work;
    this.loading = true;
    this.error = undefined;
    if (!keep) this.value = undefined;
    try {
      const value = await work(control.signal);
      if (this.running === control) this.value = value;
    } catch (error) {
      if (this.running === control) this.fail(error instanceof Error ? error : new Error(String(error)));
    } finally {
      if (this.running === control) this.loading = false;
    }
  }

  /** Runs the last work again. */
  async retry(): Promise<void> {
    if (this.work) await this.load(this.work, true);
  }

  /** Shows the error; where the gateway is away, the work is done once it is back. */
  private fail(error: Error): void {
    this.error = error;
    if (!(error instanceof ApiError && error.offline)) return;
    const stop = connection.onBack(() => void this.retry());
    this.stopWaiting = () => void stop();
  }

  /** Forgets the value and what is under way. */
  clear(): void {
    this.running?.abort();
    this.stopWaiting();
    this.running = undefined;
    this.value = this.error = this.work = undefined;
    this.loading = false;
  }
}
