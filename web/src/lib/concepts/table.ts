/** Concepts as rows: how present they are per class and how much a class leans on them. Pure functions. */

import { influences, type Problem, type Weights } from "../maths";

/** Figures of all concepts; `[class][concept]` where there are classes. */
export interface Table {
  words: readonly string[];
  classes: readonly string[];
  /** Mean presence over a class's images; the last row is over all images. */
  presence: Float64Array[];
  /** Weight times mean standardised presence over the class's images. */
  influence: Float64Array[];
  weight: Float64Array[];
  /** Classes that have a weight on the concept. */
  uses: Uint16Array;
}

export interface Row {
  word: string;
  /** Column in the student; -1 for a word of one's own. */
  column: number;
  presence: number;
  influence: number;
  weight: number;
  uses: number;
}

export const ORDERS = {
  influence: "Influence",
  presence: "Presence",
  typical: "More present than elsewhere",
  name: "Name",
} as const;
export type Order = keyof typeof ORDERS;

/** Returns the figures of a version. `presence` is [items][concepts], 0 to 1. */
export function tabulate(
  problem: Problem,
  weights: Weights,
  presence: Float32Array,
  words: readonly string[],
  classes: readonly string[],
): Table {
  const weight = classes.map((_, k) => weights.weight.subarray(k * words.length, (k + 1) * words.length) as Float64Array);
  return {
    words,
    classes,
    presence: [...classes.map((_, k) => meanPresence(problem, presence, k)), meanPresence(problem, presence, -1)],
    influence: classes.map((_, k) => influences(problem, weights, k)),
    weight,
    uses: Uint16Array.from(words, (_, j) => weight.filter((row) => row[j] !== 0).length),
  };
}

function meanPresence(problem: Problem, presence: Float32Array, k: number): Float64Array {
  const { items, concepts, labels } = problem;
  const sums = new Float64Array(concepts);
  let count = 0;
  for (let i = 0; i < items; i++) {
    if (k >= 0 && !labels[k * items + i]) continue;
    count += 1;
    for (let j = 0; j < concepts; j++) sums[j]! += presence[i * concepts + j]!;
  }
  return count ? sums.map((sum) => sum / count) : sums;
}

/** Returns a row per concept for a class, or (k < 0) over all: influence is then the mean size over classes. */
export function rowsOf(table: Table, k: number): Row[] {
  const { words, classes, presence, influence, weight, uses } = table;
  const shown = presence[k < 0 ? classes.length : k]!;
  return words.map((word, column) => ({
    word,
    column,
    presence: shown[column]!,
    influence: k < 0 ? meanSize(influence, column) : influence[k]![column]!,
    weight: k < 0 ? 0 : weight[k]![column]!,
    uses: uses[column]!,
  }));
}

function meanSize(rows: Float64Array[], column: number): number {
  return rows.reduce((sum, row) => sum + Math.abs(row[column]!), 0) / Math.max(rows.length, 1);
}

/** Returns the rows whose word holds the text, in an order; words of one's own come first where they match. */
export function arrange(rows: readonly Row[], table: Table, order: Order, text: string): Row[] {
  const wanted = text.trim().toLowerCase();
  const found = rows.filter((row) => row.word.toLowerCase().includes(wanted));
  const all = table.presence.at(-1)!;
  const keys: Record<Order, (row: Row) => number> = {
    influence: (row) => -Math.abs(row.influence),
    presence: (row) => -row.presence,
    typical: (row) => (row.column < 0 ? 0 : all[row.column]! - row.presence),
    name: () => 0,
  };
  const key = keys[order];
  return found.sort((a, b) => Number(a.column >= 0) - Number(b.column >= 0) || key(a) - key(b) || a.word.localeCompare(b.word));
}

/** Returns the concepts that go along with one over the images, by correlation of presence, strongest first. */
export function companions(problem: Problem, column: number, count: number): { column: number; correlation: number }[] {
  const { items, concepts, x } = problem;
  const mine = centred(x, column, items);
  const found: { column: number; correlation: number }[] = [];
  for (let j = 0; j < concepts; j++) {
    if (j === column) continue;
    const other = centred(x, j, items);
    let product = 0;
    for (let i = 0; i < items; i++) product += mine.values[i]! * other.values[i]!;
    const size = mine.size * other.size;
    if (size > 0) found.push({ column: j, correlation: product / size });
  }
  return found.sort((a, b) => b.correlation - a.correlation).slice(0, count);
}

function centred(x: Float32Array, column: number, items: number): { values: Float64Array; size: number } {
  const values = Float64Array.from(x.subarray(column * items, (column + 1) * items));
  const mean = values.reduce((sum, value) => sum + value, 0) / Math.max(items, 1);
  let square = 0;
  for (let i = 0; i < items; i++) {
    values[i]! -= mean;
    square += values[i]! ** 2;
  }
  return { values, size: Math.sqrt(square) };
}
