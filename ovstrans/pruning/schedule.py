"""Numbers of weights kept after each round."""

from __future__ import annotations

from ovstrans.errors import InputError


def target_count(total: int, sparsity: float) -> int:
    """Weights that stay: round((1 - sparsity) * total).

    Raises InputError for a sparsity outside [0, 1), or one that would leave no weight at all.
    """
    if not 0.0 <= sparsity < 1.0:
        raise InputError(f"--sparsity {sparsity}: must be at least 0 and below 1 (0.9 prunes 90 % of the weights)")
    target = round((1.0 - sparsity) * total)
    if target == 0:
        raise InputError(f"--sparsity {sparsity}: leaves none of the {total} weights in scope; choose a smaller one")
    return target


def kept_counts(total: int, target: int, rate: float) -> list[int]:
    """Weights kept after each round: each prunes `rate` of what remains, the last stops at `target`.

    OpenTrans sec. 3.1 prunes 10 % of the remaining weights a round, so that 0.9^k stay after k rounds;
    the published mask stops after 21 at 10.94 %, here the last round is cut short to hit the target:
    22 rounds for 90 %. Nothing to prune still makes one round. Raises InputError for a rate outside
    (0, 1).
    """
    if not 0.0 < rate < 1.0:
        raise InputError(
            f"--rate {rate}: must be above 0 and below 1 (0.1 prunes 10 % of the remaining weights a round)"
        )
    counts: list[int] = []
    kept = total
    while kept > target:
        # At least one weight goes in every round, however few are left.
        kept = max(target, min(kept - 1, round(kept * (1.0 - rate))))
        counts.append(kept)
    return counts or [target]
