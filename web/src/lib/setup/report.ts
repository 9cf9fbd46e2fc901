/** The report of a language or tuneshift job as a table; what is missing stays out. Pure functions. */

/** A metric with its 95 % interval. */
export interface Figure {
  value?: number | null;
  low?: number | null;
  high?: number | null;
}
type Figures = Record<string, Figure>;

export interface Report {
  before?: Figures;
  after?: Figures;
  change?: Figures;
  arms?: { arm: string; examples?: number; metrics?: Figures }[];
  references?: Record<string, Figures>;
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
};
const ARMS: Record<string, string> = { tuneshift: "these samples", no_filter: "no filter", random_filter: "random filter", seeds_only: "seeds only", style: "samples of the style model" };

/** Returns a job's figures: of a tuneshift job by what was trained on, of a language job before and after. */
export function tabulate(report: Report): Table {
  return report.arms ? byArm(report) : beforeAndAfter(report);
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

function byArm({ before = {}, arms = [], references = {} }: Report): Table {
  const lines: [string, string, Figures][] = [
    ["nothing: the target as it was", "", before],
    ...arms.map((one): [string, string, Figures] => [armTitle(one.arm), one.examples?.toLocaleString("en") ?? "", one.metrics ?? {}]),
    ...Object.entries(references).map(([role, figures]): [string, string, Figures] => [`the ${role} model`, "", figures]),
  ];
  const metrics = [...new Set(lines.flatMap(([, , figures]) => Object.keys(figures)))].sort((a, b) => Number(!a.endsWith("accuracy")) - Number(!b.endsWith("accuracy")));
  return {
    columns: ["Trained on", "Samples", ...metrics.map(metricTitle)],
    rows: lines.filter(([, , figures]) => Object.keys(figures).length).map(([name, count, figures]) => [name, count, ...metrics.map((metric) => figureText(figures[metric]))]),
  };
}

const armTitle = (arm: string): string => ARMS[arm] ?? (arm.startsWith("tau_") ? `tau ${arm.slice(4)}` : arm.replaceAll("_", " "));
