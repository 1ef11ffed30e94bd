"""Measurements compare with their like only, and survive JSON."""

import json
import statistics
from dataclasses import replace

import pytest

from cedm_ray.metrics.measurement import Measurement, comparable, difference

SEEDS = (range(100), range(100, 200), range(200, 300))
ONE = Measurement(
    metric="FID", detector="inception", num_samples=100, reference="abc", values=(2.0, 2.2, 2.1), seeds=SEEDS
)


def test_mean_and_deviation_are_over_the_sets():
    assert ONE.mean == pytest.approx(2.1)
    assert ONE.std == pytest.approx(0.1)
    assert replace(ONE, values=(2.0,), seeds=None).std is None


@pytest.mark.parametrize("measurement", [ONE, replace(ONE, values=(1.5,), seeds=None)])
def test_json_brings_back_the_same(measurement):
    plain = json.loads(json.dumps(measurement.to_json(), allow_nan=False))
    assert Measurement.from_json(plain) == measurement
    assert plain["mean"] == pytest.approx(measurement.mean)


def test_like_numbers_compare_whatever_their_sets():
    comparable(ONE, replace(ONE, values=(1.0,), seeds=None))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"metric": "KID"}, r"the metric \(FID and KID\)"),
        ({"detector": "dinov2"}, r"the detector \(inception and dinov2\)"),
        ({"num_samples": 50, "seeds": None}, r"the number of images \(100 and 50\)"),
        ({"reference": "xyz"}, r"the reference set \(abc and xyz\)"),
        ({"detector": "pixels", "reference": "xyz"}, r"the detector .* the reference set"),
    ],
)
def test_unlike_numbers_do_not_compare_and_the_message_says_why(change, message):
    for call in (comparable, difference):
        with pytest.raises(ValueError, match=message):
            call(ONE, replace(ONE, **change))


def test_the_number_of_images_may_differ_where_a_metric_does_not_depend_on_it():
    other = replace(ONE, num_samples=50, seeds=(range(50), range(50, 100), range(100, 150)))
    found = difference(ONE, other, any_count=True)
    assert (found.value, found.paired) == (0, False)
    with pytest.raises(ValueError, match=r"differ in the reference set \(abc and xyz\)$"):
        comparable(ONE, replace(other, reference="xyz"), any_count=True)


def test_the_same_seeds_are_compared_set_by_set():
    found = difference(ONE, replace(ONE, values=(1.9, 2.1, 1.9)))
    assert found.paired
    assert found.value == pytest.approx(2.1 - 5.9 / 3)
    assert found.standard_error == pytest.approx(statistics.stdev([0.1, 0.1, 0.2]) / 3**0.5)


def test_other_seeds_add_their_errors():
    other = replace(ONE, values=(1.8, 2.1), seeds=(range(300, 400), range(400, 500)))
    found = difference(ONE, other)
    assert not found.paired
    expected = (statistics.variance(ONE.values) / 3 + statistics.variance(other.values) / 2) ** 0.5
    assert found.standard_error == pytest.approx(expected)
    assert difference(replace(ONE, seeds=None), replace(ONE, seeds=None)).paired is False
    assert difference(ONE, replace(ONE, values=(1.8,), seeds=SEEDS[:1])).standard_error is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"metric": ""}, "must have a name"),
        ({"num_samples": 0}, "num_samples must be at least 1, got 0"),
        ({"values": ()}, "at least one finite number"),
        ({"values": (1.0, float("nan"), 2.0)}, "at least one finite number"),
        ({"seeds": SEEDS[:2]}, "each set must have its seeds, got 2 for 3"),
        ({"seeds": (range(100), range(100, 200), range(150, 250))}, "disjoint"),
        ({"seeds": (range(99), range(100, 200), range(200, 300))}, "num_samples = 100 seeds"),
        ({"seeds": (range(0, 200, 2), range(200, 300), range(300, 400))}, "num_samples = 100 seeds"),
    ],
)
def test_measurements_of_nothing_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        replace(ONE, **change)


@pytest.mark.parametrize(
    "change", [{"extra": 1}, {"values": 3.0}, {"seeds": [[0]]}, {"values": ["many"]}, {"num_samples": None}]
)
def test_json_of_something_else_is_refused(change):
    with pytest.raises(ValueError):
        Measurement.from_json(ONE.to_json() | change)
    with pytest.raises(ValueError, match="must have the keys"):
        Measurement.from_json({"metric": "FID"})
