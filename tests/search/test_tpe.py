"""Proposals by TPE: those of Optuna itself that has lived through the same history."""

import random

import optuna
import pytest

from cedm_ray.search.results import Outcome
from cedm_ray.search.settings import Range, frozen
from cedm_ray.search.tpe import CLUSTERS, distributions, suggest

GRID = (2, 5, 11, 26, 60)
ALSO = {
    "training.learning_rate": Range(low=1e-4, high=1e-2, log=True),
    "training.batch_size": Range(low=16, high=64),
    "sampling.guidance": (0, 0.5, 1),
    "network.channel_mult": ((1, 2), (2, 2)),
}
WHOLE = {path: path == "training.batch_size" for path in ALSO}


def outcome_of(dice, value):
    """One of all the ways in which a trial may end."""
    kind = dice.choice(["completed", "completed", "stopped", "diverged", "collapsed", "failed", None])
    if kind is None:
        return None
    distances = {"completed": ((0, value + 1), (1, value)), "stopped": ((0, value + 2),), "collapsed": ((0, 0.1),)}
    return Outcome(status=kind, distances=distances.get(kind, ()))


def told_to_optuna(study, point, outcome):
    """Let a study of Optuna live through a trial, by its ordinary interface."""
    num_clusters, settings = point
    values = dict(settings)
    params = {
        CLUSTERS: GRID.index(num_clusters),
        "training.learning_rate": values["training.learning_rate"],
        "training.batch_size": values["training.batch_size"],
        "sampling.guidance": (0, 0.5, 1).index(values["sampling.guidance"]),
        "network.channel_mult": ((1, 2), (2, 2)).index(values["network.channel_mult"]),
    }
    study.enqueue_trial(params)
    trial = study.ask(distributions(GRID, ALSO, WHOLE))
    assert trial.params == params
    if outcome is None:
        return
    if outcome.status == "completed":
        for rung, distance in outcome.distances:
            trial.report(distance, rung)
        study.tell(trial, outcome.distances[-1][1])
    elif outcome.status == "failed":
        study.tell(trial, state=optuna.trial.TrialState.FAIL)
    else:
        if outcome.status == "stopped":
            trial.report(outcome.distances[0][1], 0)
        study.tell(trial, state=optuna.trial.TrialState.PRUNED)


@pytest.mark.parametrize("seed", range(4))
def test_proposals_are_those_of_optuna_with_the_same_history(seed):
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    dice, told = random.Random(seed), []
    study = optuna.create_study(direction="minimize")
    for number in range(24):
        found = suggest(GRID, ALSO, WHOLE, told, seed=1000 * seed + number)
        # Asked without leaving a trial behind: a copy of what the study holds.
        again = optuna.create_study(direction="minimize", sampler=optuna.samplers.TPESampler(seed=1000 * seed + number))
        again.add_trials(study.get_trials())
        params = again.ask(distributions(GRID, ALSO, WHOLE)).params
        num_clusters, values = found[0], dict(found[1])
        assert num_clusters == GRID[params[CLUSTERS]]
        assert values["training.batch_size"] == params["training.batch_size"]
        assert values["training.learning_rate"] == pytest.approx(params["training.learning_rate"], rel=1e-3)
        assert values["sampling.guidance"] == (0, 0.5, 1)[params["sampling.guidance"]]
        assert values["network.channel_mult"] == ((1, 2), (2, 2))[params["network.channel_mult"]]
        outcome = outcome_of(dice, num_clusters / 60 + values["sampling.guidance"])
        told.append((found, outcome))
        told_to_optuna(study, found, outcome)


def test_a_suggestion_is_a_function_of_its_arguments():
    told = [((c, frozen({"a.x": c / 100})), Outcome(status="completed", distances=((0, float(c)),))) for c in GRID] * 3
    also, whole = {"a.x": Range(low=0, high=1)}, {"a.x": False}
    found = [suggest(GRID, also, whole, told, seed=seed) for seed in (1, 1, 2)]
    assert found[0] == found[1] != found[2]


def test_proposals_gather_where_distances_are_low():
    """What draws by chance hits one time in ten: the lowest tenth of a range in log."""
    also, whole = {"a.x": Range(low=1e-4, high=1, log=True)}, {"a.x": False}
    hits = []
    for seed in range(3):
        told = []
        for number in range(40):
            point = suggest(GRID, also, whole, told, seed=100 * seed + number)
            told.append((point, Outcome(status="completed", distances=((0, dict(point[1])["a.x"]),))))
        hits += [dict(point[1])["a.x"] < 10**-3.6 for point, _ in told[10:]]
    assert sum(hits) / len(hits) > 0.3
