"""How often a 95 % interval over documents holds the truth, ours and others: `python -m benchmarks.intervals`.

Documents differ in length (log-normal) and in level; tokens within one are alike. "tokens" is the interval of somebody
who takes every token for a sample of its own.
"""

import argparse
import math
from collections.abc import Callable

import numpy as np

from foundry.engine.evaluate.intervals import Resampling

_TRUTH, _BETWEEN, _WITHIN = 2.0, 0.4, 2.5
"""Nats: the mean loss, its spread over documents, and over the tokens of one."""
_RESAMPLES = 500
Interval = tuple[float, float] | None


def main() -> None:
    """Print one row for each number of documents."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    print("| documents | ours | percentile | tokens |\n|---|---|---|---|")
    for documents in (5, 8, 12, 25, 50, 200):
        shares = _coverage(documents, args.trials, args.seed)
        print(f"| {documents} | " + " | ".join(f"{share:.1%}" for share in shares) + " |")


def _coverage(documents: int, trials: int, seed: int) -> list[float]:
    generator = np.random.default_rng(seed)
    resampling = Resampling(documents, seed, _RESAMPLES)
    plain_RD = np.random.default_rng(seed + 1).multinomial(documents, [1 / documents] * documents, size=_RESAMPLES)
    ways: tuple[Callable[[np.ndarray, np.ndarray, np.ndarray], Interval], ...] = (
        lambda nats_D, tokens_D, _: resampling.ratio(nats_D, tokens_D),
        lambda nats_D, tokens_D, _: _percentile((plain_RD @ nats_D) / (plain_RD @ tokens_D)),
        lambda nats_D, tokens_D, squares_D: _of_tokens(nats_D.sum(), squares_D.sum(), tokens_D.sum()),
    )
    held = [0] * len(ways)
    for _ in range(trials):
        tokens_D = np.ceil(generator.lognormal(5, 0.6, documents))
        level_D = generator.normal(_TRUTH, _BETWEEN, documents)
        nats_D = tokens_D * level_D + np.sqrt(tokens_D) * generator.normal(0, _WITHIN, documents)
        squares_D = tokens_D * (level_D**2 + _WITHIN**2)
        for place, way in enumerate(ways):
            found = way(nats_D, tokens_D, squares_D)
            held[place] += found is not None and found[0] <= _TRUTH <= found[1]
    return [count / trials for count in held]


def _percentile(found_R: np.ndarray) -> Interval:
    low, high = np.quantile(found_R, [0.025, 0.975])
    return float(low), float(high)


def _of_tokens(nats: float, squares: float, tokens: float) -> Interval:
    mean = nats / tokens
    error = 1.96 * math.sqrt((squares / tokens - mean**2) / tokens)
    return mean - error, mean + error


if __name__ == "__main__":
    main()
