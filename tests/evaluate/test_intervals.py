"""Intervals: the formulas against SciPy, known values, enumeration and simulation."""

import math
from collections.abc import Callable
from itertools import combinations, product
from random import Random
from statistics import fmean

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from agent_kit.evaluate.intervals import (
    compare_means,
    compare_rates,
    estimate_mean,
    estimate_rate,
    minimum_detectable_effect,
    pass_at_k,
    pass_hat_k,
    pass_rates,
    wilson_interval,
)


def groups(*values: object) -> dict:
    """Each value, or each list of repeats, is a case."""
    return {str(n): value if isinstance(value, list) else [value] for n, value in enumerate(values)}


@given(count=st.integers(1, 200), data=st.data())
def test_wilson_is_that_of_scipy(count: int, data: st.DataObject) -> None:
    passed = data.draw(st.integers(0, count))
    known = stats.binomtest(passed, count).proportion_ci(method="wilson")
    assert wilson_interval(passed / count, count) == pytest.approx(
        (known.low, known.high), abs=1e-12
    )


@pytest.mark.parametrize("trials", [(1.2, 5), (0.5, 0), (-0.1, 5)])
def test_wilson_refuses_what_is_not_a_rate(trials: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="is not a rate"):
        wilson_interval(*trials)


def test_a_wrong_confidence_is_refused() -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        wilson_interval(0.5, 10, confidence=95)


@given(passed=st.lists(st.booleans(), min_size=1, max_size=40), repeats=st.integers(1, 6))
def test_repeats_that_agree_add_nothing(passed: list[bool], repeats: int) -> None:
    found = estimate_rate(groups(*[[float(each)] * repeats for each in passed]))
    low, high = wilson_interval(fmean(passed), len(passed))
    assert (found.low, found.high) == pytest.approx((low, high), abs=1e-9)
    assert (found.count, found.cases) == (len(passed) * repeats, len(passed))


@given(st.lists(st.lists(st.booleans(), min_size=3, max_size=3), min_size=2, max_size=20))
def test_repeats_are_worth_between_one_and_all_trials(repeated: list[list[bool]]) -> None:
    found = estimate_rate(groups(*repeated))
    assert 0 <= found.low <= found.value <= found.high <= 1
    widest = wilson_interval(found.value, found.cases)
    narrowest = wilson_interval(found.value, found.count)
    assert widest[0] - 1e-9 <= found.low <= narrowest[0] + 1e-9
    assert narrowest[1] - 1e-9 <= found.high <= widest[1] + 1e-9


@pytest.mark.parametrize(
    ("cases", "repeats", "shape"), [(16, 1, (9, 1)), (12, 5, (2, 2)), (20, 3, (0.3, 0.3))]
)
def test_the_interval_of_a_rate_covers_the_true_one_as_often_as_it_claims(
    cases: int, repeats: int, shape: tuple[float, float]
) -> None:
    random, hits = Random(7), 0
    for _ in range(300):
        chances = [random.betavariate(*shape) for _ in range(cases)]
        drawn = groups(
            *[[float(random.random() < chance) for _ in range(repeats)] for chance in chances]
        )
        found = estimate_rate(drawn)
        hits += found.low <= shape[0] / sum(shape) <= found.high
    assert 0.90 <= hits / 300 <= 0.99


@given(values=st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=30))
def test_the_interval_of_a_mean_is_that_of_scipy(values: list[float]) -> None:
    found = estimate_mean(groups(*values))
    if len(set(values)) == 1:
        assert (found.low, found.high) == pytest.approx((values[0], values[0]))
        return
    known = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((known.low, known.high), rel=1e-6, abs=1e-6)


def test_each_case_counts_once_in_a_mean() -> None:
    assert estimate_mean(groups([1, 1, 1, 1], [5])).value == 3
    alone = estimate_mean(groups([1, 2]))
    assert math.isnan(alone.low)
    assert str(alone) == "1.5 (one case)"


def test_no_values_are_an_error() -> None:
    for estimate in (estimate_rate, estimate_mean):
        with pytest.raises(ValueError, match="no values"):
            estimate({"a": []})
    with pytest.raises(ValueError, match="no values"):
        pass_rates({}, 1)
    with pytest.raises(ValueError, match="no case in common"):
        compare_rates({"a": [1]}, {"b": [1]})
    with pytest.raises(ValueError, match="no cases"):
        minimum_detectable_effect(1, 0)


@pytest.mark.parametrize(("attempts", "k"), [(1, 1), (4, 2), (5, 3), (5, 5)])
def test_pass_rates_are_those_of_all_ways_to_choose(attempts: int, k: int) -> None:
    for passed in range(attempts + 1):
        results = [number < passed for number in range(attempts)]
        chosen = list(combinations(results, k))
        assert pass_at_k(passed, attempts, k) == pytest.approx(fmean(map(any, chosen)))
        assert pass_hat_k(passed, attempts, k) == pytest.approx(fmean(map(all, chosen)))


def test_pass_rates_average_over_cases() -> None:
    assert pass_rates(groups([1, 1], [1, 0], [0, 0]), 2) == pytest.approx((2 / 3, 1 / 3))
    with pytest.raises(ValueError, match="3 attempts cannot be estimated"):
        pass_rates(groups([1, 1]), 3)


@given(up=st.integers(0, 20), down=st.integers(0, 20), same=st.integers(1, 20))
@settings(max_examples=40)
def test_rates_are_compared_by_the_exact_test_of_mcnemar(up: int, down: int, same: int) -> None:
    before = groups(*[0] * up, *[1] * down, *[1] * same)
    after = groups(*[1] * up, *[0] * down, *[1] * same)
    found = compare_rates(before, after)
    expected = stats.binomtest(up, up + down).pvalue if up + down else 1
    assert found.p_value == pytest.approx(expected)
    assert (found.up, found.down, found.cases) == (up, down, up + down + same)
    assert found.difference == pytest.approx((up - down) / found.cases)
    assert -1 <= found.low < found.high <= 1


def test_the_interval_of_bonett_and_price() -> None:
    """A table of 21 pairs, 1 up and 7 down: their formula with 2/23 and 8/23."""
    before, after = groups(*[0], *[1] * 7, *[1] * 13), groups(*[1], *[0] * 7, *[1] * 13)
    half = 1.959964 * math.sqrt((10 / 23 - (6 / 23) ** 2) / 23)
    found = compare_rates(before, after)
    assert (found.low, found.high) == pytest.approx((-6 / 23 - half, -6 / 23 + half), abs=1e-6)


@given(
    differences=st.lists(
        st.floats(-10, 10).filter(lambda each: abs(each) > 1e-3), min_size=1, max_size=7
    )
)
@settings(max_examples=25, deadline=None)
def test_numbers_are_compared_by_flipping_signs(differences: list[float]) -> None:
    found = compare_means(groups(*[0] * len(differences)), groups(*differences))
    observed = abs(sum(differences)) - 1e-9
    flipped = [
        sum(s * d for s, d in zip(signs, differences, strict=True))
        for signs in product((1, -1), repeat=len(differences))
    ]
    assert found.p_value == pytest.approx(fmean(abs(each) >= observed for each in flipped))


def test_many_differences_are_compared_the_same_way_each_time() -> None:
    random = Random(3)
    before = groups(*[random.gauss(1, 0.2) for _ in range(40)])
    after = {case: [values[0] + random.gauss(0.1, 0.1)] for case, values in before.items()}
    found = compare_means(before, after)
    assert found == compare_means(before, after)
    assert found.is_significant(0.001)
    known = stats.ttest_rel([v[0] for v in after.values()], [v[0] for v in before.values()])
    assert (found.low, found.high) == pytest.approx(known.confidence_interval(0.95))


def test_what_is_not_in_both_runs_is_left_out() -> None:
    found = compare_rates({"a": [1], "b": [0], "c": []}, {"b": [1], "c": [1], "d": [0]})
    assert (found.cases, found.up) == (1, 1)


def test_a_comparison_states_that_the_cases_are_too_few() -> None:
    alone = compare_means({"a": [1.0]}, {"a": [2.0]})
    assert math.isnan(alone.low)
    assert str(alone).startswith("+1 (one case); 1 up, 0 down of 1, p = 1: too few cases")
    unchanged = compare_rates(groups(*[1] * 4), groups(*[1] * 4))
    assert unchanged.low < -0.3 < 0.3 < unchanged.high
    more = compare_rates(groups(*[1] * 8), groups(*[1] * 8))
    assert "too few cases to detect a change below 0.44" in str(more)
    clear = compare_rates(groups(*[0] * 20), groups(*[1] * 20))
    assert clear.is_significant()
    assert "too few" not in str(clear)


@pytest.mark.parametrize("compare", [compare_rates, compare_means])
def test_six_cases_can_be_significant_and_five_cannot(compare: Callable) -> None:
    five = compare(groups(*[0] * 5), groups(*[1] * 5))
    assert not five.is_significant()
    assert str(five).endswith("too few cases to detect any change")
    assert compare(groups(*[0] * 6), groups(*[1] * 6)).is_significant()


def test_numbers_that_are_all_the_same_have_not_changed() -> None:
    same = compare_means(groups(*[3.0] * 20), groups(*[3.0] * 20))
    assert str(same) == "+0 (+0 to +0); 0 up, 0 down of 20, p = 1"


def test_a_detectable_effect_is_detected_four_times_in_five() -> None:
    assert minimum_detectable_effect(0.5, 100) == pytest.approx(0.140079, abs=1e-6)
    random, found = Random(5), 0
    effect = minimum_detectable_effect(1.0, 60)
    for _ in range(200):
        drawn = [random.gauss(effect, 1.0) for _ in range(60)]
        found += stats.ttest_1samp(drawn, 0).pvalue < 0.05
    assert 0.72 <= found / 200 <= 0.88
