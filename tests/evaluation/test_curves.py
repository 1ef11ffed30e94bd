"""The factor of Fig. 2 from reports worked by hand."""

import pytest

from cedm_ray.evaluation.curves import efficiency
from cedm_ray.search.results import UNCONDITIONAL, TrialReport
from cedm_ray.search.study import Study


def write(study, trial, curve, *, collapsed=False):
    for rung, (images, distance) in enumerate(curve):
        study.write_report(
            TrialReport(
                trial=trial,
                rung=rung,
                images_seen=images,
                distance=distance,
                num_samples=10,
                loss=0.1,
                train_s=1,
                evaluate_s=1,
                skipped_steps=0,
                collapsed=collapsed,
            )
        )


def test_the_crossing_is_interpolated(tmp_path):
    study = Study(tmp_path)
    write(study, UNCONDITIONAL, [(100, 9.0), (200, 4.0)])
    write(study, "c00010", [(50, 8.0), (100, 2.0), (200, None)])
    found = efficiency(study, "c00010")
    # From 8 to 2 between 50 and 100 images: 4 is reached two thirds of the way.
    assert found["images"] == pytest.approx(50 + 50 * 4 / 6)
    assert found["factor"] == pytest.approx(200 / (50 + 50 * 4 / 6))
    assert found["snapshot_factor"] == 2


def test_there_is_none_without_two_curves(tmp_path):
    study = Study(tmp_path)
    write(study, "c00010", [(50, 8.0)])
    assert efficiency(study, "c00010") is None
    write(study, UNCONDITIONAL, [(50, 8.0)], collapsed=True)
    assert efficiency(study, "c00010") is None
    assert efficiency(study, UNCONDITIONAL) is None
