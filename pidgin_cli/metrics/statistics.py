"""The statistics of an experiment. The unit is the conversation: one number of each, never one of each turn.

Everything is a pure function. Values that could not be computed (None, NaN, infinite) are left out and counted, draws
come from a seed that the caller states, and what the data do not allow is None. Numpy does it all but `mixed_model`,
for which the `analysis` extra is needed.
"""

import itertools
import math
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from statistics import NormalDist
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pidgin_cli.core.errors import SpecError

__all__ = [
    "Comparison",
    "Corrected",
    "CumulativeIncidence",
    "Effect",
    "FixedEffect",
    "Interval",
    "MixedModel",
    "Omnibus",
    "Paired",
    "Passage",
    "Passages",
    "Permutation",
    "RestrictedMean",
    "Shares",
    "Summary",
    "SurrogatePair",
    "SurvivalCurve",
    "Tested",
    "TooLittle",
    "Values",
    "Welch",
    "benjamini_hochberg",
    "benjamini_yekutieli",
    "bootstrap",
    "chi2_sf",
    "cliffs_delta",
    "clopper_pearson",
    "clustered_se",
    "common_horizon",
    "compare_groups",
    "compare_pairs",
    "compare_shares",
    "compare_times",
    "cumulative_incidence",
    "design_effect",
    "detectable_effect",
    "fisher_exact",
    "given",
    "hedges_g",
    "holm",
    "icc",
    "kaplan_meier",
    "kruskal_wallis",
    "logrank",
    "logrank_events",
    "mixed_model",
    "n_per_arm",
    "permutation_f",
    "permutation_test",
    "power_of_hazards",
    "power_of_means",
    "power_of_rates",
    "restricted_mean",
    "sign_flip_test",
    "summarise",
    "surrogate_baseline",
    "t_cdf",
    "t_ppf",
    "welch",
    "wilson",
]

Floats = NDArray[np.float64]
Values = Iterable[float | None]
"""One value per conversation; None, NaN or infinite: not computable."""

DRAWS = 9_999
EXACT_UP_TO = 20_000
"""Arrangements that are all looked at; where there are more, `DRAWS` of them are drawn."""
_CELLS = 4_000_000
"""Numbers held at a time while resampling."""
_NORMAL = NormalDist()


class Interval(NamedTuple):
    low: float
    high: float


class Tested(NamedTuple):
    """A test that refers its statistic to a distribution."""

    statistic: float
    df: float
    p: float


class Effect(NamedTuple):
    """A standardised difference. `interval` is None where it cannot be told."""

    value: float
    interval: Interval | None


def given(values: Values) -> Floats:
    """The values that are there, as an array; None, NaN and infinities are left out."""
    found = np.array([value for value in values if value is not None], dtype=float)
    return np.asarray(found[np.isfinite(found)], dtype=float)


# Distributions


def _beta_fraction(a: float, b: float, x: float) -> float:
    """The continued fraction of the incomplete beta function, by Lentz's method."""
    tiny = 1e-300
    c, d = 1.0, 1.0 - (a + b) * x / (a + 1.0)
    d = 1.0 / (d if abs(d) > tiny else tiny)
    value = d
    for m in range(1, 10_000):
        for step in (
            m * (b - m) * x / ((a + 2 * m - 1.0) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1.0)),
        ):
            d = 1.0 + step * d
            d = 1.0 / (d if abs(d) > tiny else tiny)
            c = 1.0 + step / c
            c = c if abs(c) > tiny else tiny
            change = c * d
            value *= change
        if abs(change - 1.0) < 1e-15:
            break
    return value


def _beta_cdf(x: float, a: float, b: float) -> float:
    """The regularised incomplete beta function."""
    if x <= 0.0:
        return 0.0
    if x >= 1.0:
        return 1.0
    front = math.exp(math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x))
    if x < (a + 1.0) / (a + b + 2.0):
        return front * _beta_fraction(a, b, x) / a
    return 1.0 - front * _beta_fraction(b, a, 1.0 - x) / b


def _where(function: Callable[[float], float], target: float, low: float, high: float) -> float:
    """Where a rising function reaches a value, by bisection to the last bit."""
    while (middle := (low + high) / 2) not in (low, high):
        if function(middle) < target:
            low = middle
        else:
            high = middle
    return middle


def t_cdf(t: float, df: float) -> float:
    """Student's t: the probability of a value up to `t`. `df` may be infinite (the normal distribution)."""
    if math.isinf(df):
        return _NORMAL.cdf(t)
    if math.isinf(t):
        return float(t > 0)
    if t * t < df:  # where the other argument would be too near 1 to be told from it
        half = _beta_cdf(t * t / (df + t * t), 0.5, df / 2.0) / 2.0
        if half < 0.4:
            return 0.5 + math.copysign(half, t)
    tail = _beta_cdf(df / (df + t * t), df / 2.0, 0.5) / 2.0
    return 1.0 - tail if t > 0 else tail


def t_ppf(p: float, df: float) -> float:
    """Student's t: the value up to which the probability is `p`, 0 < p < 1."""
    if math.isinf(df):
        return _NORMAL.inv_cdf(p)
    if p == 0.5:
        return 0.0
    if p > 0.5:
        return -t_ppf(1.0 - p, df)
    low = -1.0
    while t_cdf(low, df) > p:
        low *= 2.0
    return _where(lambda t: t_cdf(t, df), p, low, 0.0)


def _two_sided(t: float, df: float) -> float:
    return min(1.0, 2.0 * t_cdf(-abs(t), df))


def chi2_sf(x: float, df: float) -> float:
    """Chi-square: the probability of a value above `x`."""
    if x <= 0.0:
        return 1.0
    if math.isinf(x):
        return 0.0
    a, x = df / 2.0, x / 2.0
    front = math.exp(a * math.log(x) - x - math.lgamma(a))
    if x < a + 1.0:
        term = total = 1.0 / a
        n = a
        while abs(term) > abs(total) * 1e-17:
            n += 1.0
            term *= x / n
            total += term
        return 1.0 - front * total
    b, c = x + 1.0 - a, 1e300
    d = 1.0 / b
    value = d
    for i in range(1, 10_000):
        step = -i * (i - a)
        b += 2.0
        d = 1.0 / (step * d + b)
        c = b + step / c
        value *= d * c
        if abs(d * c - 1.0) < 1e-15:
            break
    return front * value


# One sample


class Summary(NamedTuple):
    """What one group of conversations shows."""

    n: int
    missing: int
    """Conversations without a value, which no other number here counts."""
    mean: float | None
    sd: float | None
    median: float | None
    low: float | None
    high: float | None
    interval: Interval | None
    """Of the mean, Student's t."""


def summarise(values: Values, level: float = 0.95) -> Summary:
    """Number, mean, standard deviation (n - 1), median, extremes and an interval of the mean."""
    everything = list(values)
    x = given(everything)
    n = len(x)
    if n == 0:
        return Summary(0, len(everything), None, None, None, None, None, None)
    mean, sd = float(x.mean()), float(x.std(ddof=1)) if n > 1 else None
    interval = None
    if sd is not None:
        half = t_ppf((1 + level) / 2, n - 1) * sd / math.sqrt(n)
        interval = Interval(mean - half, mean + half)
    return Summary(n, len(everything) - n, mean, sd, float(np.median(x)), float(x.min()), float(x.max()), interval)


def wilson(successes: int, n: int, level: float = 0.95) -> Interval | None:
    """Wilson's interval of a share. None without trials."""
    _check_share(successes, n)
    if n == 0:
        return None
    z = _NORMAL.inv_cdf((1 + level) / 2)
    share, square = successes / n, z * z / n
    centre = share + square / 2
    half = z * math.sqrt(share * (1 - share) / n + square / (4 * n))
    low = 0.0 if successes == 0 else (centre - half) / (1 + square)
    high = 1.0 if successes == n else (centre + half) / (1 + square)
    return Interval(low, high)


def clopper_pearson(successes: int, n: int, level: float = 0.95) -> Interval | None:
    """The exact interval of a share, for limits of what was never, or always, seen. None without trials."""
    _check_share(successes, n)
    if n == 0:
        return None
    tail, k = (1 - level) / 2, successes
    low = 0.0 if k == 0 else _where(lambda x: _beta_cdf(x, k, n - k + 1), tail, 0.0, 1.0)
    high = 1.0 if k == n else _where(lambda x: _beta_cdf(x, k + 1, n - k), 1 - tail, 0.0, 1.0)
    return Interval(low, high)


def _check_share(successes: int, n: int) -> None:
    if not 0 <= successes <= n:
        raise ValueError(f"{successes} of {n} is no share")


def fisher_exact(successes: tuple[int, int], n: tuple[int, int]) -> float:
    """Two-sided p of two shares being one: all tables of these margins that are no likelier than this one."""
    for k, of in zip(successes, n, strict=True):
        _check_share(k, of)
    total = sum(successes)
    first, last = max(0, total - n[1]), min(n[0], total)
    ways = [math.comb(n[0], first) * math.comb(n[1], total - first)]
    # Whole numbers, so that tables that are equally likely are seen to be; each from the last, which is quick.
    for k in range(first, last):
        ways.append(ways[-1] * (n[0] - k) * (total - k) // ((k + 1) * (n[1] - total + k + 1)))
    return sum(way for way in ways if way <= ways[successes[0] - first]) / sum(ways)


Statistic = Callable[..., Any]
"""Takes the samples as arrays and `axis`, along which the conversations lie."""


def bootstrap(
    *samples: Values,
    seed: int,
    statistic: Statistic = np.mean,
    level: float = 0.95,
    method: Literal["bca", "percentile"] = "bca",
    draws: int = DRAWS,
) -> Interval | None:
    """An interval by drawing conversations anew, with replacement and within each sample.

    Args:
        statistic: takes the samples and `axis=-1`, and reduces that axis.
        method: `bca` corrects for bias and skewness (Efron 1987), `percentile` does not.

    Returns:
        None where a sample has fewer than two values, or where drawing anew changes nothing: no spread was seen, which
        does not mean that there is none.
    """
    arrays = [given(sample) for sample in samples]
    if any(len(x) < 2 for x in arrays):
        return None
    rng = np.random.default_rng(seed)
    size = max(1, _CELLS // sum(map(len, arrays)))
    parts: list[Floats] = []
    for start in range(0, draws, size):
        rows = min(size, draws - start)
        drawn = [x[rng.integers(0, len(x), (rows, len(x)))] for x in arrays]
        parts.append(np.asarray(statistic(*drawn, axis=-1), dtype=float))
    found = np.concatenate(parts)
    found = found[np.isfinite(found)]
    observed = float(statistic(*arrays, axis=-1))
    if not len(found) or not math.isfinite(observed) or np.ptp(found) <= 1e-12 * max(1.0, abs(observed)):
        return None
    shares = ((1 - level) / 2, (1 + level) / 2)
    if method == "bca":
        corrected = _bca(arrays, statistic, observed, found, shares)
        if corrected is None:
            return None
        shares = corrected
    low, high = np.percentile(found, [100 * shares[0], 100 * shares[1]])
    return Interval(float(low), float(high))


def _bca(
    arrays: Sequence[Floats], statistic: Statistic, observed: float, found: Floats, shares: tuple[float, float]
) -> tuple[float, float] | None:
    below = float((np.sum(found < observed) + np.sum(found <= observed)) / (2 * len(found)))
    if not 0 < below < 1:
        return None
    top = bottom = 0.0
    for place, x in enumerate(arrays):
        n = len(x)
        left_out = np.array(
            [float(statistic(*arrays[:place], np.delete(x, i), *arrays[place + 1 :], axis=-1)) for i in range(n)]
        )
        influence = (n - 1) * (left_out.mean() - left_out)
        top += float(np.sum(influence**3)) / n**3
        bottom += float(np.sum(influence**2)) / n**2
    if bottom == 0 or not math.isfinite(bottom):
        return None
    acceleration, bias = top / (6 * bottom**1.5), _NORMAL.inv_cdf(below)

    def moved(share: float) -> float:
        z = bias + _NORMAL.inv_cdf(share)
        return _NORMAL.cdf(bias + z / (1 - acceleration * z))

    return moved(shares[0]), moved(shares[1])


def _difference(a: Floats, b: Floats, axis: int = -1) -> Any:
    return b.mean(axis=axis) - a.mean(axis=axis)


# Two groups


class Welch(NamedTuple):
    """Welch's t test. `difference` is the second mean less the first."""

    difference: float
    t: float
    df: float
    p: float
    interval: Interval


def welch(a: Values, b: Values, level: float = 0.95) -> Welch | None:
    """Two means with unequal variances. None with fewer than two values in a group, or no spread in either."""
    x, y = given(a), given(b)
    if min(len(x), len(y)) < 2:
        return None
    parts = (float(x.var(ddof=1)) / len(x), float(y.var(ddof=1)) / len(y))
    difference, variance = float(y.mean() - x.mean()), sum(parts)
    scale = max(float(np.abs(x).max()), float(np.abs(y).max()))
    if variance <= (1e-12 * scale) ** 2:
        return None
    df = variance**2 / (parts[0] ** 2 / (len(x) - 1) + parts[1] ** 2 / (len(y) - 1))
    se = math.sqrt(variance)
    half = t_ppf((1 + level) / 2, df) * se
    t = difference / se
    return Welch(difference, t, df, _two_sided(t, df), Interval(difference - half, difference + half))


class Permutation(NamedTuple):
    """A permutation test."""

    statistic: float
    p: float
    arrangements: int
    """Looked at, the one that was seen included."""
    exact: bool
    """All there are."""


def _p(observed: float, found: Floats, *, exact: bool) -> Permutation:
    # Sums of the same numbers in another order differ in their last bits and have to count as equal.
    tolerance = 1e-9 * max(abs(observed), float(np.abs(found).max(initial=0.0)), 1e-300)
    as_far = int(np.sum(np.abs(found) >= abs(observed) - tolerance))
    if exact:
        return Permutation(observed, as_far / len(found), len(found), True)
    return Permutation(observed, (as_far + 1) / (len(found) + 1), len(found) + 1, False)


def permutation_test(
    a: Values, b: Values, *, seed: int, draws: int = DRAWS, exact_up_to: int = EXACT_UP_TO
) -> Permutation | None:
    """Two-sided test of the difference of means, second less first, under every way to deal out the groups.

    Returns:
        p is the share of arrangements at least as far from 0. None where a group is empty.
    """
    x, y = given(a), given(b)
    n, m = len(x), len(y)
    if not n or not m:
        return None
    pooled = np.concatenate([x, y])
    pooled = pooled - pooled.mean()
    observed, total = float(y.mean() - x.mean()), float(pooled.sum())
    if math.comb(n + m, n) <= exact_up_to:
        chosen = np.array(list(itertools.combinations(range(n + m), n)))
        sums = pooled[chosen].sum(axis=1)
        return _p(observed, (total - sums) / m - sums / n, exact=True)
    if draws * n <= _CELLS:
        dealt: Iterable[NDArray[np.int32]] = (_dealt_once(n, m, seed, draws),)
    else:
        dealt = _dealt(n, m, seed, draws)
    sums = np.concatenate([pooled[chosen].sum(axis=1) for chosen in dealt])
    return _p(observed, (total - sums) / m - sums / n, exact=False)


def _dealt(n: int, m: int, seed: int, draws: int) -> Iterator[NDArray[np.int32]]:
    """Places of those that are dealt into the first group, one row per draw, so many at a time."""
    rng = np.random.default_rng(seed)
    size = max(1, _CELLS // (n + m))
    for start in range(0, draws, size):
        places = np.broadcast_to(np.arange(n + m, dtype=np.int32), (min(size, draws - start), n + m))
        yield rng.permuted(places, axis=1)[:, :n]


@lru_cache(maxsize=2)
def _dealt_once(n: int, m: int, seed: int, draws: int) -> NDArray[np.int32]:
    """The same for all measures of two groups: dealing takes ten times as long as adding up."""
    return np.concatenate(list(_dealt(n, m, seed, draws)))


def sign_flip_test(
    differences: Values, *, seed: int, draws: int = DRAWS, exact_up_to: int = EXACT_UP_TO
) -> Permutation | None:
    """Two-sided test of a mean of paired differences being 0, under every choice of signs. None without any."""
    x = given(differences)
    n = len(x)
    if not n:
        return None
    observed = float(x.mean())
    if 2**n <= exact_up_to:
        signs = 1 - 2 * ((np.arange(2**n)[:, None] >> np.arange(n)) & 1)
        return _p(observed, (signs * x).mean(axis=1), exact=True)
    rng = np.random.default_rng(seed)
    size = max(1, _CELLS // n)
    parts = [
        ((1 - 2 * rng.integers(0, 2, (min(size, draws - start), n))) * x).mean(axis=1)
        for start in range(0, draws, size)
    ]
    return _p(observed, np.concatenate(parts), exact=False)


def hedges_g(a: Values, b: Values, level: float = 0.95) -> Effect | None:
    """The difference of means, second less first, in pooled standard deviations, corrected for small samples.

    The interval is the usual large-sample one. None with fewer than two values in a group, or no spread in either.
    """
    x, y = given(a), given(b)
    n, m = len(x), len(y)
    if min(n, m) < 2:
        return None
    df = n + m - 2
    pooled = math.sqrt((float(x.var(ddof=1)) * (n - 1) + float(y.var(ddof=1)) * (m - 1)) / df)
    if pooled <= 1e-12 * max(float(np.abs(x).max()), float(np.abs(y).max())):
        return None
    correction = 1 - 3 / (4 * df - 1)
    d = float(y.mean() - x.mean()) / pooled
    se = correction * math.sqrt((n + m) / (n * m) + d * d / (2 * (n + m)))
    half = _NORMAL.inv_cdf((1 + level) / 2) * se
    g = correction * d
    return Effect(g, Interval(g - half, g + half))


def cliffs_delta(a: Values, b: Values, level: float = 0.95) -> Effect | None:
    """How much oftener a value of the second group is above one of the first than below it, -1 to 1.

    The interval is Cliff's (1996), unsymmetrical; None where no value or every value overlaps. None for an empty group.
    """
    x, y = given(a), given(b)
    n, m = len(x), len(y)
    if not n or not m:
        return None
    ordered = np.sort(x)
    not_above, below = np.searchsorted(ordered, y, "right"), np.searchsorted(ordered, y, "left")
    more_below = below - (n - not_above)  # counts, so that groups that do not differ have 0, not 1e-17
    by_y = more_below / n
    ties = int(np.sum(not_above - below))
    ordered = np.sort(y)
    by_x = ((m - np.searchsorted(ordered, x, "right")) - np.searchsorted(ordered, x, "left")) / m
    delta = int(more_below.sum()) / (n * m)
    if min(n, m) < 2 or abs(delta) == 1:
        return Effect(delta, None)
    squares = float(np.sum((by_x - delta) ** 2)) * m * m + float(np.sum((by_y - delta) ** 2)) * n * n
    cells = (n * m - ties) - n * m * delta * delta
    variance = max((squares - cells) / (n * m * (n - 1) * (m - 1)), (1 - delta * delta) / (n * m - 1))
    z = _NORMAL.inv_cdf((1 + level) / 2)
    root = z * math.sqrt(variance) * math.sqrt((1 - delta * delta) ** 2 + z * z * variance)
    under = 1 - delta * delta + z * z * variance
    centre = delta - delta**3
    return Effect(delta, Interval(max(-1.0, (centre - root) / under), min(1.0, (centre + root) / under)))


class Comparison(NamedTuple):
    """Two groups of conversations in one measure. Differences are the second less the first."""

    a: Summary
    b: Summary
    difference: float | None
    interval: Interval | None
    """Of the difference: BCa bootstrap over conversations."""
    g: Effect | None
    delta: Effect | None
    permutation: Permutation | None
    welch: Welch | None


def compare_groups(a: Values, b: Values, *, seed: int, level: float = 0.95, draws: int = DRAWS) -> Comparison:
    """All that is reported of two independent groups."""
    a, b = list(a), list(b)
    first, second = summarise(a, level), summarise(b, level)
    difference = None if first.mean is None or second.mean is None else second.mean - first.mean
    return Comparison(
        first,
        second,
        difference,
        bootstrap(a, b, statistic=_difference, seed=seed, level=level, draws=draws),
        hedges_g(a, b, level),
        cliffs_delta(a, b, level),
        permutation_test(a, b, seed=seed, draws=draws),
        welch(a, b, level),
    )


class Shares(NamedTuple):
    """Two groups of conversations in whether something is so. Differences are the second less the first."""

    n: tuple[int, int]
    missing: tuple[int, int]
    """Conversations of which it is not known, which no other number here counts."""
    events: tuple[int, int]
    """Conversations in which it is."""
    intervals: tuple[Interval | None, Interval | None]
    """Of the shares: Wilson's."""
    difference: float | None
    interval: Interval | None
    """Of the difference: Newcombe's hybrid of the two."""
    p: float | None
    """Fisher's exact test."""

    def share(self, group: Literal[0, 1]) -> float | None:
        return self.events[group] / self.n[group] if self.n[group] else None


def compare_shares(a: Iterable[bool | None], b: Iterable[bool | None], level: float = 0.95) -> Shares:
    """All that is reported of how often something is so in two independent groups; None: it is not known."""
    groups = list(a), list(b)
    known = [[value for value in group if value is not None] for group in groups]
    n, events = (len(known[0]), len(known[1])), (sum(known[0]), sum(known[1]))
    missing = (len(groups[0]) - n[0], len(groups[1]) - n[1])
    one, other = wilson(events[0], n[0], level), wilson(events[1], n[1], level)
    if one is None or other is None:
        return Shares(n, missing, events, (one, other), None, None, None)
    first, second = events[0] / n[0], events[1] / n[1]
    difference = second - first
    interval = Interval(
        difference - math.hypot(second - other.low, one.high - first),
        difference + math.hypot(other.high - second, first - one.low),
    )
    return Shares(n, missing, events, (one, other), difference, interval, fisher_exact(events, n))


class Paired(NamedTuple):
    """Paired values, second less first."""

    n: int
    missing: int
    """Pairs without a value on either side."""
    mean: float | None
    interval: Interval | None
    """Of the mean difference: BCa bootstrap over pairs."""
    g: float | None
    """Mean difference in standard deviations of the differences, corrected for small samples."""
    permutation: Permutation | None


def compare_pairs(
    pairs: Iterable[tuple[float | None, float | None]], *, seed: int, level: float = 0.95, draws: int = DRAWS
) -> Paired:
    """All that is reported of two groups whose members belong together two by two."""
    everything = list(pairs)
    x = given(None if a is None or b is None else b - a for a, b in everything)
    n = len(x)
    g = None
    if n > 2 and float(x.std(ddof=1)) > 1e-12 * float(np.abs(x).max()):
        g = float(x.mean() / x.std(ddof=1)) * (1 - 3 / (4 * (n - 1) - 1))
    return Paired(
        n,
        len(everything) - n,
        float(x.mean()) if n else None,
        bootstrap(x, seed=seed, level=level, draws=draws),
        g,
        sign_flip_test(x, seed=seed, draws=draws),
    )


# More than two groups


class Omnibus(NamedTuple):
    """Whether groups differ at all."""

    f: Permutation | None
    kruskal_wallis: Tested | None
    logrank: Tested | None = None
    """Of times to an event."""


def _f(values: Floats, starts: NDArray[np.int64], sizes: NDArray[np.int64]) -> Floats:
    """F of the rows of `values`, the groups side by side. Infinite where groups have no spread within."""
    n, k = values.shape[-1], len(sizes)
    means = np.add.reduceat(values, starts, axis=-1) / sizes
    between = np.sum(sizes * (means - values.mean(axis=-1, keepdims=True)) ** 2, axis=-1)
    within = np.sum(values**2, axis=-1) - np.sum(sizes * means**2, axis=-1)
    with np.errstate(divide="ignore"):
        return np.asarray((between / (k - 1)) / np.maximum(within / (n - k), 0.0), dtype=float)


def permutation_f(*groups: Values, seed: int, draws: int = DRAWS) -> Permutation | None:
    """Whether the means of groups are all equal: one-way F under random dealings.

    None with fewer than two groups that have values, too few values, or no spread at all.
    """
    arrays = [x for x in map(given, groups) if len(x)]
    sizes = np.array([len(x) for x in arrays])
    if len(arrays) < 2 or sizes.sum() <= len(arrays):
        return None
    pooled = np.concatenate(arrays)
    pooled = pooled - pooled.mean()
    if (largest := float(np.abs(pooled).max())) == 0.0:
        return None
    pooled = pooled / largest  # F has no unit, and squares of very small or large values none that a float can hold
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    observed = float(_f(pooled[None, :], starts, sizes)[0])
    rng = np.random.default_rng(seed)
    size = max(1, _CELLS // len(pooled))
    found = np.concatenate(
        [
            _f(rng.permuted(np.broadcast_to(pooled, (min(size, draws - at), len(pooled))), axis=1), starts, sizes)
            for at in range(0, draws, size)
        ]
    )
    as_far = int(np.sum(found >= observed * (1 - 1e-9)))
    return Permutation(observed, (as_far + 1) / (draws + 1), draws + 1, False)


def _ranks(values: Floats) -> Floats:
    """Ranks from 1 on; ties share the mean of theirs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return np.asarray((np.cumsum(counts) - (counts - 1) / 2)[inverse], dtype=float)


def kruskal_wallis(*groups: Values) -> Tested | None:
    """Whether values of groups are equally high, by ranks, corrected for ties. None where nothing can be ranked."""
    arrays = [x for x in map(given, groups) if len(x)]
    if len(arrays) < 2:
        return None
    pooled = np.concatenate(arrays)
    n = len(pooled)
    counts = np.unique(pooled, return_counts=True)[1]
    correction = 1 - float(np.sum(counts**3 - counts)) / (n**3 - n)
    if correction == 0:
        return None
    ranks, at, total = _ranks(pooled), 0, 0.0
    for x in arrays:
        total += float(ranks[at : at + len(x)].sum()) ** 2 / len(x)
        at += len(x)
    h = (12 / (n * (n + 1)) * total - 3 * (n + 1)) / correction
    return Tested(h, len(arrays) - 1, chi2_sf(h, len(arrays) - 1))


# Many tests

PValues = Sequence[float | None]


def _adjusted(p_values: PValues, adjust: Callable[[Floats], Floats]) -> list[float | None]:
    """Adjusted values in the order of the p values. A test that could not be done stays None and is none of them."""
    places = [at for at, p in enumerate(p_values) if p is not None]
    found: list[float | None] = [None] * len(p_values)
    if places:
        p = np.array([p_values[at] for at in places], dtype=float)
        order = np.argsort(p, kind="stable")
        for at, value in zip(order, adjust(p[order]), strict=True):
            found[places[at]] = min(1.0, float(value))
    return found


def benjamini_hochberg(p_values: PValues) -> list[float | None]:
    """p values adjusted so that those up to q hold a share of at most q of false findings (independent tests)."""
    return _adjusted(p_values, lambda p: _step_up(p * len(p) / np.arange(1, len(p) + 1)))


def benjamini_yekutieli(p_values: PValues) -> list[float | None]:
    """The same for tests that depend on each other in any way."""
    return _adjusted(
        p_values,
        lambda p: _step_up(p * len(p) * float(np.sum(1 / np.arange(1, len(p) + 1))) / np.arange(1, len(p) + 1)),
    )


def holm(p_values: PValues) -> list[float | None]:
    """p values adjusted so that the chance of any false finding is at most the level."""
    return _adjusted(p_values, lambda p: np.maximum.accumulate(p * np.arange(len(p), 0, -1)))


def _step_up(p: Floats) -> Floats:
    return np.asarray(np.minimum.accumulate(p[::-1])[::-1], dtype=float)


# Values in clusters


def _clusters(values: Values, clusters: Iterable[Hashable]) -> list[Floats]:
    found: dict[Hashable, list[float]] = defaultdict(list)
    for value, cluster in zip(values, clusters, strict=True):
        if value is not None and math.isfinite(value):
            found[cluster].append(value)
    return [np.array(x) for x in found.values()]


def icc(values: Values, clusters: Iterable[Hashable]) -> float | None:
    """Intra-class correlation, ICC(1) from the one-way analysis of variance, clusters of any sizes.

    Below 0 when values of one cluster are less alike than those of different ones. None with fewer than two clusters,
    one value in each, or no spread at all.
    """
    groups = _clusters(values, clusters)
    sizes = np.array([len(x) for x in groups])
    n, k = int(sizes.sum()), len(groups)
    if k < 2 or n <= k:
        return None
    mean = float(np.concatenate(groups).mean())
    between = sum(len(x) * (float(x.mean()) - mean) ** 2 for x in groups) / (k - 1)
    within = sum(float(((x - x.mean()) ** 2).sum()) for x in groups) / (n - k)
    size = (n - float((sizes**2).sum()) / n) / (k - 1)
    under = between + (size - 1) * within
    return None if under <= 0 else float((between - within) / under)


def design_effect(correlation: float, size: float) -> float:
    """By how much clusters of `size` values with this intra-class correlation inflate the variance of a mean."""
    return 1 + (size - 1) * correlation


def clustered_se(values: Values, clusters: Iterable[Hashable], *, finite: bool = True) -> float | None:
    """Standard error of the mean of values that come in clusters.

    Args:
        finite: multiply the variance by G / (G - 1), G the number of clusters, as Inspect and statsmodels do;
            Miller (2024) does not. Twenty clusters or more are needed for either to be right.

    Returns:
        None with fewer than two clusters.
    """
    groups = _clusters(values, clusters)
    if len(groups) < 2:
        return None
    pooled = np.concatenate(groups)
    mean = float(pooled.mean())
    variance = sum(float((x - mean).sum()) ** 2 for x in groups) / len(pooled) ** 2
    return math.sqrt(variance * (len(groups) / (len(groups) - 1) if finite else 1.0))


# Time to an event

Times = Iterable[float]
"""When each conversation had the event, or was last seen without it, in turns or messages."""


class SurvivalCurve(NamedTuple):
    """Kaplan and Meier's estimate. Rows belong to the times at which something happened or ended."""

    times: tuple[float, ...]
    at_risk: tuple[int, ...]
    events: tuple[int, ...]
    censored: tuple[int, ...]
    survival: tuple[float, ...]
    """Share without the event after each time."""
    se: tuple[float, ...]
    """Greenwood's."""
    intervals: tuple[Interval | None, ...]
    """On the log(-log) scale; None before the first event and where all have had it."""

    def at(self, time: float) -> float:
        """The share without the event at a time."""
        place = int(np.searchsorted(self.times, time, "right"))
        return 1.0 if place == 0 else self.survival[place - 1]

    @property
    def median(self) -> float | None:
        """The first time at which at most half are without the event; None: more than half never had it."""
        # Products of shares such as 0.8 * 0.625 may come out a bit above the half they are.
        return next((t for t, s in zip(self.times, self.survival, strict=True) if s <= 0.5 + 1e-12), None)


def _life_table(durations: Times, events: Iterable[bool]) -> Iterator[tuple[float, int, int, int]]:
    """Time, at risk before it, events at it, censored at it."""
    pairs = list(zip(map(float, durations), map(bool, events), strict=True))
    if any(math.isnan(time) or time < 0 for time, _ in pairs):
        raise ValueError("a time to an event is a number from 0 on")
    left = len(pairs)
    had = Counter(time for time, event in pairs if event)
    ended = Counter(time for time, event in pairs if not event)
    for time in sorted(had.keys() | ended.keys()):
        yield time, left, had[time], ended[time]
        left -= had[time] + ended[time]


def kaplan_meier(durations: Times, events: Iterable[bool], level: float = 0.95) -> SurvivalCurve:
    """The share of conversations without the event by time. Those that ended without it are censored then.

    Args:
        events: whether it happened at that time.

    Raises:
        ValueError: a time is negative or no number.
    """
    z = _NORMAL.inv_cdf((1 + level) / 2)
    table = list(_life_table(durations, events))
    survival, greenwood = 1.0, 0.0
    shares: list[float] = []
    errors: list[float] = []
    intervals: list[Interval | None] = []
    for _, at_risk, had, _ in table:
        survival *= 1 - had / at_risk
        greenwood = math.inf if had == at_risk else greenwood + had / (at_risk * (at_risk - had))
        shares.append(survival)
        errors.append(survival * math.sqrt(greenwood) if survival > 0 else 0.0)
        if 0 < survival < 1:
            half = z * math.sqrt(greenwood) / abs(math.log(survival))
            intervals.append(Interval(survival ** math.exp(half), survival ** math.exp(-half)))
        else:
            intervals.append(None)
    columns = list(zip(*table, strict=True)) or [(), (), (), ()]
    return SurvivalCurve(
        tuple(columns[0]),
        tuple(columns[1]),
        tuple(columns[2]),
        tuple(columns[3]),
        tuple(shares),
        tuple(errors),
        tuple(intervals),
    )


class RestrictedMean(NamedTuple):
    """Mean time without the event up to a horizon."""

    value: float
    se: float


def restricted_mean(curve: SurvivalCurve, horizon: float) -> RestrictedMean | None:
    """The area under a survival curve up to a time that is common to all groups.

    None where nobody was seen until then and the event was still to come: the curve ends before the horizon.
    """
    if not curve.times or (curve.times[-1] < horizon and curve.survival[-1] > 0):
        return None
    ends = [*(t for t in curve.times if t < horizon), horizon]
    starts = [0.0, *ends[:-1]]
    areas = [curve.at(start) * (end - start) for start, end in zip(starts, ends, strict=True)]
    variance = 0.0
    for place, (at_risk, had) in enumerate(zip(curve.at_risk, curve.events, strict=True)):
        if curve.times[place] < horizon and had and at_risk > had:
            variance += sum(areas[place + 1 :]) ** 2 * had / (at_risk * (at_risk - had))
    return RestrictedMean(float(sum(areas)), math.sqrt(variance))


def common_horizon(curves: Sequence[SurvivalCurve]) -> float | None:
    """The last time up to which all curves are known; one on which all had the event is known to stay at 0.

    None where there is no curve, or one without conversations.
    """
    if not all(curve.times for curve in curves):
        return None
    open_ends = [curve.times[-1] for curve in curves if curve.survival[-1] > 0]
    return min(open_ends) if open_ends else max((curve.times[-1] for curve in curves), default=None)


def logrank(*groups: tuple[Times, Iterable[bool]]) -> Tested | None:
    """Whether the event comes equally early in all groups of (durations, events).

    None with fewer than two groups, or where it never happened while two groups were under way.
    """
    listed = [(list(map(float, durations)), list(map(bool, events))) for durations, events in groups]
    k = len(listed)
    if k < 2:
        return None
    durations = [np.array(times) for times, _ in listed]
    had = [np.array(times)[np.array(events, dtype=bool)] for times, events in listed]
    score, covariance = np.zeros(k), np.zeros((k, k))
    for time in sorted({float(t) for times in had for t in times}):
        at_risk = np.array([np.sum(times >= time) for times in durations], dtype=float)
        events = np.array([np.sum(times == time) for times in had], dtype=float)
        n, d = at_risk.sum(), events.sum()
        score += events - d * at_risk / n
        if n > 1:
            share = at_risk / n
            covariance += d * (n - d) / (n - 1) * (np.diag(share) - np.outer(share, share))
    rank = int(np.linalg.matrix_rank(covariance))
    if rank == 0:
        return None
    statistic = float(score @ np.linalg.pinv(covariance, hermitian=True) @ score)
    return Tested(statistic, rank, chi2_sf(statistic, rank))


class CumulativeIncidence(NamedTuple):
    """Aalen and Johansen's estimate of one way to end, while others compete."""

    times: tuple[float, ...]
    """At which some conversation ended in any way."""
    incidence: tuple[float, ...]
    """Share that has ended in this way by each time."""
    se: tuple[float, ...]
    """By the delta method."""


def cumulative_incidence(durations: Times, causes: Iterable[Hashable | None]) -> dict[Hashable, CumulativeIncidence]:
    """By cause, the share of conversations that it has ended by each time.

    An agent's own stop, an error or a spent budget ends a conversation otherwise than the event: it is a cause of its
    own here. Taking it for censoring says how often the event *would* come if nothing else ended conversations.

    Args:
        causes: what ended each conversation at its time; None: nothing so far, as at the turn limit.
    """
    pairs = list(zip(map(float, durations), causes, strict=True))
    kinds = sorted({cause for _, cause in pairs if cause is not None}, key=str)
    times = sorted({time for time, cause in pairs if cause is not None})
    n = [sum(t >= time for t, _ in pairs) for time in times]
    ended = [sum(t == time and cause is not None for t, cause in pairs) for time in times]
    before = [1.0]
    for at_risk, d in zip(n, ended, strict=True):
        before.append(before[-1] * (1 - d / at_risk))
    found: dict[Hashable, CumulativeIncidence] = {}
    for kind in kinds:
        own = [sum(t == time and cause == kind for t, cause in pairs) for time in times]
        steps = [s * d / at_risk for s, d, at_risk in zip(before[:-1], own, n, strict=True)]
        incidence = list(itertools.accumulate(steps))
        errors = []
        for place in range(len(times)):
            variance = 0.0
            for j in range(place + 1):
                rest, at_risk, s = incidence[place] - incidence[j], n[j], before[j]
                if at_risk > ended[j]:
                    variance += rest**2 * ended[j] / (at_risk * (at_risk - ended[j]))
                variance += s**2 * own[j] * (at_risk - own[j]) / at_risk**3
                variance -= 2 * rest * s * own[j] / at_risk**2
            errors.append(math.sqrt(max(0.0, variance)))
        found[kind] = CumulativeIncidence(tuple(times), tuple(incidence), tuple(errors))
    return found


class Passage(NamedTuple):
    """How long one conversation went on without an event, and what became of it."""

    time: float
    """Of the event, or at which it was last seen without it; in turns or messages."""
    event: bool
    ended: str | None = None
    """What ended it otherwise, such as a stop of an agent; None: nothing did, as at the turn limit."""


class Passages(NamedTuple):
    """Two groups of conversations in the time to an event. Differences are the second less the first."""

    n: tuple[int, int]
    missing: tuple[int, int]
    """Conversations of which it is not known, which no other number here counts."""
    events: tuple[int, int]
    otherwise: tuple[int, int]
    """Conversations that ended otherwise before it."""
    medians: tuple[float | None, float | None]
    horizon: float | None
    """The means and the incidence go up to it: the last time at which each group was still seen, or had all had it."""
    means: tuple[RestrictedMean | None, RestrictedMean | None]
    """Time without the event up to the horizon, if nothing else ended conversations."""
    incidence: tuple[float | None, float | None]
    """Share that had the event by the horizon, others having ended otherwise (Aalen-Johansen)."""
    difference: float | None
    """Of the means."""
    interval: Interval | None
    """Of the difference: normal approximation."""
    test: Tested | None
    """Log-rank; what ended otherwise is censored then."""


def compare_times(a: Iterable[Passage | None], b: Iterable[Passage | None], level: float = 0.95) -> Passages:
    """All that is reported of the time to an event in two independent groups; None: it is not known."""
    groups = [list(a), list(b)]
    known = [[passage for passage in group if passage is not None] for group in groups]
    curves = [kaplan_meier([p.time for p in group], [p.event for p in group], level) for group in known]
    horizon = common_horizon(curves)
    one, other = (None if horizon is None else restricted_mean(curve, horizon) for curve in curves)
    difference = interval = None
    if one is not None and other is not None:
        difference = other.value - one.value
        half = _NORMAL.inv_cdf((1 + level) / 2) * math.hypot(one.se, other.se)
        interval = Interval(difference - half, difference + half) if half > 0 else None
    return Passages(
        (len(known[0]), len(known[1])),
        (len(groups[0]) - len(known[0]), len(groups[1]) - len(known[1])),
        (sum(p.event for p in known[0]), sum(p.event for p in known[1])),
        (
            sum(p.ended is not None and not p.event for p in known[0]),
            sum(p.ended is not None and not p.event for p in known[1]),
        ),
        (curves[0].median, curves[1].median),
        horizon,
        (one, other),
        (_incidence(known[0], horizon), _incidence(known[1], horizon)),
        difference,
        interval,
        logrank(*(([p.time for p in group], [p.event for p in group]) for group in known)) if all(known) else None,
    )


def _incidence(passages: Sequence[Passage], horizon: float | None) -> float | None:
    if horizon is None:
        return None
    # A cause in a tuple cannot be taken for a reason that somebody else has named.
    causes = [("event",) if p.event else None if p.ended is None else ("otherwise", p.ended) for p in passages]
    found = cumulative_incidence([p.time for p in passages], causes).get(("event",))
    if found is None:
        return 0.0
    place = sum(time <= horizon for time in found.times)
    return found.incidence[place - 1] if place else 0.0


# Surrogates


class SurrogatePair(NamedTuple):
    """A message and the partner's before it."""

    conversation: str
    turn: int
    own: Any
    partner: Any
    length: float
    """Of the partner's message, in tokens."""


class Corrected(NamedTuple):
    """A similarity and how much of it chance alone would give. What cannot be told is None."""

    raw: float | None
    surrogate: float | None
    """Mean similarity with partners it did not have."""
    difference: float | None
    """raw - surrogate"""
    share: float | None
    """(raw - surrogate) / (1 - surrogate): of what chance leaves open, the part that is reached."""
    partners: int


def surrogate_baseline(
    pairs: Sequence[SurrogatePair],
    similarity: Callable[[Any, Any], float | None],
    *,
    seed: int,
    draws: int = 20,
    tolerance: float = 0.25,
    within: bool = False,
    least: int = 5,
) -> list[Corrected]:
    """Similarity to the partner beyond that to others' partners at the same turn, of a similar length.

    Args:
        pairs: of one condition.
        similarity: of `own` and `partner`, up to 1; None where it cannot be computed.
        draws: partners drawn for each pair; all of them where there are no more.
        tolerance: by how much of its length a drawn message may be longer or shorter than the partner's.
        within: draw from other turns of the same conversation instead, which keeps its topic.
        least: conversations needed; with fewer there is no baseline.

    Returns:
        One for each pair, in their order. The draw for a pair depends on the seed, its conversation and its turn, not
        on the order of the pairs.
    """
    shelves: dict[Hashable, list[SurrogatePair]] = defaultdict(list)
    for pair in pairs:
        shelves[pair.conversation if within else pair.turn].append(pair)
    enough = within or len({pair.conversation for pair in pairs}) >= least
    found = []
    for pair in pairs:
        raw = similarity(pair.own, pair.partner)
        others = [
            other
            for other in shelves[pair.conversation if within else pair.turn]
            if (other.turn != pair.turn if within else other.conversation != pair.conversation)
            and abs(other.length - pair.length) <= tolerance * pair.length
        ]
        others.sort(key=lambda other: (other.conversation, other.turn))
        if len(others) > draws:
            others = random.Random(f"{seed}/{pair.conversation}/{pair.turn}").sample(others, draws)
        values = given(similarity(pair.own, other.partner) for other in others) if enough else given(())
        if raw is None or not len(values):
            found.append(Corrected(raw, None, None, None, 0))
            continue
        chance = float(values.mean())
        share = None if chance >= 1 - 1e-12 else (raw - chance) / (1 - chance)
        found.append(Corrected(raw, chance, raw - chance, share, len(values)))
    return found


# Planning

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(200)
_erf = np.vectorize(math.erf, otypes=[float])


def _normal_cdf(x: Floats) -> Floats:
    return np.asarray(0.5 * (1 + _erf(x / math.sqrt(2))), dtype=float)


def _noncentral_t_tails(critical: float, df: float, shift: float) -> float:
    """Probability of |t| above a value, where t has this noncentrality: an integral over the spread that was seen."""
    # s = sqrt(chi2 / df) has all but 1e-20 of its weight within these bounds.
    width = 10 / math.sqrt(2 * df)
    low, high = max(1e-12, 1 - width), 1 + width + 3 / df
    s = (high - low) / 2 * _NODES + (high + low) / 2
    log_density = math.log(2) + df / 2 * math.log(df / 2) - math.lgamma(df / 2) + (df - 1) * np.log(s) - df * s * s / 2
    inside = _normal_cdf(critical * s - shift) - _normal_cdf(-critical * s - shift)
    return 1.0 - float(np.sum(_WEIGHTS * inside * np.exp(log_density)) * (high - low) / 2)


def power_of_means(effect: float, n: int, alpha: float = 0.05) -> float:
    """Power of a two-sided t test.

    Args:
        effect: the true difference in standard deviations of conversation values.
        n: conversations in each of two equal arms, 2 or more.
    """
    df = 2 * n - 2
    return _noncentral_t_tails(t_ppf(1 - alpha / 2, df), df, abs(effect) * math.sqrt(n / 2))


def power_of_rates(rates: tuple[float, float], n: int, alpha: float = 0.05) -> float:
    """Power of a two-sided test of two shares, by the arcsine transformation; `n` conversations in each arm."""
    shift = abs(_arcsine(rates)) * math.sqrt(n / 2)
    z = _NORMAL.inv_cdf(1 - alpha / 2)
    return _NORMAL.cdf(shift - z) + _NORMAL.cdf(-shift - z)


def power_of_hazards(hazard_ratio: float, events: float, alpha: float = 0.05) -> float:
    """Power of a two-sided log-rank test of two equal arms with this many events in all (Schoenfeld 1981)."""
    shift = abs(math.log(hazard_ratio)) * math.sqrt(events) / 2
    z = _NORMAL.inv_cdf(1 - alpha / 2)
    return _NORMAL.cdf(shift - z) + _NORMAL.cdf(-shift - z)


def _arcsine(rates: tuple[float, float]) -> float:
    return 2 * math.asin(math.sqrt(rates[1])) - 2 * math.asin(math.sqrt(rates[0]))


MOST = 10_000_000
"""Conversations per arm above which no plan is made."""


def n_per_arm(power_at: Callable[[int], float], power: float = 0.8) -> int | None:
    """The fewest conversations per arm with which `power_at` reaches a power; None: more than ten million."""
    high = 2
    while power_at(high) < power:
        if high >= MOST:
            return None
        high = min(2 * high, MOST)
    low = max(2, high // 2)
    while low < high:
        middle = (low + high) // 2
        if power_at(middle) < power:
            low = middle + 1
        else:
            high = middle
    return low


def detectable_effect(n: int, power: float = 0.8, alpha: float = 0.05) -> float:
    """The smallest difference, in standard deviations of conversation values, that `n` per arm find this often."""
    high = 1.0
    while power_of_means(high, n, alpha) < power:
        high *= 2
    low = 0.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if power_of_means(middle, n, alpha) < power else (low, middle)
    return high


def logrank_events(hazard_ratio: float, power: float = 0.8, alpha: float = 0.05) -> int:
    """Events needed in all, in two equal arms, for a log-rank test to find a hazard ratio (Schoenfeld 1981)."""
    z = _NORMAL.inv_cdf(1 - alpha / 2) + _NORMAL.inv_cdf(power)
    return math.ceil(4 * (z / math.log(hazard_ratio)) ** 2)


# Turns within conversations


class FixedEffect(NamedTuple):
    """A coefficient of a mixed model."""

    estimate: float
    se: float
    p: float
    interval: Interval


class TooLittle(SpecError):
    """The data do not allow a model."""


class MixedModel(NamedTuple):
    """A linear mixed model with a random intercept per conversation, fitted by REML."""

    effects: dict[str, FixedEffect]
    group_variance: float
    """Of the intercepts, in squared units of the measure (statsmodels' own "Group Var" is relative to the residual)."""
    residual_variance: float
    log_likelihood: float
    n: int
    conversations: int
    converged: bool

    @property
    def icc(self) -> float:
        """The share of the variance that lies between conversations."""
        return self.group_variance / (self.group_variance + self.residual_variance)


def mixed_model(
    y: Sequence[float | None],
    conditions: Sequence[str],
    turns: Sequence[float],
    conversations: Sequence[str],
    *,
    covariates: Mapping[str, Sequence[float | None]] | None = None,
    random_slope: bool = False,
    level: float = 0.95,
) -> MixedModel:
    """The measure by condition, turn and their interaction, over turns within conversations.

    Effects are named `intercept`, `turn`, `condition=<label>`, `condition=<label>:turn` and as the covariates are; the
    first condition in alphabetical order is the reference.

    Args:
        covariates: further columns, such as the logarithm of the tokens for any measure of style.
        random_slope: let conversations also differ in how the measure changes by turn.

    Raises:
        TooLittle: there is too little data for the model, or it is too alike.
        SpecError: statsmodels is not installed.
    """
    try:
        from statsmodels.regression.mixed_linear_model import MixedLM  # type: ignore[import-untyped]
    except ImportError:
        raise SpecError("mixed models need the analysis extra: pip install 'pidgin-cli[analysis]'") from None
    import warnings

    more = dict(covariates or {})
    rows = [
        (value, condition, float(turn), conversation, extra)
        for value, condition, turn, conversation, *extra in zip(
            y, conditions, turns, conversations, *more.values(), strict=True
        )
        if all(number is not None and math.isfinite(number) for number in (value, *extra))
    ]
    levels = sorted({row[1] for row in rows})[1:]
    names = ["intercept", "turn"]
    names += [f"condition={name}" for name in levels] + [f"condition={name}:turn" for name in levels] + list(more)
    design = np.array(
        [
            [1.0, turn, *(float(condition == x) for x in levels), *(turn * (condition == x) for x in levels), *extra]
            for _, condition, turn, _, extra in rows
        ]
    )
    groups = [row[3] for row in rows]
    if len(set(groups)) < 3 or len(rows) <= len(names) + 1 or np.linalg.matrix_rank(design) < len(names):
        raise TooLittle(
            f"{len(rows)} values of {len(set(groups))} conversations are too few, or too alike, for a mixed model"
        )
    slopes = design[:, :2] if random_slope else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what it says of convergence is in `converged`
        try:
            fit = MixedLM(np.array([row[0] for row in rows], dtype=float), design, groups, exog_re=slopes).fit(
                reml=True
            )
        except np.linalg.LinAlgError:
            raise TooLittle("the values are too alike for a mixed model") from None
        interval = np.asarray(fit.conf_int(1 - level))
        errors, p_values = np.asarray(fit.bse), np.asarray(fit.pvalues)
    effects = {
        name: FixedEffect(
            float(fit.fe_params[at]), float(errors[at]), float(p_values[at]), Interval(*map(float, interval[at]))
        )
        for at, name in enumerate(names)
    }
    return MixedModel(
        effects,
        float(np.asarray(fit.cov_re)[0, 0]),
        float(fit.scale),
        float(fit.llf),
        len(rows),
        len(set(groups)),
        bool(fit.converged) and bool(np.isfinite(errors[: len(names)]).all()),
    )
