"""The statistics agree with reference implementations, recover what is planted, and keep their level."""

import itertools
import json
import math
import subprocess
import sys
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats  # type: ignore[import-untyped]
from hypothesis import given as examples
from hypothesis import settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pidgin_cli.core.errors import SpecError
from pidgin_cli.metrics.statistics import (
    Passage,
    SurrogatePair,
    benjamini_hochberg,
    benjamini_yekutieli,
    bootstrap,
    chi2_sf,
    cliffs_delta,
    clopper_pearson,
    clustered_se,
    compare_groups,
    compare_pairs,
    compare_shares,
    compare_times,
    cumulative_incidence,
    design_effect,
    detectable_effect,
    fisher_exact,
    hedges_g,
    holm,
    icc,
    kaplan_meier,
    kruskal_wallis,
    logrank,
    logrank_events,
    mixed_model,
    n_per_arm,
    permutation_f,
    permutation_test,
    power_of_hazards,
    power_of_means,
    power_of_rates,
    restricted_mean,
    sign_flip_test,
    summarise,
    surrogate_baseline,
    t_cdf,
    t_ppf,
    welch,
    wilson,
)

GOLDEN: dict[str, Any] = json.loads((Path(__file__).parent / "data" / "golden_metrics.json").read_text())["statistics"]
CONTROL, TREATED = (GOLDEN["conversation_means"][arm] for arm in ("control", "treated"))
ROWS = GOLDEN["data"]["rows"]
SURVIVAL = GOLDEN["survival_turns_to_event"]


def close(value: Any, rel: float = 1e-9) -> Any:
    return pytest.approx(value, rel=rel, abs=1e-12)


def difference(a: NDArray[np.float64], b: NDArray[np.float64], axis: int = -1) -> Any:
    return b.mean(axis=axis) - a.mean(axis=axis)


# The worked example of the reference data


def test_golden_difference_of_two_arms() -> None:
    """Welch, exact permutation, Hedges' g and Cliff's delta of the worked example."""
    found = compare_groups(CONTROL, TREATED, seed=7)
    assert found.difference == close(GOLDEN["diff_of_means_treated_minus_control"])
    reference = GOLDEN["welch_t_on_conversation_means"]
    assert found.welch is not None
    assert (found.welch.t, found.welch.df, found.welch.p) == close((reference["t"], reference["df"], reference["p"]))
    assert found.welch.interval == close(tuple(reference["ci95"]))
    assert found.permutation is not None
    reference = GOLDEN["permutation_test_exact_924"]
    assert found.permutation == close((reference["statistic"], reference["p_two_sided_scipy"], 924, True))
    assert found.g is not None
    assert found.g.value == close(GOLDEN["hedges_g"])
    assert found.delta is not None
    assert found.delta.value == close(GOLDEN["mann_whitney_exact"]["cliffs_delta"])
    reference = GOLDEN["bootstrap_bca_9999_seed7"]["ci95"]
    assert bootstrap(TREATED, CONTROL, seed=7, statistic=lambda a, b, axis: -difference(a, b, axis)) == close(
        tuple(reference)
    )
    assert found.interval == pytest.approx(tuple(reference), abs=0.008)  # the same from other draws


def test_golden_clusters() -> None:
    """Intra-class correlation and clustered standard errors, with and without the finite-cluster factor."""
    treated = [(name, y) for arm, name, _, y in ROWS if arm == "treated"]
    names, values = [name for name, _ in treated], [y for _, y in treated]
    reference = GOLDEN["clustered_se_of_treated_mean"]
    assert icc(values, names) == close(reference["icc_anova"])
    assert clustered_se(values, names) == close(reference["inspect_ai (finite-cluster factor G/(G-1))"])
    miller = next(value for key, value in reference.items() if key.startswith("miller"))
    assert clustered_se(values, names, finite=False) == close(miller)


def test_golden_many_tests() -> None:
    """Benjamini-Hochberg, Benjamini-Yekutieli and Holm."""
    reference = GOLDEN["bh_fdr"]
    assert benjamini_hochberg(reference["p"]) == close(reference["adjusted_statsmodels_fdr_bh"])
    assert benjamini_yekutieli(reference["p"]) == close(reference["by_adjusted"])
    assert holm(reference["p"]) == close(reference["holm_adjusted"])
    assert [p is not None and p <= 0.05 for p in benjamini_hochberg(reference["p"])] == reference["rejected_at_0.05"]


def test_golden_survival() -> None:
    """Kaplan-Meier, log-rank and restricted mean; the median is where half is left, exactly half included."""
    curves = {}
    for arm in "AB":
        data = SURVIVAL[arm]
        curves[arm] = curve = kaplan_meier(data["duration"], data["event"])
        for time, share in SURVIVAL[f"km_{arm}"].items():
            assert curve.at(float(time)) == close(share)
        mean = restricted_mean(curve, 30)
        assert mean is not None
        assert mean.value == close(SURVIVAL[f"rmst_30_{arm}"])
    assert (curves["A"].median, curves["B"].median) == (12, 28)
    tested = logrank(*((SURVIVAL[arm]["duration"], SURVIVAL[arm]["event"]) for arm in "AB"))
    assert tested is not None
    assert (tested.statistic, tested.p) == close((SURVIVAL["logrank_chi2"], SURVIVAL["logrank_p"]))


def test_golden_shares() -> None:
    """Wilson, Clopper-Pearson and Fisher."""
    reference = GOLDEN["proportions"]
    for name, k, n in (("10_of_10", 10, 10), ("0_of_10", 0, 10), ("6_of_10", 6, 10), ("110_of_200", 110, 200)):
        assert wilson(k, n) == close(tuple(reference[f"{name}_wilson95"]))
    assert clopper_pearson(0, 10) == close(tuple(reference["0_of_10_clopper_pearson95"]))
    assert fisher_exact((6, 0), (10, 6)) == close(reference["fisher_6of10_vs_0of6"]["p"])


def test_golden_mixed_model() -> None:
    """The REML fit, its variances in plain units, and a row without a value left out."""
    reference = GOLDEN["mixedlm_reml_y~condition*turn_random_intercept"]
    arms, names, turns, y = (list(column) for column in zip(*ROWS, strict=True))
    found = mixed_model([*y, None], [*arms, "treated"], [*turns, 9], [*names, "treated_0"])
    for name, theirs in (
        ("intercept", "Intercept"),
        ("turn", "turn"),
        ("condition=treated", "C(condition)[T.treated]"),
        ("condition=treated:turn", "C(condition)[T.treated]:turn"),
    ):
        effect = found.effects[name]
        assert effect.estimate == close(reference["params"][theirs], 1e-5)
        assert effect.se == close(reference["bse"][theirs], 1e-4)
        assert effect.p == close(reference["pvalues"][theirs], 1e-3)
    assert found.group_variance == close(reference["group_var"], 1e-4)
    assert found.residual_variance == close(reference["scale"], 1e-5)
    assert found.log_likelihood == close(reference["llf"], 1e-6)
    assert (found.n, found.conversations, found.converged) == (60, 12, True)
    assert found.icc == close(reference["group_var"] / (reference["group_var"] + reference["scale"]), 1e-4)


def test_a_mixed_model_says_what_it_lacks() -> None:
    """Too little data is one line; so is a missing statsmodels, and everything else works without it and scipy."""
    with pytest.raises(SpecError, match="too few"):
        mixed_model([1.0, 2.0, 3.0], ["x", "x", "y"], [1, 2, 1], ["k", "k", "l"])
    script = (
        "import sys\n"
        "for name in ('scipy', 'statsmodels', 'lifelines', 'pandas'): sys.modules[name] = None\n"
        "from pidgin_cli.metrics.statistics import *\n"
        "found = compare_groups([1, 2, 3, 4], [3, 4, 5, 9], seed=1)\n"
        "assert found.welch and found.interval and found.permutation and power_of_means(0.5, 64) > 0.8\n"
        "try: mixed_model([1.0], ['x'], [1], ['k'])\n"
        "except Exception as error: print(type(error).__name__, error)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "SpecError mixed models need the analysis extra: pip install 'pidgin-cli[analysis]'\n"


# Against scipy, statsmodels and lifelines


@pytest.mark.parametrize("df", [1, 2, 3.7, 9, 30, 200, 1e5])
def test_student_t_is_scipys(df: float) -> None:
    """Distribution and quantiles, tails included."""
    for t in (-40, -3.2, -1, -1e-6, 0, 0.3, 2, 12):
        assert t_cdf(t, df) == pytest.approx(scipy.stats.t.cdf(t, df), rel=1e-9, abs=1e-300)
    for p in (1e-6, 0.025, 0.3, 0.5, 0.9, 0.975, 0.9999):
        assert t_ppf(p, df) == pytest.approx(scipy.stats.t.ppf(p, df), rel=1e-8, abs=1e-12)


def test_chi_square_is_scipys() -> None:
    """The upper tail, from nearly all to nearly nothing."""
    for df in (1, 2, 3, 7, 40):
        for x in (0, 0.01, 0.5, 2, 3.84, 10, 60, 300):
            assert chi2_sf(x, df) == pytest.approx(scipy.stats.chi2.sf(x, df), rel=1e-9, abs=1e-15)


def samples(seed: int, *sizes: int, step: float = 0.4) -> list[list[float]]:
    rng = np.random.default_rng(seed)
    return [list(rng.gamma(2, 1 + step * at, size)) for at, size in enumerate(sizes)]


@pytest.mark.parametrize("method", ["bca", "percentile"])
def test_bootstrap_is_scipys(method: Any) -> None:
    """From the same stream of draws come the very same intervals, of one sample and of two."""
    one, two = samples(3, 12, 9)
    for data, statistic in (([one], np.mean), ([one, two], difference), ([one], np.median)):
        theirs = scipy.stats.bootstrap(
            data, statistic, method={"bca": "BCa"}.get(method, method), rng=np.random.default_rng(5), n_resamples=999
        ).confidence_interval
        assert bootstrap(*data, seed=5, statistic=statistic, method=method, draws=999) == close(tuple(theirs))


def test_two_group_tests_are_scipys() -> None:
    """Welch, exact and sign-flip permutation with unequal and tied values, Kruskal-Wallis, Cliff's delta by ranks."""
    one, two, three = samples(4, 7, 9, 8)
    one[0] = two[0] = two[1]
    theirs = scipy.stats.ttest_ind(two, one, equal_var=False)
    ours = welch(one, two)
    assert ours is not None
    assert (ours.t, ours.df, ours.p, *ours.interval) == close(
        (theirs.statistic, theirs.df, theirs.pvalue, *theirs.confidence_interval())
    )
    distance = scipy.stats.permutation_test(
        (one, two), lambda a, b, axis: np.abs(difference(a, b, axis)), vectorized=True, alternative="greater",
        n_resamples=np.inf,
    )  # fmt: skip
    exact = permutation_test(one, two, seed=0)
    assert exact is not None
    assert (exact.p, exact.arrangements) == close((distance.pvalue, math.comb(16, 7)))
    changes = [b - a for a, b in zip(one, two, strict=False)]
    flipped = scipy.stats.permutation_test(
        (changes,), np.mean, permutation_type="samples", n_resamples=np.inf, vectorized=False
    )
    ours_flipped = sign_flip_test(changes, seed=0)
    assert ours_flipped is not None
    assert (ours_flipped.p, ours_flipped.exact) == close((flipped.pvalue, True))
    ranked = kruskal_wallis(one, two, three)
    assert ranked == close((scipy.stats.kruskal(one, two, three).statistic, 2, ranked and ranked.p))
    assert ranked is not None
    assert ranked.p == close(scipy.stats.kruskal(one, two, three).pvalue)
    delta = cliffs_delta(one, two)
    assert delta is not None
    u = scipy.stats.mannwhitneyu(two, one).statistic
    assert delta.value == close(2 * u / (len(one) * len(two)) - 1)


def test_shares_are_scipys() -> None:
    """Wilson, Clopper-Pearson and Fisher over small tables."""
    for k, n in ((0, 3), (1, 7), (5, 12), (12, 12), (40, 300)):
        result = scipy.stats.binomtest(k, n)
        assert wilson(k, n) == close(tuple(result.proportion_ci(method="wilson")))
        assert clopper_pearson(k, n) == close(tuple(result.proportion_ci(method="exact")))
    for table in ((0, 3, 5, 6), (2, 10, 9, 10), (4, 8, 4, 8), (1, 20, 13, 31)):
        a, n, b, m = table
        theirs = scipy.stats.fisher_exact([[a, n - a], [b, m - b]]).pvalue
        assert fisher_exact((a, b), (n, m)) == close(theirs)


def test_permutation_f_agrees_with_the_f_distribution() -> None:
    """The statistic is scipy's; for normal data p is close to that of the F distribution."""
    rng = np.random.default_rng(8)
    groups = [list(rng.normal(shift, 1, 15)) for shift in (0, 0.2, 0.7)]
    ours, theirs = permutation_f(*groups, seed=2), scipy.stats.f_oneway(*groups)
    assert ours is not None
    assert ours.statistic == close(theirs.statistic)
    assert ours.p == pytest.approx(theirs.pvalue, abs=0.01)


def censored(seed: int, size: int, scale: float = 1.0, limit: float = 30) -> tuple[list[float], list[bool]]:
    times = np.ceil(np.random.default_rng(seed).exponential(20 * scale, size))
    stops = np.ceil(np.random.default_rng(seed + 1).uniform(5, 60, size))
    last = np.minimum(np.minimum(times, stops), limit)
    return list(last), list(times <= last)


def test_survival_is_lifelines() -> None:
    """Curve, interval, restricted mean and log-rank of three groups, with ties and censoring."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from lifelines import KaplanMeierFitter  # type: ignore[import-untyped]
        from lifelines.statistics import multivariate_logrank_test  # type: ignore[import-untyped]
        from lifelines.utils import restricted_mean_survival_time  # type: ignore[import-untyped]

    groups = [censored(seed, 40, scale) for seed, scale in ((1, 1.0), (11, 1.6), (21, 0.8))]
    for durations, events in groups:
        fitter = KaplanMeierFitter().fit(durations, events)
        curve = kaplan_meier(durations, events)
        bounds = fitter.confidence_interval_
        for time, share, interval in zip(curve.times, curve.survival, curve.intervals, strict=True):
            assert share == close(float(fitter.predict(time)))
            if interval is not None:
                assert interval == close(tuple(bounds.loc[time]), 1e-6)
        mean = restricted_mean(curve, 25)
        assert mean is not None
        assert mean.value == close(restricted_mean_survival_time(fitter, t=25), 1e-6)
    labels = [at for at, (durations, _) in enumerate(groups) for _ in durations]
    theirs = multivariate_logrank_test(
        [t for times, _ in groups for t in times], labels, [e for _, events in groups for e in events]
    )
    ours = logrank(*groups)
    assert ours is not None
    assert ours == close((theirs.test_statistic, 2, theirs.p_value), 1e-7)


def test_standard_error_of_the_restricted_mean_is_that_of_the_plain_mean_without_censoring() -> None:
    """With everyone followed to the end, the restricted mean is the mean of min(time, horizon), and so is its error."""
    times, _ = censored(5, 50, limit=1000)
    mean = restricted_mean(kaplan_meier(times, [True] * 50), 25)
    cut = np.minimum(times, 25)
    assert mean is not None
    assert mean == close((cut.mean(), cut.std(ddof=0) / math.sqrt(50)))


def test_cumulative_incidence_is_statsmodels() -> None:
    """Each way to end, its incidence and error where ends are tied and compete; they and the survivors sum to 1."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from statsmodels.duration.survfunc import CumIncidenceRight  # type: ignore[import-untyped]

    rng = np.random.default_rng(12)
    times = list(np.ceil(rng.exponential(12, 80)))
    codes = list(rng.integers(0, 3, 80))
    with np.errstate(all="ignore"):  # of its errors, which are not looked at here, the division warns now and then
        theirs = CumIncidenceRight(np.array(times), np.array(codes))
    ours = cumulative_incidence(times, [[None, "bliss", "stop"][code] for code in codes])
    shown = list(theirs.times)
    for at, cause in enumerate(("bliss", "stop")):
        places = [shown.index(time) for time in ours[cause].times]
        assert ours[cause].incidence == close(tuple(theirs.cinc[at][places]))
    left = kaplan_meier(times, [code > 0 for code in codes])
    last = ours["bliss"].times[-1]
    assert ours["bliss"].incidence[-1] + ours["stop"].incidence[-1] + left.at(last) == close(1.0)


def test_error_of_the_cumulative_incidence() -> None:
    """With one way to end it is Greenwood's; with two and nobody censored it is that of a share."""
    durations, events = censored(31, 40)
    curve = kaplan_meier(durations, events)
    alone = cumulative_incidence(durations, ["end" if event else None for event in events])["end"]
    for time, share, se in zip(alone.times, alone.incidence, alone.se, strict=True):
        assert share == close(1 - curve.at(time))
        assert se == close(curve.se[curve.times.index(time)])
    times, causes = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10], list("aabababbab")
    both = cumulative_incidence(times, causes)
    for share, se in list(zip(both["a"].incidence, both["a"].se, strict=True))[:-1]:
        assert se == close(math.sqrt(share * (1 - share) / 10))


def test_shares_of_two_groups_are_statsmodels() -> None:
    """Newcombe's interval of a difference and Fisher's p, also of groups so large that factorials take long."""
    from statsmodels.stats.proportion import confint_proportions_2indep  # type: ignore[import-untyped]

    for (k, n), (h, m) in itertools.product([(0, 6), (3, 10), (40, 40), (7, 200)], [(0, 9), (5, 9), (12, 12)]):
        found = compare_shares([True] * k + [False] * (n - k), [*[True] * h, *[False] * (m - h), None])
        assert found.interval == close(confint_proportions_2indep(h, m, k, n, method="newcomb"))
        assert found.p == close(scipy.stats.fisher_exact([[k, n - k], [h, m - h]]).pvalue, 1e-7)
        assert (found.events, found.missing, found.difference) == ((k, h), (0, 1), close(h / m - k / n))
    assert fisher_exact((5100, 4900), (20_000, 20_000)) == close(
        scipy.stats.fisher_exact([[5100, 14_900], [4900, 15_100]]).pvalue, 1e-6
    )
    assert compare_shares([None], [True])[3:] == ((None, wilson(1, 1)), None, None, None)


def test_tests_of_shares_keep_their_level() -> None:
    """Over all outcomes of 15 conversations an arm Fisher's test errs at most in 5 %, Newcombe's interval in 6 %."""
    n = 15
    for rate in (0.1, 0.3, 0.5):
        chances = scipy.stats.binom.pmf(range(n + 1), n, rate)
        errs = misses = 0.0
        for (k, one), (h, other) in itertools.product(enumerate(chances), repeat=2):
            found = compare_shares([True] * k + [False] * (n - k), [True] * h + [False] * (n - h))
            assert found.p is not None
            assert found.interval is not None
            errs += one * other * (found.p <= 0.05)
            misses += one * other * (not found.interval.low <= 0 <= found.interval.high)
        assert errs <= 0.05
        assert misses <= 0.06


def test_times_of_two_groups() -> None:
    """By hand: 1 of 4 has it at 2, one stops at 3, one is seen until 5; the others all have it, at 1, 2 and 5."""
    a = [Passage(2, True), Passage(3, False, "stop"), Passage(5, True), Passage(5, False), None]
    b = [Passage(1, True), Passage(2, True), Passage(5, True)]
    found = compare_times(a, b)
    assert (found.n, found.missing, found.events, found.otherwise) == ((4, 3), (1, 0), (2, 3), (1, 0))
    assert (found.horizon, found.medians) == (5, (5, 2))
    one, other = found.means
    assert one is not None
    assert other is not None
    assert (one.value, other.value) == (close(2 + 3 * 3 / 4), close(1 + 2 / 3 + 3 / 3))
    assert found.difference == close(other.value - one.value)
    assert found.interval is not None
    assert found.interval.low == close(other.value - one.value - 1.959963984540054 * math.hypot(one.se, other.se))
    # 1/4 at 2; at 5 half of the 2 that are left of 4.
    assert found.incidence == (close(1 / 4 + 2 / 4 / 2), close(1))
    assert found.test == logrank(([2, 3, 5, 5], [True, False, True, False]), ([1, 2, 5], [True] * 3))
    censored = compare_times([Passage(5, False)] * 3, [Passage(4, False, "stop")] * 2)
    assert (censored.test, censored.interval, censored.medians, censored.incidence) == (
        None,
        None,
        (None, None),
        (0, 0),
    )
    assert (censored.difference, censored.horizon) == (0, 4)
    nobody = compare_times([None], b)
    assert (nobody.n, nobody.horizon, nobody.difference, nobody.incidence) == ((0, 3), None, None, (None, None))
    # Where all have had it there is nothing more to see: the means go on to the limit of the others.
    early = compare_times([Passage(5, True)] * 4, [Passage(12, False)] * 4)
    assert [early.horizon, early.difference, *(mean and mean.value for mean in early.means)] == [12, 7, 5, 12]
    assert compare_times([Passage(5, True)] * 2, [Passage(3, True)]).horizon == 5


def test_many_tests_are_statsmodels() -> None:
    """The three adjustments in any order of p values, ties and ones that could not be done among them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from statsmodels.stats.multitest import multipletests  # type: ignore[import-untyped]

    p = [0.2, 0.01, 0.01, 0.9, 0.04, 0.0001, 1.0]
    for ours, name in ((benjamini_hochberg, "fdr_bh"), (benjamini_yekutieli, "fdr_by"), (holm, "holm")):
        reference = list(multipletests(p, method=name)[1])
        assert ours(p) == close(reference)
        assert ours([None, *p]) == [None, *ours(p)]
    assert benjamini_hochberg([None]) == [None]


def test_power_is_statsmodels() -> None:
    """The power of the t test and of two shares, from hardly any to nearly full."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from statsmodels.stats.power import NormalIndPower, TTestIndPower  # type: ignore[import-untyped]
        from statsmodels.stats.proportion import proportion_effectsize

    for d in (0.0, 0.1, 0.5, 1.2, 4.0):
        for n in (2, 3, 10, 64, 2000):
            theirs = TTestIndPower().power(d, n, 0.05)
            if math.isfinite(theirs):
                assert power_of_means(d, n) == pytest.approx(theirs, abs=1e-7), (d, n)
    for one, two in ((0.1, 0.3), (0.5, 0.7)):
        theirs = NormalIndPower().power(proportion_effectsize(two, one), 40, 0.01)
        assert power_of_rates((one, two), 40, 0.01) == close(theirs)


def test_published_sample_sizes() -> None:
    """The table of conversations per arm for 80 % power."""
    for d, expected in ((0.3, 176), (0.5, 64), (0.8, 26), (1.2, 12)):
        assert n_per_arm(partial(power_of_means, d)) == expected
    for rates, expected in (
        ((0, 0.1), 38),
        ((0.1, 0.3), 60),
        ((0.32, 0.57), 61),
        ((0.5, 0.7), 93),
        ((0.55, 0.66), 309),
    ):
        assert n_per_arm(partial(power_of_rates, rates)) == expected
    assert (logrank_events(0.5), logrank_events(0.67)) == (66, 196)
    assert power_of_hazards(0.5, 65) < 0.8 <= power_of_hazards(0.5, 66)
    assert (design_effect(0.1, 30), design_effect(0.3, 30)) == close((3.9, 9.7))
    assert detectable_effect(64) == pytest.approx(0.5, abs=0.002)
    assert n_per_arm(lambda _: 0.5) is None


# What is planted is found, and nothing else


def conversations(rng: np.random.Generator, n: int, shift: float = 0.0) -> NDArray[np.float64]:
    """Means of `n` conversations of 30 turns that correlate within each (intra-class correlation 0.3)."""
    level = rng.normal(shift, math.sqrt(0.3), (n, 1))
    return np.asarray((level + rng.normal(0, math.sqrt(0.7), (n, 30))).mean(axis=1))


def test_tests_keep_their_level() -> None:
    """Without any difference, one test in twenty finds one: t and permutation on conversation means.

    Of 600 experiments 30 are expected; up to 45 lie within three standard errors. A t test on turns finds hundreds.
    """
    rng = np.random.default_rng(2024)
    found = {"welch": 0, "permutation": 0}
    for _ in range(600):
        a, b = conversations(rng, 5), conversations(rng, 5)
        tests = {"welch": welch(a, b), "permutation": permutation_test(a, b, seed=1)}
        for name, tested in tests.items():
            found[name] += tested is not None and tested.p <= 0.05
    assert 12 <= found["permutation"] <= 45
    assert 12 <= found["welch"] <= 45


def test_drawn_permutations_keep_their_level() -> None:
    """Where not all arrangements are looked at, p is never 0 and at most as often small as it should be."""
    rng = np.random.default_rng(7)
    p = []
    for _ in range(300):
        tested = permutation_test(conversations(rng, 12), conversations(rng, 12), seed=3, draws=199)
        assert tested is not None
        assert not tested.exact
        p.append(tested.p)
    assert min(p) >= 1 / 200
    assert sum(x <= 0.05 for x in p) <= 27
    assert np.mean(p) == pytest.approx(0.5, abs=0.06)


def test_intervals_cover() -> None:
    """A 95 % interval holds the true difference about as often; a bootstrap of few conversations a bit less often."""
    rng = np.random.default_rng(99)
    held = {"bca": 0, "welch": 0, "g": 0}
    for _ in range(300):
        a, b = conversations(rng, 15), conversations(rng, 15, 0.5)
        bca, by_t, g = bootstrap(a, b, seed=1, statistic=difference, draws=499), welch(a, b), hedges_g(a, b)
        assert bca is not None
        assert by_t is not None
        assert g is not None
        assert g.interval is not None
        held["bca"] += bca.low <= 0.5 <= bca.high
        held["welch"] += by_t.interval.low <= 0.5 <= by_t.interval.high
        true_g = 0.5 / math.sqrt(0.3 + 0.7 / 30)
        held["g"] += g.interval.low <= true_g <= g.interval.high
    assert held["welch"] >= 273
    assert held["g"] >= 270
    assert held["bca"] >= 262


def test_a_planted_difference_is_found_as_often_as_planned() -> None:
    """In 400 experiments of the planned size the t test succeeds in 80 % (within three standard errors)."""
    n = n_per_arm(lambda n: power_of_means(0.8, n))
    assert n == 26
    rng = np.random.default_rng(5)
    found = 0
    for _ in range(400):
        tested = welch(rng.normal(0, 1, n), rng.normal(0.8, 1, n))
        found += tested is not None and tested.p <= 0.05
    assert found == pytest.approx(320, abs=24)


def test_planted_hazard_is_found() -> None:
    """Log-rank: level under the null, power at half the hazard with the planned number of events."""
    rng = np.random.default_rng(17)
    false = true = 0
    for _ in range(200):
        groups = [(list(rng.exponential(scale, 33)), [True] * 33) for scale in (1, 1, 2)]
        null, planted = logrank(groups[0], groups[1]), logrank(groups[0], groups[2])
        assert null is not None
        assert planted is not None
        false, true = false + (null.p <= 0.05), true + (planted.p <= 0.05)
    assert false <= 20
    assert true >= 135


def test_benjamini_hochberg_keeps_its_rate() -> None:
    """With 15 effects among 60 measures, at most about a twentieth of what is found is false."""
    rng = np.random.default_rng(3)
    rates = []
    for _ in range(100):
        z = np.concatenate([rng.normal(4, 1, 15), rng.normal(0, 1, 45)])
        adjusted = benjamini_hochberg([float(2 * scipy.stats.norm.sf(abs(x))) for x in z])
        found = [at for at, p in enumerate(adjusted) if p is not None and p <= 0.05]
        rates.append(sum(at >= 15 for at in found) / max(1, len(found)))
        assert len(found) >= 6
    assert np.mean(rates) <= 0.06


def test_icc_recovers_what_is_planted() -> None:
    """Clusters of unequal sizes with a share of 0.4 of the variance between them; none without any."""
    rng = np.random.default_rng(4)
    for share in (0.4, 0.0):
        values: list[float | None] = [None]
        names = ["0"]
        for cluster in range(300):
            level = rng.normal(0, math.sqrt(share))
            size = int(rng.integers(2, 12))
            values += [float(x) for x in level + rng.normal(0, math.sqrt(1 - share), size)]
            names += [str(cluster)] * size
        assert icc(values, names) == pytest.approx(share, abs=0.06)


def test_mixed_model_recovers_what_is_planted() -> None:
    """A slope that differs by condition, beside a covariate and slopes that differ by conversation."""
    rng = np.random.default_rng(6)
    y: list[float | None] = []
    arms: list[Any] = []
    turns: list[Any] = []
    names: list[Any] = []
    lengths: list[Any] = []
    for at in range(60):
        arm, level, own = "xy"[at % 2], rng.normal(0, 1), rng.normal(0, 0.02)
        for turn in range(20):
            length = float(rng.normal())
            slope = (0.1 if arm == "x" else 0.3) + own
            y.append(1 + level + slope * turn + 0.5 * length + float(rng.normal(0, 0.5)))
            for column, value in ((arms, arm), (turns, turn), (names, str(at)), (lengths, length)):
                column.append(value)
    found = mixed_model(y, arms, turns, names, covariates={"length": lengths}, random_slope=True)
    for name, truth in (("turn", 0.1), ("condition=y:turn", 0.2), ("length", 0.5)):
        effect = found.effects[name]
        assert effect.interval.low < truth < effect.interval.high
        assert effect.estimate == pytest.approx(truth, abs=0.03)
    assert found.icc == pytest.approx(0.8, abs=0.1)


# Surrogates


def overlap(a: set[int], b: set[int]) -> float | None:
    return len(a & b) / len(a | b) if a | b else None


def talk(seed: int, copied: int, n: int = 8) -> list[SurrogatePair]:
    """Conversations in which a message shares the words of the topic, and `copied` words of the partner."""
    rng = np.random.default_rng(seed)
    pairs = []
    for conversation in range(n):
        for turn in range(1, 7):
            partner = {int(x) for x in rng.choice(1000, 40, replace=False)} | set(range(2000, 2020))
            fresh = {int(x) for x in rng.choice(range(1000, 2000), 40 - copied, replace=False)}
            own = fresh | set(sorted(partner)[:copied]) | set(range(2000, 2020))
            pairs.append(SurrogatePair(f"c-{conversation}", turn, own, partner, 60))
    return pairs


def test_surrogates_tell_a_common_topic_from_adaptation() -> None:
    """Words of the topic alone come to about nothing; copied words stand out, across conversations and within one."""
    for within in (False, True):
        alone = surrogate_baseline(talk(1, 0), overlap, seed=1, within=within)
        copying = surrogate_baseline(talk(1, 20), overlap, seed=1, within=within)
        assert all(found.raw is not None and found.raw > 0.15 for found in alone)
        assert np.mean([found.difference or 0 for found in alone]) == pytest.approx(0, abs=0.01)
        assert all(found.difference is not None and found.difference > 0.1 for found in copying)
        for found in copying:
            assert found.raw is not None
            assert found.surrogate is not None
            assert found.share == close((found.raw - found.surrogate) / (1 - found.surrogate))


def test_surrogate_draws_do_not_depend_on_the_order() -> None:
    """The same seed gives the same numbers in any order of the pairs; another seed draws others."""
    pairs = talk(2, 10, n=30)
    forward = surrogate_baseline(pairs, overlap, seed=4)
    assert {found.partners for found in forward} == {20}
    assert surrogate_baseline(pairs[::-1], overlap, seed=4)[::-1] == forward
    assert surrogate_baseline(pairs, overlap, seed=5) != forward


def test_surrogates_need_others() -> None:
    """Four conversations, none of a similar length, or no similarity: the raw value alone, and nothing made up."""
    few = surrogate_baseline(talk(3, 5, n=4), overlap, seed=1)
    assert all(found.raw is not None and found[1:] == (None, None, None, 0) for found in few)
    pairs = talk(3, 5)
    long = pairs[0]._replace(length=1000)
    assert surrogate_baseline([long, *pairs[1:]], overlap, seed=1)[0].surrogate is None
    empty = pairs[0]._replace(own=set(), partner=set())
    assert surrogate_baseline([empty, *pairs[1:]], overlap, seed=1)[0] == (None, None, None, None, 0)


# What cannot be computed


def test_nothing_is_made_up() -> None:
    """Too little data, no spread or no values: None, and never 0."""
    empty = compare_groups([], [None, math.nan], seed=1)
    assert empty[2:] == (None,) * 6
    assert (empty.b.n, empty.b.missing, empty.b.mean) == (0, 2, None)
    single = compare_groups([1.0], [2.0], seed=1)
    assert (single.difference, single.interval, single.g, single.welch) == (1.0, None, None, None)
    assert single.permutation is not None
    assert single.permutation.p == 1.0
    flat = compare_groups([0.1] * 6, [0.1] * 6, seed=1)
    assert (flat.difference, flat.interval, flat.g, flat.welch) == (0.0, None, None, None)
    assert flat.permutation is not None
    assert flat.permutation.p == 1.0
    assert wilson(0, 0) is None
    assert clopper_pearson(0, 0) is None
    assert icc([1.0, 2.0], ["a", "b"]) is None
    assert icc([3.0] * 4, ["a", "a", "b", "b"]) is None
    assert clustered_se([1.0, 2.0], ["a", "a"]) is None
    assert kruskal_wallis([1.0, 1.0], [1.0]) is None
    assert permutation_f([1.0, 1.0], [1.0, 1.0], seed=1) is None
    assert logrank(([5.0], [False]), ([6.0], [False])) is None
    assert kaplan_meier([], []).median is None
    assert restricted_mean(kaplan_meier([5, 9], [True, False]), 30) is None
    assert sign_flip_test([], seed=1) is None
    assert compare_pairs([(None, 1.0)], seed=1) == (0, 1, None, None, None, None)
    assert cumulative_incidence([3.0], [None]) == {}


def test_nulls_are_left_out_and_counted() -> None:
    """A conversation without a value changes nothing but the count of those."""
    a, b = samples(9, 8, 9)
    with_null = compare_groups([*a, None], [math.nan, *b], seed=1)
    without = compare_groups(a, b, seed=1)
    assert with_null[2:] == without[2:]
    assert (with_null.a.missing, with_null.b.missing, without.a.missing) == (1, 1, 0)


def test_infinite_values_are_missing() -> None:
    """What is not finite is left out and counted, in every statistic, and values of any size have an F."""
    dirty, clean = [1.0, math.inf, 2.0, -math.inf, 4.0], [1.0, 2.0, 4.0]
    found = compare_groups(dirty, [3.0, 5.0, 4.0], seed=1)
    assert found._replace(a=found.a._replace(missing=0)) == compare_groups(clean, [3.0, 5.0, 4.0], seed=1)
    assert found.a.missing == 2
    assert icc([*dirty, 9.0], "xxxyyy") == icc([1.0, 2.0, 4.0, 9.0], "xxyy")
    plain = permutation_f(clean, [3.0, 5.0, 4.0], seed=1)
    assert plain is not None
    for unit in (1e-300, 1e300):
        tiny = permutation_f([unit * x for x in clean], [unit * x for x in (3.0, 5.0, 4.0)], seed=1)
        assert tiny is not None
        assert (tiny.statistic, tiny.p) == (close(plain.statistic), plain.p)
    assert chi2_sf(math.inf, 3) == 0


def test_wrong_numbers_are_refused() -> None:
    """More successes than trials, and times that are none."""
    with pytest.raises(ValueError):
        wilson(4, 3)
    with pytest.raises(ValueError):
        kaplan_meier([-1.0], [True])


def test_paired_values() -> None:
    """What belongs together is compared together: a small steady change among very different pairs is found."""
    rng = np.random.default_rng(1)
    level = rng.normal(0, 10, 12)
    pairs = [(float(x), float(x + 0.5 + rng.normal(0, 0.2))) for x in level]
    found = compare_pairs(pairs, seed=1)
    assert found.permutation is not None
    assert found.permutation.exact
    assert found.permutation.p == 2 / 2**12
    assert found.interval is not None
    assert 0.3 < found.interval.low < 0.5 < found.interval.high < 0.7
    apart = permutation_test([a for a, _ in pairs], [b for _, b in pairs], seed=1)
    assert apart is not None
    assert apart.p > 0.5


# Properties

_numbers = st.lists(st.floats(-1e6, 1e6).map(lambda x: round(x, 3)), min_size=2, max_size=7)


@settings(max_examples=60, deadline=None)
@examples(_numbers, _numbers)
def test_swapping_the_groups_turns_the_sign(a: list[float], b: list[float]) -> None:
    """Every difference changes its sign, every p stays, and no order of the values matters."""
    one, two = compare_groups(a, b, seed=1, draws=50), compare_groups(b[::-1], a[::-1], seed=1, draws=50)
    assert one.difference is not None
    assert two.difference is not None
    assert one.difference == pytest.approx(-two.difference, abs=1e-6)
    for first, second in ((one.g, two.g), (one.delta, two.delta)):
        assert (first is None) == (second is None)
        if first is not None and second is not None:
            assert first.value == pytest.approx(-second.value, rel=1e-6, abs=1e-9)
            assert (first.interval is None) == (second.interval is None)
            if first.interval is not None and second.interval is not None:
                assert first.interval.low == pytest.approx(-second.interval.high, rel=1e-6, abs=1e-9)
                assert first.interval.low <= first.value <= first.interval.high
    assert one.permutation is not None
    assert two.permutation is not None
    assert one.permutation.p == close(two.permutation.p)
    assert one.delta is not None
    assert -1 <= one.delta.value <= 1


@settings(max_examples=100, deadline=None)
@examples(st.lists(st.tuples(st.integers(0, 12), st.booleans()), min_size=1, max_size=30))
def test_a_survival_curve_only_falls(data: list[tuple[int, bool]]) -> None:
    """It stays within 0 and 1 and within its interval, counts everyone once, and without censoring is a plain share."""
    durations, events = [t for t, _ in data], [e for _, e in data]
    curve = kaplan_meier(durations, events)
    assert list(curve.survival) == sorted(curve.survival, reverse=True)
    assert all(0 <= s <= 1 for s in curve.survival)
    assert sum(curve.events) + sum(curve.censored) == len(data)
    for share, interval in zip(curve.survival, curve.intervals, strict=True):
        assert interval is None or interval.low <= share <= interval.high
    everyone = kaplan_meier(durations, [True] * len(data))
    for time in range(14):
        assert everyone.at(time) == close(sum(t > time for t in durations) / len(data))


@settings(max_examples=100, deadline=None)
@examples(st.lists(st.one_of(st.none(), st.floats(0, 1)), max_size=20))
def test_adjusted_p_values_keep_order_and_place(p: list[float | None]) -> None:
    """Adjusting never lowers a p value, keeps their order, and Yekutieli's are never below Hochberg's."""
    for adjust in (benjamini_hochberg, benjamini_yekutieli, holm):
        adjusted = adjust(p)
        pairs = [(x, y) for x, y in zip(p, adjusted, strict=True) if x is not None]
        assert all(y is not None and x <= y + 1e-15 and y <= 1 for x, y in pairs)
        in_order = [y for _, y in sorted(pairs, key=lambda pair: pair[0])]
        assert all(first is not None and second is not None and first <= second + 1e-15
                   for first, second in itertools.pairwise(in_order))  # fmt: skip
    for first, second in zip(benjamini_hochberg(p), benjamini_yekutieli(p), strict=True):
        assert first is None or (second is not None and first <= second + 1e-15)


@settings(max_examples=60, deadline=None)
@examples(_numbers, st.integers(0, 1000))
def test_a_seed_gives_the_same_draws(values: list[float], seed: int) -> None:
    """The same seed gives the same interval, which lies within what was seen."""
    one = bootstrap(values, seed=seed, draws=99)
    assert one == bootstrap(values, seed=seed, draws=99)
    if one is not None:
        assert min(values) - 1e-6 <= one.low <= one.high <= max(values) + 1e-6


def test_summaries() -> None:
    """Mean, sd, median, extremes and the interval of Student's t."""
    values = [1.0, 2.0, 4.0, 9.0]
    found = summarise([*values, None])
    theirs = scipy.stats.t.interval(0.95, 3, np.mean(values), scipy.stats.sem(values))
    assert found[:7] == close((4, 1, 4.0, float(np.std(values, ddof=1)), 3.0, 1.0, 9.0))
    assert found.interval == close(tuple(theirs))
