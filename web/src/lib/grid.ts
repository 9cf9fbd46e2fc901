/** Which cells of a grid are worth having in the page. Pure functions. */

export interface GridPlan {
  columns: number;
  /** Side of a cell's picture and height of its row, in pixels. */
  cell: number;
  rowHeight: number;
  /** Height of the whole grid. */
  height: number;
  /** First cell shown, and the one after the last. */
  from: number;
  to: number;
  /** Distance of the first shown row from the top. */
  top: number;
}

/** Plans a grid of `count` cells of about `wanted` pixels in `width`, scrolled to `scroll` with `view` pixels on show. */
export function planGrid(count: number, width: number, wanted: number, caption: number, scroll: number, view: number, spare = 3): GridPlan {
  const gap = 6;
  const columns = Math.max(2, Math.floor((width + gap) / (wanted + gap)));
  const cell = Math.max(1, (width - gap * (columns - 1)) / columns);
  const rowHeight = Math.round(cell) + caption + gap;
  const rows = Math.ceil(count / columns);
  const first = Math.max(0, Math.min(rows, Math.floor(scroll / rowHeight)) - spare);
  const last = Math.min(rows, Math.ceil((scroll + view) / rowHeight) + spare);
  return { columns, cell, rowHeight, height: rows * rowHeight, from: first * columns, to: Math.min(count, Math.max(first, last) * columns), top: first * rowHeight };
}
