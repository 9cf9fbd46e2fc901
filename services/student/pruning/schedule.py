"""Large cuts in several rounds of pruning and distillation: how much each leaves."""

from __future__ import annotations

import math

from services.common.errors import InvalidInput

LARGEST_CUT = 1 / 3
"""What one round may take; NVIDIA's guide: up to a third is usually fine, over a half goes in
steps of about 30 %."""


def hop_shares(target: float, *, largest_cut: float = LARGEST_CUT) -> list[float]:
    """Shares of the original size after each round, falling to `target`; the fewest rounds of equal
    ratio of which none takes more than `largest_cut` of what it finds.

    Raises InvalidInput where a number is not between 0 and 1.
    """
    for name, value in (("target", target), ("largest_cut", largest_cut)):
        if not 0 < value < 1:
            raise InvalidInput(f"{name}: must lie between 0 and 1", field=name)
    # A target that is a power of the ratio, but for rounding, takes no further round.
    rounds = max(1, math.ceil(math.log(target) / math.log(1 - largest_cut) - 1e-9))
    return even_shares(target, rounds)


def even_shares(target: float, rounds: int) -> list[float]:
    """Shares of the original size after each of `rounds` rounds of equal ratio; `target`, the last,
    lies between 0 and 1."""
    return [target ** (at / rounds) for at in range(1, rounds)] + [target]
