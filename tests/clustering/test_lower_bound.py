import pydantic
import pytest

from cedm_ray.clustering.lower_bound import LowerBoundConfig, lower_bound

# Table 4 of the paper, CIFAR10 with DINO features, as printed.
TABLE_4 = {100: [33], 400: [38], 500: [34], 800: [40], 1000: [34], 2000: [48], 5000: [28]}


def test_the_papers_table_gives_its_mean_and_sample_deviation():
    result = lower_bound(TABLE_4)
    assert result.c_min == 36
    assert result.deviation == pytest.approx(6.37, abs=0.005)
    assert result.reason == (
        "Lower end: gamma = 1 keeps 36.4 +- 6.4 clusters (7 fits at C = 100, 400, 500, 800, 1000, 2000, 5000)"
    )


def test_seeds_count_like_sizes_and_keep_their_order():
    result = lower_bound({200: [5, 9], 100: [4]})
    assert result.num_used == {100: (4,), 200: (5, 9)}
    assert result.c_min == 6
    assert result.deviation == pytest.approx(7**0.5)


def test_one_fit_has_no_spread_and_none_has_no_result():
    assert lower_bound({1000: [34]}).deviation is None
    assert lower_bound({1000: [34]}).reason == "Lower end: gamma = 1 keeps 34.0 clusters (one fit at C = 1000)"
    assert lower_bound({}) is None


@pytest.mark.parametrize("wrong", [{"num_clusters": (1,)}, {"num_clusters": (5, 5)}, {"repeats": 0}])
def test_configurations_that_break_a_rule_are_refused(wrong):
    with pytest.raises(pydantic.ValidationError):
        LowerBoundConfig(**wrong)
