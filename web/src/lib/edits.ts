/** Dragged weights as edits that the server takes: a direction and a factor, which make a box. Pure functions. */

export const MAX_FACTOR = 100;
/** Smallest factor that is sent; one of exactly 1 would move nothing. */
export const MIN_FACTOR = 1.001;

export type Turn = "up" | "down";
export interface Box {
  low: number;
  high: number;
}

/** Unit of an edit of a weight of `row`: its size, or the median size of the row's non-zero weights where it is 0. */
export function reachUnit(row: ArrayLike<number>, column: number): number {
  const own = Math.abs(row[column] ?? 0);
  return own || medianSize(row);
}

function medianSize(row: ArrayLike<number>): number {
  const sizes = Array.from(row, Math.abs).filter((size) => size !== 0).sort((a, b) => a - b);
  if (!sizes.length) return 0;
  const middle = sizes.length >> 1;
  return sizes.length % 2 ? sizes[middle]! : (sizes[middle - 1]! + sizes[middle]!) / 2;
}

/** The box that an edit of `row[column]` must meet: up is [w + (x-1)u, w + 2(x-1)u], down its mirror image. */
export function editBox(row: ArrayLike<number>, column: number, turn: Turn, factor: number): Box {
  const origin = row[column] ?? 0;
  const reach = (factor - 1) * reachUnit(row, column);
  return turn === "up"
    ? { low: origin + reach, high: origin + 2 * reach }
    : { low: origin - 2 * reach, high: origin - reach };
}

/**
 * The edit whose box begins at the weight that somebody dragged to: the near edge, because the refit starts there and
 * leaves it only where the data agree. Undefined where nothing moved or the class has no weight to measure by.
 */
export function asEdit(row: ArrayLike<number>, column: number, target: number): { turn: Turn; factor: number } | undefined {
  const origin = row[column] ?? 0;
  const unit = reachUnit(row, column);
  if (!unit || target === origin) return undefined;
  const factor = 1 + Math.abs(target - origin) / unit;
  if (factor < MIN_FACTOR) return undefined;
  return { turn: target > origin ? "up" : "down", factor: Math.min(factor, MAX_FACTOR) };
}

/** The weight to which an edit's box begins: the inverse of asEdit. */
export function targetOf(row: ArrayLike<number>, column: number, turn: Turn, factor: number): number {
  const box = editBox(row, column, turn, factor);
  return turn === "up" ? box.low : box.high;
}
