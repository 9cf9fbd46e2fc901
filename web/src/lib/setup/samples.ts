/** Samples of a tuneshift job as a table: filter, order, choice, histogram. Pure functions. */

import type { components } from "../api/schema";

export type Sample = components["schemas"]["JobSample"];
export type SampleState = components["schemas"]["SampleState"];

export const STATES = {
  SAMPLE_STATE_KEPT: "kept",
  SAMPLE_STATE_FILTERED: "filtered out",
  SAMPLE_STATE_DROPPED: "dropped",
  SAMPLE_STATE_RESTORED: "restored",
} as const;
export type Shown = keyof typeof STATES;

export const ORDERS = { made: "As made", gap: "Gap", tuned: "Perplexity, tuned", base: "Perplexity, base", prompt: "Prompt", answer: "Answer", state: "State" } as const;
export type Order = keyof typeof ORDERS;

/** What becomes of a sample when somebody drops or keeps it. */
export type Verdict = "drop" | "keep";

/** Returns whether a sample will be trained on. */
export const isKept = (state: SampleState): boolean => state === "SAMPLE_STATE_KEPT" || state === "SAMPLE_STATE_RESTORED";

/** Returns the state of a sample after a verdict, as the gateway will say it. */
export function after(state: SampleState, verdict: Verdict): SampleState {
  if (verdict === "drop") return DROPPED[state] ?? state;
  if (state === "SAMPLE_STATE_DROPPED") return "SAMPLE_STATE_KEPT";
  return state === "SAMPLE_STATE_FILTERED" ? "SAMPLE_STATE_RESTORED" : state;
}

const DROPPED: Partial<Record<SampleState, SampleState>> = { SAMPLE_STATE_KEPT: "SAMPLE_STATE_DROPPED", SAMPLE_STATE_RESTORED: "SAMPLE_STATE_FILTERED" };

/** Returns whether a verdict changes a sample; one without an answer cannot be kept. */
export function changes(sample: Sample, verdict: Verdict): boolean {
  return after(sample.state, verdict) !== sample.state && (verdict === "drop" || sample.answer.trim() !== "");
}

/** Returns whether both models have scored a sample's answer. */
const isScored = (sample: Sample): boolean => sample.tunedPerplexity > 0 && sample.basePerplexity > 0 && Number.isFinite(sample.nllGap);

/** Returns how many samples are in each state. */
export function countStates(samples: readonly Sample[]): Record<Shown, number> {
  const counts = Object.fromEntries(Object.keys(STATES).map((state) => [state, 0])) as Record<Shown, number>;
  for (const { state } of samples) if (state in counts) counts[state as Shown] += 1;
  return counts;
}

/** Returns the samples in a state ("" for all) that hold the text, in an order; equal ones stay as they were made. */
export function arrange(samples: readonly Sample[], state: Shown | "", text: string, order: Order, falling: boolean): Sample[] {
  const wanted = text.trim().toLowerCase();
  const found = samples.filter((one) => (!state || one.state === state) && (!wanted || `${one.prompt}\n${one.answer}`.toLowerCase().includes(wanted)));
  if (order === "made") return falling ? found.reverse() : found;
  const sign = falling ? -1 : 1;
  return found.sort((a, b) => sign * compare(KEYS[order](a), KEYS[order](b)));
}

const KEYS: Record<Exclude<Order, "made">, (sample: Sample) => number | string> = {
  gap: (one) => one.nllGap,
  tuned: (one) => one.tunedPerplexity,
  base: (one) => one.basePerplexity,
  prompt: (one) => one.prompt,
  answer: (one) => one.answer,
  state: (one) => STATES[one.state as Shown] ?? "",
};

function compare(a: number | string, b: number | string): number {
  return typeof a === "string" || typeof b === "string" ? String(a).localeCompare(String(b)) : a - b;
}

/** A histogram of the gap: counts by bin, of prompts in the domain and outside it. */
export interface Histogram {
  low: number;
  /** Width of a bin. */
  step: number;
  inside: number[];
  outside: number[];
}

const BINS = 24;
const SPREAD = 0.01;

/** Returns the histogram of the gap, without the outermost hundredth on each side; undefined where there is none. */
export function histogram(samples: readonly Sample[], threshold: number | undefined): Histogram | undefined {
  const scored = samples.filter(isScored);
  const gaps = scored.map((one) => one.nllGap).sort((a, b) => a - b);
  if (gaps.length < 2) return undefined;
  const at = (share: number): number => gaps[Math.round(share * (gaps.length - 1))]!;
  const low = Math.min(at(SPREAD), threshold ?? Infinity);
  const high = Math.max(at(1 - SPREAD), threshold ?? -Infinity);
  if (high <= low) return undefined;
  const step = (high - low) / BINS;
  const made: Histogram = { low, step, inside: new Array<number>(BINS).fill(0), outside: new Array<number>(BINS).fill(0) };
  for (const { nllGap, offDomain } of scored) {
    const bin = Math.min(BINS - 1, Math.max(0, Math.floor((nllGap - low) / step)));
    (offDomain ? made.outside : made.inside)[bin]! += 1;
  }
  return made;
}

/** Returns the gap from which the filter keeps, log(tau); undefined where it compares by difference. */
export function thresholdOf(filter: { tau?: number; byDifference?: boolean } | undefined): number | undefined {
  const tau = filter?.tau || DEFAULT_TAU;
  return filter?.byDifference || tau <= 0 ? undefined : Math.log(tau);
}
const DEFAULT_TAU = 1.5;

/** Returns the gap of a sample's answer; a dash where it was not scored. */
export const gapOf = (sample: Sample): string => (isScored(sample) ? sample.nllGap.toFixed(2).replace("-", "−") : "–");

/** Returns a perplexity with about three digits. */
export function perplexity(value: number): string {
  if (!Number.isFinite(value) || value <= 0) return "–";
  return value >= 1000 ? value.toExponential(1) : value.toPrecision(3);
}
