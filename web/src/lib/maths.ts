/**
 * Decisions of a student recomputed in the browser while a weight is dragged. Pure functions on typed arrays.
 *
 * Everything lies by class or by concept: column k of the n items is `values.subarray(k * n, (k + 1) * n)`, so that
 * one weight touches one stretch of memory. A mask holds 0 or 1.
 */

export type Loss = "softmax" | "bce";

/** What does not change between the versions of one job. */
export interface Problem {
  readonly items: number;
  readonly concepts: number;
  readonly classes: number;
  readonly loss: Loss;
  /** Standardised presence, [concepts][items]. */
  readonly x: Float32Array;
  /** The teacher's responses, [classes][items]. */
  readonly responses: Float32Array;
  /** The teacher's decisions, [classes][items]. */
  readonly teacher: Uint8Array;
  /** The labels, [classes][items]. */
  readonly labels: Uint8Array;
  /** True where teacher and labels name exactly one class for every item. */
  readonly single: boolean;
}

/** Raw arrays as the server sends them, row by row. */
export interface RawArrays {
  presence: ArrayLike<number>;
  mean: ArrayLike<number>;
  std: ArrayLike<number>;
  responses: ArrayLike<number>;
  labels: ArrayLike<number>;
}

/** Standardises and turns the arrays; items, concepts and classes are their sizes. */
export function makeProblem(raw: RawArrays, items: number, concepts: number, classes: number, loss: Loss): Problem {
  const x = new Float32Array(concepts * items);
  for (let j = 0; j < concepts; j++) {
    const mean = raw.mean[j] as number;
    const std = raw.std[j] as number;
    for (let i = 0; i < items; i++) x[j * items + i] = ((raw.presence[i * concepts + j] as number) - mean) / std;
  }
  const responses = turn(raw.responses, items, classes, new Float32Array(classes * items));
  const labels = turn(raw.labels, items, classes, new Uint8Array(classes * items));
  const teacher = new Uint8Array(classes * items);
  decide(responses, items, classes, loss, teacher, 0.5);
  const single = oneEach(labels, items, classes) && oneEach(teacher, items, classes);
  return { items, concepts, classes, loss, x, responses, teacher, labels, single };
}

function turn<T extends Float32Array | Float64Array | Uint8Array>(rows: ArrayLike<number>, n: number, k: number, out: T): T {
  for (let i = 0; i < n; i++) for (let c = 0; c < k; c++) out[c * n + i] = rows[i * k + c] as number;
  return out;
}

/** Rows [items][classes] turned to [classes][items]. */
export function byClass(rows: ArrayLike<number>, items: number, classes: number): Float64Array {
  return turn(rows, items, classes, new Float64Array(classes * items));
}

function oneEach(mask: Uint8Array, n: number, k: number): boolean {
  const sums = new Uint16Array(n);
  for (let c = 0; c < k; c++) for (let i = 0; i < n; i++) sums[i]! += mask[c * n + i]!;
  return sums.every((sum) => sum === 1);
}

/** Weights [classes][concepts] and intercepts [classes] of a version. */
export interface Weights {
  readonly weight: Float64Array;
  readonly bias: Float64Array;
}

/** Logits [classes][items] of all items. */
export function allLogits(problem: Problem, weights: Weights): Float64Array {
  const { items, concepts, classes } = problem;
  const logits = new Float64Array(classes * items);
  for (let k = 0; k < classes; k++) {
    logits.fill(weights.bias[k] as number, k * items, (k + 1) * items);
    for (let j = 0; j < concepts; j++) {
      const w = weights.weight[k * concepts + j] as number;
      if (w !== 0) addWeight(problem, logits, k, j, w);
    }
  }
  return logits;
}

/** Adds `change` to the weight of concept j for class k; logits change in place. */
export function addWeight(problem: Problem, logits: Float64Array, k: number, j: number, change: number): void {
  const { items, x } = problem;
  const column = x.subarray(j * items, (j + 1) * items);
  const out = logits.subarray(k * items, (k + 1) * items);
  for (let i = 0; i < items; i++) out[i]! += change * column[i]!;
}

/** Decisions as a mask [classes][items]: the largest value of an item (the first on a tie), or each above `floor`. */
export function decide(
  values: Float64Array | Float32Array,
  items: number,
  classes: number,
  loss: Loss,
  out: Uint8Array,
  floor = 0,
): Uint8Array {
  if (loss === "bce") {
    for (let at = 0; at < out.length; at++) out[at] = values[at]! > floor ? 1 : 0;
    return out;
  }
  out.fill(0);
  for (let i = 0; i < items; i++) {
    let best = 0;
    let top = values[i]!;
    for (let k = 1; k < classes; k++) {
      const value = values[k * items + i]!;
      if (value > top) {
        top = value;
        best = k;
      }
    }
    out[best * items + i] = 1;
  }
  return out;
}

/** Figures of decisions. Recall and precision are NaN where a class has no image or is never named. */
export interface Figures {
  fidelity: number;
  accuracy: number;
  recall: Float64Array;
  precision: Float64Array;
}

/** Measures decisions [classes][items] against the teacher and the labels. */
export function measure(problem: Problem, found: Uint8Array): Figures {
  const { items, classes, labels } = problem;
  const recall = new Float64Array(classes);
  const precision = new Float64Array(classes);
  for (let k = 0; k < classes; k++) {
    let hit = 0;
    let truth = 0;
    let named = 0;
    for (let at = k * items; at < (k + 1) * items; at++) {
      truth += labels[at]!;
      named += found[at]!;
      hit += labels[at]! & found[at]!;
    }
    recall[k] = truth ? hit / truth : Number.NaN;
    precision[k] = named ? hit / named : Number.NaN;
  }
  return {
    fidelity: agreement(problem, found, problem.teacher),
    accuracy: agreement(problem, found, labels),
    recall,
    precision,
  };
}

/** Share of items that agree; where an item may have several labels, the mean share of classes that do. */
function agreement(problem: Problem, found: Uint8Array, other: Uint8Array): number {
  let differ = 0;
  for (let at = 0; at < found.length; at++) differ += found[at]! ^ other[at]!;
  // With one label each, two rows differ in two classes or in none.
  return problem.single ? 1 - differ / 2 / problem.items : 1 - differ / found.length;
}

/** 1 for each item whose decision equals `other` in all classes, or in class `k` alone. */
export function rightness(problem: Problem, found: Uint8Array, other: Uint8Array, k = -1): Uint8Array {
  const { items, classes } = problem;
  const out = new Uint8Array(items).fill(1);
  const [from, to] = k >= 0 && !problem.single ? [k, k + 1] : [0, classes];
  for (let c = from; c < to; c++) {
    for (let i = 0; i < items; i++) if (found[c * items + i] !== other[c * items + i]) out[i] = 0;
  }
  return out;
}

/** An item whose decision an edit changes, and whether it is right after, before, or neither. */
export interface Flip {
  item: number;
  kind: "better" | "worse" | "other";
}

/** Items whose decision differs between two masks. */
export function flips(problem: Problem, before: Uint8Array, after: Uint8Array): Flip[] {
  const { items, classes, labels } = problem;
  const found: Flip[] = [];
  for (let i = 0; i < items; i++) {
    let changed = 0;
    let wrongBefore = 0;
    let wrongAfter = 0;
    for (let at = i; at < classes * items; at += items) {
      changed |= before[at]! ^ after[at]!;
      wrongBefore += before[at]! ^ labels[at]!;
      wrongAfter += after[at]! ^ labels[at]!;
    }
    if (!changed) continue;
    found.push({ item: i, kind: wrongAfter < wrongBefore ? "better" : wrongAfter > wrongBefore ? "worse" : "other" });
  }
  return found;
}

/** Indices of the classes that a mask names for an item. */
export function named(mask: Uint8Array, items: number, classes: number, item: number): number[] {
  const found: number[] = [];
  for (let k = 0; k < classes; k++) if (mask[k * items + item]) found.push(k);
  return found;
}

/** Mean standardised presence of each concept over a class's images times its weight: how it leans on the concept. */
export function influences(problem: Problem, weights: Weights, k: number): Float64Array {
  const { items, concepts, labels, x } = problem;
  const out = new Float64Array(concepts);
  const mine = itemsWith(labels, items, k);
  for (let j = 0; j < concepts; j++) {
    const w = weights.weight[k * concepts + j]!;
    if (w === 0 || !mine.length) continue;
    let sum = 0;
    for (const i of mine) sum += x[j * items + i]!;
    out[j] = (w * sum) / mine.length;
  }
  return out;
}

/** Items that a mask gives class k. */
export function itemsWith(mask: Uint8Array, items: number, k: number): number[] {
  const found: number[] = [];
  for (let i = 0; i < items; i++) if (mask[k * items + i]) found.push(i);
  return found;
}

/** Wilson's 95 % interval of a share of `count`; [NaN, NaN] for none. */
export function wilson(share: number, count: number): [number, number] {
  if (!count) return [Number.NaN, Number.NaN];
  const z = 1.959964;
  const base = 1 + (z * z) / count;
  const middle = (share + (z * z) / (2 * count)) / base;
  const reach = (z / base) * Math.sqrt((share * (1 - share)) / count + (z * z) / (4 * count * count));
  return [Math.max(0, middle - reach), Math.min(1, middle + reach)];
}
