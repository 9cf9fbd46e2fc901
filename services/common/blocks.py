"""The blocks of a region map: a fixed 3 x 3 grid over it, for what no segment singles out.

A region table holds the whole image in row 0, then one row per segment of the map, then one row
per block in
reading order. Segments follow things; blocks say roughly where, also on a photo that does not fall
into segments.
"""

from __future__ import annotations

GRID = 3


def block_bounds(rows: int, columns: int) -> list[tuple[int, int, int, int]]:
    """Return (first row, last row + 1, first column, last column + 1) of each block of a map.

    A map with fewer than three rows or columns has no blocks. Where three does not divide a side,
    neighbours share
    a row or column of cells, as adaptive average pooling has it.
    """
    if min(rows, columns) < GRID:
        return []
    vertical, horizontal = _cuts(rows), _cuts(columns)
    return [(*v, *h) for v in vertical for h in horizontal]


def _cuts(size: int) -> list[tuple[int, int]]:
    return [(at * size // GRID, -(-(at + 1) * size // GRID)) for at in range(GRID)]
