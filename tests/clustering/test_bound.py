import math
import random

import pydantic
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cedm_ray.clustering.bound import BoundConfig, UpperBoundSearch

# The published CIFAR10 assignments (DINO ViT-B/16, gamma 0.6): C and the clusters in use.
CIFAR10 = {
    10: 10, 34: 34, 50: 50, 100: 100, 125: 125, 150: 148, 200: 199, 250: 249, 300: 295, 350: 343, 400: 391, 500: 490,
    600: 558, 800: 741, 1000: 918, 5000: 3747, 10000: 5911,
}  # fmt: skip


def run(search, curve, slots=1):
    """Answer until there is a result; what was asked, in order."""
    asked = []
    while search.result() is None:
        questions = search.ask(slots)
        assert questions
        asked += questions
        for c in questions:
            search.tell(c, curve(c))
    return asked


def test_cifar10_gives_500_from_the_papers_doublings_and_a_grid_of_100():
    search = UpperBoundSearch(BoundConfig(grid_step=100), 50_000)
    # 700 was never published; it would have to use more than 672 clusters, of which 600 has only 558.
    asked = run(search, lambda c: {**CIFAR10, 700: 650}[c])
    assert asked == [50, 100, 200, 400, 800, 700, 600, 500]
    result = search.result()
    assert result.c_max == 500
    assert not result.censored
    assert result.reason == "C_max = 500: 490 of 500 used; 600 uses 558 (0.930 <= 0.96)"
    assert [point.num_clusters for point in result.points] == asked
    assert [point.passed for point in result.points] == [True, True, True, True, False, False, False, True]


@pytest.mark.parametrize(
    ("alpha", "c_max"),
    [(0.9, 1000), (0.92, 800), (0.93, 500), (0.95, 500), (0.96, 500), (0.97, 500), (0.98, 300), (0.99, 250)],
)
def test_highest_passing_c_of_the_published_table(alpha, c_max):
    search = UpperBoundSearch(BoundConfig(alpha=alpha, c_start=10, grid_step=10_000, patience=20), 50_000)
    for c, used in CIFAR10.items():
        search.tell(c, used)
    while questions := search.ask(8):
        for c in questions:
            search.tell(c, 1)
    assert search.result().c_max == c_max


@pytest.mark.parametrize(("used", "passed"), [(575, False), (576, False), (577, True)])
def test_an_exact_tie_fails(used, passed):
    search = UpperBoundSearch(BoundConfig(alpha=0.96, c_start=600, c_limit=600), 1000)
    search.tell(600, used)
    assert (search.result() is not None) == passed
    run(search, lambda c: c)
    assert search.result().points[0].passed == passed


def test_nothing_fails_is_censored():
    search = UpperBoundSearch(BoundConfig(), 1000)
    assert run(search, lambda c: c) == [50, 100, 200, 400, 800, 1000]
    result = search.result()
    assert (result.c_max, result.censored) == (1000, True)
    assert result.reason == "C_max is at least 1000: 1000 of 1000 used, and no larger C may be asked"


def test_the_limit_caps_the_climb():
    search = UpperBoundSearch(BoundConfig(c_limit=300), 50_000)
    assert run(search, lambda c: c) == [50, 100, 200, 300]
    assert search.result().censored


def test_a_start_above_the_number_of_images_is_clipped():
    search = UpperBoundSearch(BoundConfig(), 20)
    assert search.ask() == [20]
    search.tell(20, 20)
    assert search.result().c_max == 20


def test_a_failing_start_is_halved_until_something_passes_and_then_refined():
    search = UpperBoundSearch(BoundConfig(), 1000)
    asked = run(search, lambda c: c if c <= 15 else 1)
    assert asked == [50, 25, 12, 24, 22, 20, 18, 16, 14]
    assert search.result().c_max == 14
    assert search.result().reason == "C_max = 14: 14 of 14 used; 16 uses 1 (0.062 <= 0.96)"


def test_nothing_passes_is_said_and_one_cluster_is_never_asked():
    search = UpperBoundSearch(BoundConfig(), 1000)
    assert run(search, lambda c: 1) == [50, 25, 12, 6, 3, 2]
    result = search.result()
    assert (result.c_max, result.censored) == (None, False)
    assert result.reason == "No C passed: even C = 2 uses 1 (0.500 <= 0.96)"


def test_patience_climbs_past_an_unlucky_failure():
    def curve(c):
        return c - 5 if c == 100 else c if c < 700 else 1

    assert run(UpperBoundSearch(BoundConfig(), 50_000), curve)[1] == 100
    search = UpperBoundSearch(BoundConfig(patience=2, grid_step=100), 50_000)
    assert run(search, curve) == [50, 100, 200, 400, 800, 1600, 700, 600]
    assert search.result().c_max == 600


def test_the_default_grid_has_at_most_seven_points():
    for high in range(3, 400):
        search = UpperBoundSearch(BoundConfig(c_start=2, c_limit=high), 1000)
        search.tell(2, 2)
        for c in (4, 8, 16, 32, 64, 128, 256, high):
            if c <= high:
                search.tell(c, 1)
        grid = search.ask(100)
        assert len(grid) <= 7
        assert all(2 < c < min(4, high) for c in grid)


def test_slots_ask_ahead_and_what_turns_out_pointless_is_named():
    search = UpperBoundSearch(BoundConfig(), 50_000)
    assert search.ask(3) == [50, 100, 200]
    assert search.ask(2) == [400, 800]
    assert search.unneeded() == []
    search.tell(200, 200)
    assert search.unneeded() == [50, 100]
    search.tell(400, 1)
    assert search.unneeded() == [50, 100, 800]
    assert search.result() is None
    assert search.ask(2) == [375, 350]
    search.tell(350, 350)
    assert search.unneeded() == [50, 100, 800]
    search.tell(375, 374)
    assert search.result().c_max == 375


def test_a_late_answer_that_passes_reopens_the_search():
    search = UpperBoundSearch(BoundConfig(), 1600)
    search.ask(3)
    search.tell(50, 50)
    search.tell(100, 1)
    search.tell(200, 200)
    assert search.ask() == [400]


def test_repeats_are_asked_that_often_and_their_median_counts():
    search = UpperBoundSearch(BoundConfig(repeats=3, c_start=100, c_limit=100), 1000)
    assert search.ask(2) == [100, 100]
    assert search.ask(2) == [100]
    assert search.ask(2) == []
    for used in (100, 90, 97):
        assert search.result() is None
        search.tell(100, used)
    (point,) = search.result().points
    assert (point.num_used, point.passed, point.spread) == (97, True, 0.1)
    assert point.told == (100, 90, 97)
    assert search.result().reason.startswith("C_max is at least 100: 97 of 100 used (median of 3 fits, 0.900 to 1.000)")


def test_records_told_before_asking_count_as_asked():
    search = UpperBoundSearch(BoundConfig(repeats=2), 1000)
    search.tell(50, 50)
    assert search.ask(2) == [50, 100]
    search.tell(50, 50)
    assert search.ask(2) == [100, 200]


def test_arguments_that_break_a_rule_are_refused():
    with pytest.raises(ValueError, match="num_images must be at least 2, got 1"):
        UpperBoundSearch(BoundConfig(), 1)
    search = UpperBoundSearch(BoundConfig(), 100)
    with pytest.raises(ValueError, match="slots must be at least 1, got 0"):
        search.ask(0)
    with pytest.raises(ValueError, match=r"num_clusters must lie in \[2, N\] = \[2, 100\], got 101"):
        search.tell(101, 5)
    with pytest.raises(ValueError, match=r"num_used must lie in \[1, num_clusters\] = \[1, 50\], got 51"):
        search.tell(50, 51)
    for wrong in ({"alpha": 1.0}, {"alpha": 0}, {"c_start": 1}, {"patience": 0}, {"repeats": 0}, {"grid_step": 0}):
        with pytest.raises(pydantic.ValidationError):
            BoundConfig(**wrong)


@st.composite
def cases(draw):
    config = BoundConfig(
        alpha=draw(st.sampled_from([0.5, 0.9, 0.96, 0.99])),
        c_start=draw(st.integers(2, 80)),
        grid_step=draw(st.one_of(st.none(), st.integers(1, 200))),
        patience=draw(st.integers(1, 3)),
        c_limit=draw(st.one_of(st.none(), st.integers(2, 3000))),
    )
    num_images = draw(st.integers(2, 3000))
    fall = draw(st.floats(0, 3))
    noise = draw(st.floats(0, 0.3))
    seed = draw(st.integers(0, 1000))

    def curve(c):
        r = math.exp(-fall * c / 500) * (1 - noise * random.Random(seed * 10_000 + c).random())
        return max(1, round(r * c))

    return config, num_images, curve


@given(cases())
@settings(max_examples=200, deadline=None)
def test_it_ends_soon_never_asks_twice_and_finds_the_highest_asked_c_that_passes(case):
    config, num_images, curve = case
    search = UpperBoundSearch(config, num_images)
    asked = run(search, curve)
    result = search.result()
    limit = min(num_images, config.c_limit or num_images)
    start = min(config.c_start, limit)
    assert len(set(asked)) == len(asked)
    assert all(2 <= c <= limit for c in asked)
    passing = [c for c in asked if curve(c) / c > config.alpha]
    assert result.c_max == max(passing, default=None)
    assert result.censored == (result.c_max == limit)
    climb = math.ceil(math.log2(limit / start)) + config.patience
    descent = math.ceil(math.log2(start)) if not any(c >= start for c in passing) else 0
    grid = 7 if config.grid_step is None else limit // config.grid_step
    assert len(asked) <= climb + descent + grid
    assert search.ask(5) == []


@given(cases(), st.integers(1, 6), st.randoms(use_true_random=False))
@settings(max_examples=100, deadline=None)
def test_many_slots_and_any_order_of_answers_end_in_a_c_max_that_is_the_highest_answered(case, slots, rng):
    config, num_images, curve = case
    search = UpperBoundSearch(config, num_images)
    pending, told = [], []
    while search.result() is None:
        if free := slots - len(pending):
            pending += search.ask(free)
        cancelled = {c for c in search.unneeded() if rng.random() < 0.5}
        pending = [c for c in pending if c not in cancelled]
        if pending:
            c = pending.pop(rng.randrange(len(pending)))
            search.tell(c, curve(c))
            told.append(c)
    assert len(set(told)) == len(told)
    assert search.result().c_max == max((c for c in told if curve(c) / c > config.alpha), default=None)


@given(cases(), st.randoms(use_true_random=False))
@settings(max_examples=50, deadline=None)
def test_a_resumed_search_goes_on_where_the_first_one_was(case, rng):
    config, num_images, curve = case
    first = UpperBoundSearch(config, num_images)
    asked = run(first, curve)
    kept = asked[: rng.randrange(len(asked) + 1)]
    resumed = UpperBoundSearch(config, num_images)
    for c in rng.sample(kept, len(kept)):
        resumed.tell(c, curve(c))
    assert run(resumed, curve) == asked[len(kept) :]
    assert resumed.result().c_max == first.result().c_max
