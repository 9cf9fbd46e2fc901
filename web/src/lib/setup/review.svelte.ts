/** The samples of one tuneshift job, and what a person decides about them while the job waits. */

import { newId } from "../api/students";
import * as calls from "./calls";
import { after, changes, countStates, type Sample, type Verdict } from "./samples";

const PAUSE_MS = 3000;
/** The gateway takes so many ids in a call. */
const MOST_IDS = 1000;

export class Review {
  samples = $state.raw<Sample[]>([]);
  /** Ids that are chosen, for keeping or dropping together. */
  chosen = $state.raw<ReadonlySet<string>>(new Set());
  loaded = $state(false);
  busy = $state(false);
  finished = $state(false);
  problem = $state.raw<unknown>(undefined);
  readonly counts = $derived(countStates(this.samples));
  private loading = new AbortController();
  private timer: ReturnType<typeof setTimeout> | undefined;
  private lastMs = -Infinity;

  constructor(readonly job: string) {}

  /** Reads the samples now, or a moment later where they have just been read: a running round changes often. */
  refresh(): void {
    clearTimeout(this.timer);
    const waitMs = Math.max(0, this.lastMs + PAUSE_MS - performance.now());
    this.timer = setTimeout(() => void this.load(), waitMs);
  }

  /** Reads the samples; the last read wins. */
  async load(): Promise<void> {
    this.loading.abort();
    const { signal } = (this.loading = new AbortController());
    this.lastMs = performance.now();
    try {
      const found = await calls.listSamples(this.job, signal);
      if (signal.aborted) return;
      this.samples = found;
      this.loaded = true;
      this.problem = undefined;
    } catch (error) {
      if (!signal.aborted) this.problem = error;
    }
  }

  /** Drops or keeps samples; what is on show changes once the gateway has agreed. */
  async judge(ids: readonly string[], verdict: Verdict): Promise<void> {
    const wanted = new Set(ids);
    const changed = this.samples.filter((one) => wanted.has(one.sampleId) && changes(one, verdict));
    const names = changed.map((one) => one.sampleId);
    await this.act(async () => {
      for (let at = 0; at < names.length; at += MOST_IDS) {
        const some = names.slice(at, at + MOST_IDS);
        await calls.reviewSamples(this.job, verdict === "drop" ? { dropIds: some } : { keepIds: some }, newId());
        this.put(new Set(some), verdict);
      }
      if (ids.length > 1) this.chosen = new Set();
    });
  }

  /** Ends the review: the job goes on and trains. */
  async finish(): Promise<void> {
    await this.act(async () => {
      await calls.reviewSamples(this.job, { finish: true }, newId());
      this.finished = true;
    });
  }

  /** Chooses samples, or no longer. */
  choose(ids: readonly string[], chosen: boolean): void {
    const found = new Set(this.chosen);
    for (const id of ids) chosen ? found.add(id) : found.delete(id);
    this.chosen = found;
  }

  /** Asks for nothing more. */
  end(): void {
    clearTimeout(this.timer);
    this.loading.abort();
  }

  private put(ids: ReadonlySet<string>, verdict: Verdict): void {
    this.samples = this.samples.map((one) => (ids.has(one.sampleId) ? { ...one, state: after(one.state, verdict) } : one));
  }

  private async act(work: () => Promise<void>): Promise<void> {
    this.busy = true;
    this.problem = undefined;
    try {
      await work();
    } catch (error) {
      this.problem = error;
    }
    this.busy = false;
  }
}
