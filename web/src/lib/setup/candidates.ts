/** Size against quality: the candidates of a prune job's report, and where they stand in a plot. Pure functions. */

import { armTitle, type Report } from "./report";

export const CUTS: Record<string, string> = { width: "width", depth: "depth", mixed: "both" };

/** A cut of the size that was asked for. */
export interface Candidate {
  number: number;
  kind: string;
  layers: number;
  hiddenSize: number;
  intermediateSize: number;
  attentionHeads: number;
  parameters: number;
  /** Of the parameters outside the embeddings, between 0 and 1; NaN where it is not told. */
  share: number;
  /** A guess before any training; lower is likelier to lose less. */
  priorCost: number;
  /** Held-out cross-entropy after its short training, in nats a token; NaN where it had none. */
  loss: number;
  /** Of a forward pass, where the size is a time; else NaN. */
  latencyMs: number;
  chosen: boolean;
}

/** What the chosen cut, or a control of its shape, came to after the whole training. */
export interface ArmMark {
  arm: string;
  title: string;
  /** Where it is drawn: beside the chosen candidate, so that arms of one size do not cover one another. */
  x: number;
  value: number;
  low: number;
  high: number;
}

export type Range = [low: number, high: number];

/** All that is drawn, within its axes: parameters and nats a token. */
export interface Plot {
  x: Range;
  y: Range;
  tried: Candidate[];
  untried: Candidate[];
  arms: ArmMark[];
  /** The whole model's cross-entropy; NaN where it was not measured. */
  whole: number;
}

const OWN_ARM = "prune";
const METRIC = "cross_entropy";
const MARGIN = 0.08;
const STEP = 0.035;

/** Returns the candidates of a prune job's report, the likeliest first; those without a size are left out. */
export function candidatesOf(report: Report): Candidate[] {
  return (report.candidates ?? [])
    .map((one, at): Candidate => {
      const size = (name: string): number => numberOf(one.shape?.[name]);
      return {
        number: one.number ?? at,
        kind: one.kind ?? "",
        layers: size("layers"),
        hiddenSize: size("hidden_size"),
        intermediateSize: size("intermediate_size"),
        attentionHeads: size("attention_heads"),
        parameters: size("parameters"),
        share: numberOf(one.non_embedding_share),
        priorCost: numberOf(one.prior_cost),
        loss: numberOf(one.cross_entropy),
        latencyMs: numberOf(one.latency_ms),
        chosen: one.chosen === true,
      };
    })
    .filter((one) => one.parameters > 0);
}

/** Returns the plot of a report, with or without the controls; undefined where no candidate has a size or nothing was measured. */
export function plotOf(report: Report, controls = true): Plot | undefined {
  const all = candidatesOf(report);
  const tried = all.filter((one) => Number.isFinite(one.loss));
  const whole = numberOf(report.references?.full?.[METRIC]?.value);
  const [low, high] = padded(all.map((one) => one.parameters));
  const chosen = all.find((one) => one.chosen) ?? all[0];
  const arms = chosen ? marksOf(report, controls, chosen.parameters, (high - low) * STEP) : [];
  const measured = [...tried.map((one) => one.loss), ...arms.flatMap((one) => [one.low, one.value, one.high]), whole].filter(Number.isFinite);
  if (!all.length || !measured.length) return undefined;
  const right = Math.max(high, ...arms.map((one) => one.x + (high - low) * STEP));
  return { x: [low, right], y: padded(measured), tried, untried: all.filter((one) => !tried.includes(one)), arms, whole };
}

/** Returns the arms that a report has besides the job's own. */
export const hasControls = (report: Report): boolean => (report.arms ?? []).some((one) => one.arm !== OWN_ARM);

/**
 * Returns the candidates that would go before one if a job were asked for its size and its axes: within that size, and
 * likelier. A job is told a size and what may be cut, not a shape.
 */
export function rivalsOf(candidate: Candidate, all: readonly Candidate[]): Candidate[] {
  return all.filter(
    (one) =>
      one.number !== candidate.number &&
      (candidate.kind === "mixed" || one.kind === candidate.kind) &&
      one.parameters <= candidate.parameters &&
      one.priorCost < candidate.priorCost,
  );
}

/** Returns what a candidate is, in words: `24 layers, 512 wide, 1,280 neurons, 8 heads`. */
export function shapeText(one: Candidate): string {
  const parts: [number, string][] = [[one.layers, "layers"], [one.hiddenSize, "wide"], [one.intermediateSize, "neurons"], [one.attentionHeads, "heads"]];
  return parts.filter(([size]) => Number.isFinite(size)).map(([size, what]) => `${size.toLocaleString("en")} ${what}`).join(", ");
}

/** Returns a plot in words, for those who do not see it. */
export function plotText({ tried, untried, arms, whole }: Plot): string {
  const best = tried.toSorted((a, b) => a.loss - b.loss)[0];
  const own = arms[0];
  return [
    `${tried.length + untried.length} candidates, ${tried.length} of them trained shortly.`,
    ...(best ? [`The lowest held-out cross-entropy of these is ${best.loss.toFixed(3)}, of candidate ${best.number}.`] : []),
    ...(own ? [`After the whole training ${own.title} has ${own.value.toFixed(3)}.`] : []),
    ...(Number.isFinite(whole) ? [`The whole model has ${whole.toFixed(3)}.`] : []),
    "The table says the same.",
  ].join(" ");
}

function marksOf(report: Report, controls: boolean, parameters: number, step: number): ArmMark[] {
  return (report.arms ?? [])
    .filter((one) => controls || one.arm === OWN_ARM)
    .flatMap((one) => {
      const { value, low, high } = one.metrics?.[METRIC] ?? {};
      if (typeof value !== "number") return [];
      return [{ arm: one.arm, title: armTitle(one.arm), value, low: low ?? value, high: high ?? value }];
    })
    .map((one, at) => ({ ...one, x: parameters + (at + 1) * step }));
}

/** Returns the range of numbers with some room around it; of one number alone as well. */
function padded(numbers: readonly number[]): Range {
  if (!numbers.length) return [0, 1];
  const [low, high] = [Math.min(...numbers), Math.max(...numbers)];
  const room = (high - low) * MARGIN || Math.abs(low) * 0.01 || 1;
  return [low - room, high + room];
}

const numberOf = (value: unknown): number => (typeof value === "number" ? value : NaN);
