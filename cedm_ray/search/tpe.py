"""Proposals by Optuna's tree-structured Parzen estimator (Bergstra et al. 2011), as a pure function of what was tried.

A study of Optuna is made anew for each proposal and told all that came before: it keeps nothing, on disk or in memory.
A trial that a rung stopped is told as pruned with its distances, one that diverged or collapsed as pruned without any,
which Optuna takes for worse than all others; one that failed says nothing of its settings and is left out.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from cedm_ray.search.candidates import DRAWN_FIRST
from cedm_ray.search.results import Outcome
from cedm_ray.search.settings import Settings, Values, frozen

CLUSTERS = "num_clusters"
"""The parameter that is C, as its place on the grid, rising: the grid is about even in log C."""

Point = tuple[int, Settings]


def suggest(
    grid: Sequence[int],
    also: Mapping[str, Values],
    whole: Mapping[str, bool],
    told: Sequence[tuple[Point, Outcome | None]],
    *,
    seed: int,
) -> Point:
    """(C, the other settings) to try next.

    grid: the C, rising. also: the values of every other setting by its path; a list is a choice without order. whole:
    which of them are whole numbers. told: every trial so far and how it ended, None = it runs. seed: of this proposal.
    """
    # A line for each study, as it is made, tells nobody anything.
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        direction="minimize", sampler=optuna.samplers.TPESampler(n_startup_trials=DRAWN_FIRST, seed=seed)
    )
    dimensions = distributions(grid, also, whole)
    study.add_trials([_trial(point, outcome, grid, also, dimensions) for point, outcome in told])
    params = study.ask(dimensions).params
    settings = {path: _value(params[path], also[path], whole[path]) for path in also}
    return grid[params[CLUSTERS]], frozen(settings)


def distributions(
    grid: Sequence[int], also: Mapping[str, Values], whole: Mapping[str, bool]
) -> dict[str, BaseDistribution]:
    """What Optuna draws from, by parameter. Arguments as `suggest`."""
    found: dict[str, BaseDistribution] = {CLUSTERS: IntDistribution(0, len(grid) - 1)}
    for path in sorted(also):
        values = also[path]
        if isinstance(values, tuple):
            found[path] = CategoricalDistribution(range(len(values)))
        elif whole[path]:
            found[path] = IntDistribution(int(values.low), int(values.high), log=values.log)
        else:
            found[path] = FloatDistribution(values.low, values.high, log=values.log)
    return found


def _trial(
    point: Point,
    outcome: Outcome | None,
    grid: Sequence[int],
    also: Mapping[str, Values],
    dimensions: dict[str, BaseDistribution],
) -> FrozenTrial:
    """A trial as Optuna is told of it."""
    num_clusters, settings = point
    params = {CLUSTERS: grid.index(num_clusters)}
    for path, value in settings:
        values = also[path]
        params[path] = values.index(value) if isinstance(values, tuple) else value
    about: dict[str, Any] = {"params": params, "distributions": dimensions}
    if outcome is None:
        return create_trial(state=TrialState.RUNNING, **about)
    if outcome.status == "failed":
        return create_trial(state=TrialState.FAIL, **about)
    if outcome.status == "completed":
        return create_trial(value=outcome.distances[-1][1], **about)
    distances = dict(outcome.distances) if outcome.status == "stopped" else {}
    return create_trial(state=TrialState.PRUNED, intermediate_values=distances, **about)


def _value(param: Any, values: Values, whole: bool) -> Any:
    return values[param] if isinstance(values, tuple) else values.rounded(param, whole=whole)
