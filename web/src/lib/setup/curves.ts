/** Learning curves of a job that is watched: points by series and training run. Pure functions. */

export type Point = [step: number, value: number];
/** Points by series (`loss`), then by training run ("" where there is one alone), rising by step. */
export type Curves = Readonly<Record<string, Readonly<Record<string, readonly Point[]>>>>;

const MOST_POINTS = 2000;
/** What is drawn, in this order; everything else that comes follows, but for what is no measure of learning. */
const FIRST = ["loss", "heldout_cross_entropy", "heldout_accuracy"];
const LEFT_OUT = new Set(["learning_rate", "tokens_per_s", "images_per_s"]);

interface Event {
  metrics?: Record<string, number> | undefined;
  metricsStep?: string | undefined;
  metricsRun?: string | undefined;
}

/** Returns the curves with an event's points; the same object where it brings none. A step that comes again replaces. */
export function withPoints(curves: Curves, event: Event): Curves {
  const found = Object.entries(event.metrics ?? {}).filter(([, value]) => Number.isFinite(value));
  const step = Number(event.metricsStep ?? "");
  if (!found.length || !Number.isFinite(step)) return curves;
  const run = event.metricsRun ?? "";
  const made: Record<string, Record<string, readonly Point[]>> = { ...curves };
  for (const [series, value] of found) {
    made[series] = { ...made[series], [run]: thinned(insert(made[series]?.[run] ?? [], [step, value])) };
  }
  return made;
}

/** Returns the series to draw, in their order. */
export function seriesOf(curves: Curves): string[] {
  const rest = Object.keys(curves).filter((series) => !FIRST.includes(series) && !LEFT_OUT.has(series));
  return [...FIRST.filter((series) => series in curves), ...rest.sort()];
}

/** Returns a series in words: `Held-out cross entropy`. */
export function seriesTitle(series: string): string {
  const text = series.replace(/^heldout_/, "held-out ").replaceAll("_", " ");
  return text.charAt(0).toUpperCase() + text.slice(1);
}

/** Returns the last value of a series' runs as a sentence, for those who do not see the chart. */
export function lastOf(runs: Readonly<Record<string, readonly Point[]>>): string {
  return Object.entries(runs)
    .flatMap(([run, points]) => {
      const last = points.at(-1);
      return last ? [`${run ? `${run}: ` : ""}${last[1].toPrecision(3)} at step ${last[0].toLocaleString("en")}`] : [];
    })
    .join(", ");
}

function insert(points: readonly Point[], point: Point): readonly Point[] {
  const last = points.at(-1);
  if (!last || last[0] < point[0]) return [...points, point];
  // A run that was taken up again after a crash tells some steps twice.
  const rest = points.filter(([step]) => step !== point[0]);
  return [...rest, point].sort((a, b) => a[0] - b[0]);
}

function thinned(points: readonly Point[]): readonly Point[] {
  return points.length > MOST_POINTS ? points.filter((_, at) => at % 2 === 0 || at === points.length - 1) : points;
}
