"""How far a figure would move on other documents of the same kind: 95 % intervals by bootstrap over documents.

Tokens of one document are alike, so the document is what is drawn again, not the token (Efron and Tibshirani, An
Introduction to the Bootstrap, 1993, chapter 13). Every figure here is a sum over documents divided by another.

R: resamples, D: documents.
"""

import math
from statistics import NormalDist

import numpy as np

LEVEL = 0.95
RESAMPLES = 1000
_FEWEST_DOCUMENTS = 5
"""Below this nothing can be said: five values have 126 different resamples."""
_CHUNK = 2**22
"""Draws that are held at a time."""

Interval = tuple[float, float]


class Resampling:
    """One set of resamples of the documents, shared by all figures and all models, so that differences are paired."""

    def __init__(self, documents: int, seed: int, resamples: int = RESAMPLES) -> None:
        self.documents = documents
        self._usable = documents >= _FEWEST_DOCUMENTS
        generator = np.random.default_rng(seed)
        drawn_RD = np.zeros((resamples if self._usable else 0, documents), dtype=np.float32)
        rows = max(1, _CHUNK // max(1, documents))
        for start in range(0, len(drawn_RD), rows):
            part = drawn_RD[start : start + rows]
            draws = generator.integers(documents, size=part.shape)
            places = draws + documents * np.arange(len(part))[:, None]
            part[:] = np.bincount(places.ravel(), minlength=part.size).reshape(part.shape)
        self._drawn_RD = drawn_RD

    def ratio(self, top_D: np.ndarray, bottom_D: np.ndarray) -> Interval | None:
        """The interval of sum(top) / sum(bottom); None for fewer than five documents.

        Percentiles of the resamples, spread so that a mean of few documents is covered as often as Student's t covers
        it (Hesterberg, What Teachers Should Know about the Bootstrap, arXiv 1411.5279, section 3.2).
        """
        if not self._usable or not bottom_D.any():
            return None
        drawn_RD = self._drawn_RD
        bottom_R = drawn_RD @ bottom_D
        top_R = drawn_RD @ top_D
        found_R = top_R[bottom_R > 0] / bottom_R[bottom_R > 0]
        tail = _expanded_tail(self.documents)
        low, high = np.quantile(found_R, [tail, 1 - tail])
        return float(low), float(high)


def _expanded_tail(documents: int) -> float:
    """Phi(-sqrt(n / (n - 1)) t) in place of (1 - level) / 2, t of Student's distribution with n - 1 degrees."""
    normal, n = NormalDist(), documents
    return normal.cdf(-math.sqrt(n / (n - 1)) * _student(normal.inv_cdf((1 + LEVEL) / 2), n - 1))


def _student(z: float, degrees: int) -> float:
    """The quantile of Student's t at that of the normal distribution (Abramowitz and Stegun, 26.7.5)."""
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / degrees + second / degrees**2 + third / degrees**3
