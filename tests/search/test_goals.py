"""Tasks and their names, which name records and folders."""

import pytest

from cedm_ray.search.goals import FitTask, Goal, TrainTask


@pytest.mark.parametrize(
    ("task", "name"),
    [
        (FitTask(num_clusters=100, repeat=0), "c00100-r0"),
        (FitTask(num_clusters=20, repeat=1), "c00020-r1"),
        (TrainTask(num_clusters=20), "c00020"),
        (FitTask(num_clusters=100, repeat=2, lower=True), "c00100-lower-r2"),
        (TrainTask(num_clusters=None), "unconditional"),
        (TrainTask(num_clusters=None, features=True), "features"),
        (TrainTask(num_clusters=100), "c00100"),
        (TrainTask(num_clusters=100, seed=1), "c00100-s1"),
        (TrainTask(num_clusters=100, seed=1, final=True), "c00100-s1-final"),
    ],
)
def test_every_task_has_a_name_of_its_own(task, name):
    assert task.name == name


def test_the_last_stretch_belongs_to_the_trial_that_won():
    assert TrainTask(num_clusters=8, seed=2, final=True).trial == TrainTask(num_clusters=8, seed=2).name


def test_a_trial_on_features_has_no_clusters():
    with pytest.raises(ValueError, match="num_clusters must be None"):
        TrainTask(num_clusters=8, features=True)
    assert Goal(kind="trial", features=True).trial.name == "features"
