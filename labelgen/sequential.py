"""Wald's sequential probability ratio test of a share (Wald 1945, Annals of Math. Statistics 16).

Crops are looked at one by one until it is clear, with stated risks, whether the share of wrong ones
is at most h0 or at least h1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from storage.errors import UsageError

FEW, MANY = "few", "many"


@dataclass(frozen=True, kw_only=True)
class ShareTest:
    """H0: the share of wrong crops is h0 or less; H1: it is h1 or more.

    alpha: risk of calling a share of h0 too many; beta: of missing a share of h1.
    """

    h0: float = 0.001
    h1: float = 0.01
    alpha: float = 0.01
    beta: float = 0.01

    def __post_init__(self) -> None:
        if not 0 < self.h0 < self.h1 < 1:
            raise UsageError(f"shares are {self.h0} and {self.h1}; expected 0 < h0 < h1 < 1")
        if not (0 < self.alpha < 0.5 and 0 < self.beta < 0.5):
            raise UsageError(f"risks are {self.alpha} and {self.beta}; expected 0 to 0.5")

    @property
    def upper(self) -> float:
        """Log-likelihood ratio from which on there are too many."""
        return math.log((1 - self.beta) / self.alpha)

    @property
    def lower(self) -> float:
        """Log-likelihood ratio down from which there are few."""
        return math.log(self.beta / (1 - self.alpha))

    @property
    def fewest(self) -> int:
        """Crops after which the test ends if all are right."""
        return math.ceil(self.lower / math.log((1 - self.h1) / (1 - self.h0)))

    def ratio(self, looked: int, wrong: int) -> float:
        """Log-likelihood ratio of H1 to H0 after so many crops."""
        right = math.log((1 - self.h1) / (1 - self.h0))
        return wrong * math.log(self.h1 / self.h0) + (looked - wrong) * right

    def decide(self, looked: int, wrong: int) -> str | None:
        """FEW, MANY, or None while neither is clear."""
        ratio = self.ratio(looked, wrong)
        return MANY if ratio >= self.upper else FEW if ratio <= self.lower else None

    def power(self, share: float) -> float:
        """Probability that the untruncated test says MANY, by Wald's approximation.

        With h the root of share (h1/h0)^h + (1 - share) ((1-h1)/(1-h0))^h = 1, it is
        (1 - B^h) / (A^h - B^h), A and B the two bounds' likelihood ratios.
        """
        if share <= 0:
            return 0.0
        if share >= 1:
            return 1.0
        root = self._root(share)
        if abs(root) < 1e-9:
            return -self.lower / (self.upper - self.lower)
        a, b = math.exp(root * self.upper), math.exp(root * self.lower)
        return (1 - b) / (a - b)

    def _root(self, share: float) -> float:
        win, lose = math.log(self.h1 / self.h0), math.log((1 - self.h1) / (1 - self.h0))

        def excess(h: float) -> float:
            return share * math.exp(h * win) + (1 - share) * math.exp(h * lose) - 1

        drift = share * win + (1 - share) * lose
        if abs(drift) < 1e-12:
            return 0.0
        # the other root than 0 lies on the side that the drift points away from
        sign = -1.0 if drift > 0 else 1.0
        near, far = 1e-12, 1.0
        while excess(sign * far) < 0 and far < 128:
            far *= 2
        for _ in range(200):
            middle = (near + far) / 2
            near, far = (middle, far) if excess(sign * middle) < 0 else (near, middle)
        return sign * far


def upper_bound(looked: int, wrong: int, risk: float) -> float:
    """Largest share under which so few wrong crops still have a probability of `risk` (Clopper and
    Pearson 1934, one-sided)."""
    if wrong >= looked:
        return 1.0
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _at_most(wrong, looked, middle) > risk else (low, middle)
    return high


def _at_most(wrong: int, looked: int, share: float) -> float:
    """Binomial probability of at most `wrong` in `looked`."""
    logs = [
        math.lgamma(looked + 1) - math.lgamma(k + 1) - math.lgamma(looked - k + 1)
        + k * math.log(max(share, 1e-300)) + (looked - k) * math.log1p(-min(share, 1 - 1e-16))
        for k in range(wrong + 1)
    ]  # fmt: skip
    return math.fsum(map(math.exp, logs))
