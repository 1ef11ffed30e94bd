"""Tasks and their names, which name records and folders."""

import json

import pytest

from cedm_ray.errors import IntegrityError
from cedm_ray.search.goals import FitTask, Goal, Proposal, TrainTask, task_of
from cedm_ray.search.settings import frozen


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
        (TrainTask(num_clusters=100, proposal=4), "c00100-p4"),
        (TrainTask(num_clusters=100, proposal=4, seed=2, final=True), "c00100-p4-s2-final"),
        (FitTask(num_clusters=100, repeat=0, changes=(("clustering.gamma", 0.8),)), "c00100-e18445ba-r0"),
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


def proposal(number, num_clusters, **settings):
    values = frozen({name.replace("__", "."): value for name, value in settings.items()})
    return Proposal(number=number, num_clusters=num_clusters, settings=values, changes=values[:1])


PROPOSALS = [
    proposal(1, 20, clustering__gamma=0.8, training__learning_rate=1e-3),
    proposal(2, 20, network__channel_mult=(1, 2), sampling__guidance=0),
]


def test_a_trial_is_conditioned_on_the_fit_with_its_own_clustering_settings():
    plain = FitTask(num_clusters=20, repeat=0)
    assert TrainTask(num_clusters=20, seed=3).fit == plain
    assert PROPOSALS[1].task.fit == plain
    assert PROPOSALS[0].task.fit == FitTask(num_clusters=20, repeat=0, changes=(("clustering.gamma", 0.8),))
    assert TrainTask(num_clusters=None).fit is None
    assert TrainTask(num_clusters=None, features=True).fit is None


def test_no_fit_with_other_settings_has_the_name_of_another():
    changes = [(), (("clustering.gamma", 0.8),), (("clustering.gamma", 0.7),), (("clustering.epochs", 8),)]
    names = {FitTask(num_clusters=20, repeat=0, changes=one).name for one in changes}
    assert len(names) == 4
    assert "c00020-r0" in names


def test_a_task_is_found_by_its_trials_name():
    for task in (
        TrainTask(num_clusters=None),
        TrainTask(num_clusters=None, features=True),
        TrainTask(num_clusters=7, seed=2),
        PROPOSALS[0].task,
        PROPOSALS[1].task,
    ):
        assert task_of(task.trial, PROPOSALS) == task
    with pytest.raises(IntegrityError, match="tries proposal 3, and 2 are on record"):
        task_of("c00020-p3", PROPOSALS)


@pytest.mark.parametrize("one", PROPOSALS)
def test_a_proposal_survives_json(one):
    assert Proposal.from_json(json.loads(json.dumps(one.to_json()))) == one
