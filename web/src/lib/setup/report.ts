/** The report of a job as tables; what is missing stays out. Pure functions. */

import { compact, percent } from "../format";
import { bytes } from "../upload";

/** A metric with its 95 % interval. */
export interface Figure {
  value?: number | null;
  low?: number | null;
  high?: number | null;
}
type Figures = Record<string, Figure>;

/** A cut that a prune job could choose. */
export interface Cut {
  number?: number;
  kind?: string;
  shape?: Record<string, number | boolean>;
  prior_cost?: number;
  non_embedding_share?: number;
  cross_entropy?: number | null;
  latency_ms?: number | null;
  chosen?: boolean;
}

/** A round of a prune job that cuts in several. */
interface Round {
  round?: number;
  non_embedding_share?: number;
  steps?: number;
  before?: Figures;
  after?: Figures;
}

export interface Report {
  kind?: string;
  before?: Figures;
  after?: Figures;
  change?: Figures;
  arms?: { arm: string; examples?: number; metrics?: Figures }[];
  references?: Record<string, Figures>;
  /** Of a prune job: what was asked for and made, what else could be, its own arm minus each control. */
  size?: { asked?: Record<string, number>; got?: Record<string, number>; parameters?: number; weights_bytes?: number; onnx_bytes?: number | null; measured_on?: { device_name?: string; threads?: number; precision?: string; whole_model_ms?: number | null } };
  rounds?: Round[];
  candidates?: Cut[];
  paired?: Record<string, Figures>;
  /** Of a classifier job: figures by who, and its own arm minus labels alone. */
  accuracy?: Figures;
  expected_calibration_error?: Figures;
  negative_log_likelihood?: Figures;
  agreement?: Figures;
  paired_alone?: Figures;
  architecture?: string;
  input_px?: number;
  test_images?: number;
  latency?: { median_ms?: number | null; onnx_median_ms?: number | null; threads?: number; device?: string };
  no_onnx?: string;
}

/** Names of columns, and rows of as many cells; the first cell names its row. */
export interface Table {
  columns: string[];
  rows: string[][];
}

const METRICS: Record<string, string> = {
  cross_entropy: "Cross-entropy, nats a token",
  kl_to_teacher: "KL to the teacher",
  top1_agreement: "Same first choice as the teacher",
  choice_accuracy: "Right choices",
  choice_accuracy_sum: "Right choices (summed)",
  task_accuracy: "Right answers",
  accuracy: "Accuracy",
  expected_calibration_error: "Calibration error",
  negative_log_likelihood: "Negative log-likelihood, nats",
  agreement: "Decides like the teacher",
};
/** Metrics that a classifier job's report has by who, in this order. */
const BY_WHO = ["accuracy", "expected_calibration_error", "agreement", "negative_log_likelihood"] as const;
const ARMS: Record<string, string> = {
  tuneshift: "these samples", no_filter: "no filter", random_filter: "random filter", seeds_only: "seeds only", style: "samples of the style model",
  prune: "the cut, distilled", one_round: "the same size cut at once", no_distillation: "the cut without distillation", random_cut: "random cut", random_weights: "random weights",
  teacher: "the teacher", soft_hard: "teacher and labels", alone: "labels alone", soft: "teacher alone",
};
const REFERENCES: Record<string, string> = { full: "the whole model", uncorrected: "the whole model before its correction" };
const ASKED: Record<string, (value: number) => string> = {
  non_embedding_share: (share) => `${percent(share)} outside the embeddings`,
  max_parameters: (count) => `${whole(count)} parameters`,
  max_bytes: bytes,
  max_latency_ms: (ms) => `${ms.toPrecision(3)} ms a pass`,
};

/** Returns a job's figures: of a language job before and after, of others by what was trained on or learned from. */
export function tabulate(report: Report): Table {
  if (report.kind === "classifier") return byWho(report);
  return report.arms ? byArm(report) : beforeAndAfter(report);
}

/** Returns what a job's own arm has beyond its controls, seed by seed and item by item; no rows where there are none. */
export function gains(report: Report): Table {
  const beyond: [string, Figures][] = Object.entries(report.paired ?? {});
  if (report.paired_alone) beyond.push(["alone", report.paired_alone]);
  const order = (metric: string): number => (BY_WHO as readonly string[]).indexOf(metric);
  const metrics = [...new Set(beyond.flatMap(([, figures]) => Object.keys(figures)))].sort((a, b) => order(a) - order(b));
  return {
    columns: [report.kind === "classifier" ? "Teacher and labels minus" : "Distilled cut minus", ...metrics.map(metricTitle)],
    rows: beyond.map(([arm, figures]) => [armTitle(arm), ...metrics.map((metric) => figureText(figures[metric]))]),
  };
}

/** Returns what each round of a prune job left and learned; no rows where there was one alone. */
export function roundsOf(report: Report): Table {
  const rounds = report.kind === "prune" ? (report.rounds ?? []) : [];
  return {
    columns: ["Round", "Left", "Steps", "Cross-entropy before", "after"],
    rows: rounds.map((one, at) => [
      String(one.round ?? at + 1), percent(one.non_embedding_share), whole(one.steps), figureText(one.before?.cross_entropy), figureText(one.after?.cross_entropy),
    ]),
  };
}

/** Returns what a smaller model is, as names and values: size and speed. */
export function facts(report: Report): [name: string, value: string][] {
  const found = report.kind === "prune" ? ofCut(report) : report.kind === "classifier" ? ofClassifier(report) : [];
  return found.filter(([, value]) => value);
}

/** Returns `0.912 [0.884, 0.937]`; a dash where it is undefined. */
export function figureText(figure: Figure | undefined): string {
  if (typeof figure?.value !== "number") return "–";
  const [value, low, high] = [figure.value, figure.low, figure.high].map((one) => (typeof one === "number" ? one.toFixed(3).replace("-", "−") : ""));
  return low && high ? `${value} [${low}, ${high}]` : (value ?? "–");
}

/** Returns a metric in words: `Right choices`, or `Right choices of stamps`. */
export function metricTitle(metric: string): string {
  const at = metric.lastIndexOf("/");
  const name = metric.slice(at + 1);
  const words = METRICS[name] ?? name.replaceAll("_", " ");
  return at < 0 ? words : `${words} of ${metric.slice(0, at)}`;
}

function beforeAndAfter({ before = {}, after = {}, change = {} }: Report): Table {
  const metrics = [...new Set([...Object.keys(before), ...Object.keys(after)])];
  return {
    columns: ["Measure", "Before", "After", "Change"],
    rows: metrics.map((metric) => [metricTitle(metric), figureText(before[metric]), figureText(after[metric]), figureText(change[metric])]),
  };
}

function byWho(report: Report): Table {
  const metrics = BY_WHO.filter((metric) => report[metric]);
  const arms = (report.arms ?? []).map((one) => one.arm);
  const who = ["teacher", ...arms].filter((one) => metrics.some((metric) => report[metric]?.[one]));
  return {
    columns: ["Learned from", ...metrics.map(metricTitle)],
    rows: who.map((one) => [armTitle(one), ...metrics.map((metric) => figureText(report[metric]?.[one]))]),
  };
}

function ofCut({ size }: Report): [string, string][] {
  const asked = Object.entries(size?.asked ?? {}).flatMap(([field, value]) => ASKED[field]?.(value) ?? []);
  const { parameters, non_embedding_share: share, bytes: weight, latency_ms: ms } = size?.got ?? {};
  const on = size?.measured_on;
  return [
    ["Asked for at most", asked.join(", ")],
    ["Parameters", whole(parameters)],
    ["Left outside the embeddings", typeof share === "number" ? percent(share) : ""],
    ["Weights", weight ? bytes(weight) : ""],
    ["A forward pass", milliseconds(ms, on?.device_name ? ` on ${on.device_name}, ${on.precision}, ${on.threads} threads` : "")],
    ["The whole model’s", milliseconds(on?.whole_model_ms, "")],
  ];
}

function ofClassifier({ size, latency, architecture, input_px: px, test_images: images, no_onnx: reason }: Report): [string, string][] {
  const where = latency?.device ? ` on ${latency.device}${latency.threads ? `, ${latency.threads} threads` : ""}` : "";
  return [
    ["Network", architecture ? `${architecture}${px ? `, ${px} px` : ""}` : ""],
    ["Parameters", whole(size?.parameters)],
    ["Weights", size?.weights_bytes ? bytes(size.weights_bytes) : ""],
    ["ONNX file", size?.onnx_bytes ? bytes(size.onnx_bytes) : (reason ?? "")],
    ["One image, PyTorch", milliseconds(latency?.median_ms, where)],
    ["One image, ONNX", milliseconds(latency?.onnx_median_ms, " on cpu")],
    ["Test images", whole(images)],
  ];
}

const whole = (number: number | undefined): string => (typeof number === "number" ? (number < 1e7 ? number.toLocaleString("en") : compact(number)) : "");
const milliseconds = (ms: number | null | undefined, where: string): string => (typeof ms === "number" ? `${ms.toPrecision(3)} ms${where}` : "");

function byArm({ kind, before = {}, arms = [], references = {} }: Report): Table {
  const prune = kind === "prune";
  const lines: [string, string, Figures][] = [
    [prune ? "the cut before training" : "nothing: the target as it was", "", before],
    ...arms.map((one): [string, string, Figures] => [armTitle(one.arm), one.examples?.toLocaleString("en") ?? "", one.metrics ?? {}]),
    ...Object.entries(references).map(([role, figures]): [string, string, Figures] => [REFERENCES[role] ?? `the ${role} model`, "", figures]),
  ];
  const metrics = [...new Set(lines.flatMap(([, , figures]) => Object.keys(figures)))].sort((a, b) => Number(!a.endsWith("accuracy")) - Number(!b.endsWith("accuracy")));
  return {
    columns: [prune ? "Model" : "Trained on", prune ? "Sequences" : "Samples", ...metrics.map(metricTitle)],
    rows: lines.filter(([, , figures]) => Object.keys(figures).length).map(([name, count, figures]) => [name, count, ...metrics.map((metric) => figureText(figures[metric]))]),
  };
}

/** Returns an arm in words. */
export const armTitle = (arm: string): string => ARMS[arm] ?? (arm.startsWith("tau_") ? `tau ${arm.slice(4)}` : arm.replaceAll("_", " "));
