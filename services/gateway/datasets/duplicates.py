"""Near-duplicate images, by 64-bit perceptual hashes: pairs across splits, and groups."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations, product

from services.common.images import near_pairs

MAX_DISTANCE = 4
MAX_PAIRS = 100


def _by_hash(hashes: Sequence[int]) -> dict[int, list[int]]:
    found: dict[int, list[int]] = {}
    for index, value in enumerate(hashes):
        found.setdefault(value, []).append(index)
    return found


def cross_split_pairs(
    hashes: Sequence[int], splits: Sequence[str], max_distance: int = MAX_DISTANCE
) -> tuple[int, list[tuple[int, int, int]]]:
    """Return how many pairs of near-duplicates lie in different splits, and the nearest 100 of
    them.

    A pair is (index, index, differing bits). Equal hashes are handled as one, so that thousands of
    equal images cost no more than one.
    """
    groups = _by_hash(hashes)
    unique = list(groups)
    near = [(0, value, value) for value in unique if len(groups[value]) > 1]
    near += sorted(
        ((unique[a] ^ unique[b]).bit_count(), unique[a], unique[b])
        for a, b in near_pairs(unique, max_distance)
    )
    count, pairs = 0, list[tuple[int, int, int]]()
    for distance, first, second in near:
        count += _crossing(groups[first], groups[second], splits, same=first == second)
        left = MAX_PAIRS - len(pairs)
        if left > 0:
            pairs += _examples(groups[first], groups[second], splits, distance, left)
    return count, pairs


def _crossing(a: list[int], b: list[int], splits: Sequence[str], *, same: bool) -> int:
    """Number of pairs of one index of `a` and one of `b` whose splits differ."""
    names = {splits[i] for i in a} | {splits[i] for i in b}
    equal = sum(
        sum(splits[i] == name for i in a) * sum(splits[i] == name for i in b) for name in names
    )
    ordered = len(a) * len(b) - equal
    return ordered // 2 if same else ordered


def _examples(
    a: list[int], b: list[int], splits: Sequence[str], distance: int, limit: int
) -> list[tuple[int, int, int]]:
    """Up to `limit` of those pairs, looking at one item per split and hash first."""
    found = []
    pairs = (
        combinations(_few(a, splits), 2) if a is b else product(_few(a, splits), _few(b, splits))
    )
    for i, j in pairs:
        if splits[i] != splits[j]:
            found.append((min(i, j), max(i, j), distance))
        if len(found) == limit:
            break
    return found


def _few(indices: list[int], splits: Sequence[str], each: int = 8) -> list[int]:
    taken: dict[str, list[int]] = {}
    for index in indices:
        kept = taken.setdefault(splits[index], [])
        if len(kept) < each:
            kept.append(index)
    return [index for kept in taken.values() for index in kept]


def duplicate_groups(hashes: Sequence[int], max_distance: int = 2) -> list[int]:
    """Return a group number per image; images linked by near-duplicates share one.

    A chain of links that would gather more than 5 % of the images (plain backgrounds do) is cut
    back
    to equal hashes.
    """
    groups = _by_hash(hashes)
    unique = list(groups)
    parent = list(range(len(unique)))

    def root(index: int) -> int:
        while parent[index] != index:
            parent[index] = parent[parent[index]]
            index = parent[index]
        return index

    for a, b in near_pairs(unique, max_distance):
        parent[root(b)] = root(a)
    sizes = [0] * len(unique)
    for index, value in enumerate(unique):
        sizes[root(index)] += len(groups[value])
    limit = max(10, len(hashes) // 20)
    result = [0] * len(hashes)
    for index, value in enumerate(unique):
        owner = root(index) if sizes[root(index)] <= limit else index
        for item in groups[value]:
            result[item] = owner
    return result
