"""Where a study stands and what it found, rebuilt from its space and its records and from nothing else."""

from cedm_ray.data.image_set import ImageSet
from cedm_ray.errors import IntegrityError, NoUsableResultError
from cedm_ray.features.extractors import distance_name
from cedm_ray.search.agenda import Agenda, Goal
from cedm_ray.search.asha import Asha
from cedm_ray.search.results import FEATURES, UNCONDITIONAL, Decision, StudyResult, TrialResult, trial_name
from cedm_ray.search.space import SearchSpace
from cedm_ray.search.study import Study


def restore(study: Study, space: SearchSpace, num_images: int, goal: Goal) -> tuple[Agenda, Asha]:
    """The agenda and the judge as the records leave them.

    Raises IntegrityError where the decisions that were taken are not those that the same records give.
    """
    asha = Asha(space.rungs)
    # Decisions first: another process may be writing, and a decision's report is always there before it.
    decisions = study.decisions()
    reports = [report for trial in study.trials() for report in study.reports(trial)]
    try:
        asha.replay(reports, decisions)
    except ValueError as error:
        raise IntegrityError(f"{study.path}: {error}") from None
    agenda = Agenda(
        goal=goal,
        bound=space.bound,
        lower=space.lower_bound,
        grid=space.candidates,
        seed=space.seed,
        num_images=num_images,
    )
    for fit in study.fits().values():
        agenda.tell_fit(fit.num_clusters, fit.repeat, fit.num_used, lower=fit.lower)
    for name in study.failures():
        agenda.tell_end(name)
    for decision in asha.decisions:
        if decision.status != "running":
            agenda.tell_end(decision.trial)
    return agenda, asha


def dead_end(study: Study, agenda: Agenda) -> NoUsableResultError | None:
    """The error that ends a search whose bound waits for a failed fit; None while it can go on."""
    task = agenda.blocked_by
    if task is None:
        return None
    failure = study.failures()[task.name]
    message = f"the bound cannot be found without C = {task.num_clusters}: {failure}"
    return NoUsableResultError(message, mend=study.how_to_retry(task.name))


def study_result(study: Study, space: SearchSpace, images: ImageSet) -> StudyResult | None:
    """The study's result as far as it goes; None while the bound is unknown."""
    agenda, asha = restore(study, space, len(images), Goal(kind="search"))
    if agenda.bound is None:
        return None
    fits, failures = study.fits(), study.failures()
    planned = [trial_name(c) for c in sorted(agenda.candidates)]
    names = [UNCONDITIONAL, *planned, *sorted(set(study.trials()) - {UNCONDITIONAL, *planned})]
    trials = tuple(_trial_result(study, name, asha.decisions, fits, failures) for name in names)
    best = _best(trials, agenda.candidates)
    return StudyResult(
        name=space.name,
        num_images=len(images),
        image_size=images.size,
        extractor=space.features.extractor,
        metric=distance_name(space.evaluation.detector, space.evaluation.weights),
        num_samples=space.evaluation.num_samples,
        rungs_kimg=space.rungs.rungs_kimg,
        bound=agenda.bound,
        trials=trials,
        best=None if best is None else best.trial,
        gain=_gain(best, trials[0]),
        stage_s=study.stage_s(),
    )


def _trial_result(study: Study, name: str, decisions: tuple[Decision, ...], fits, failures) -> TrialResult:
    own = [decision for decision in decisions if decision.trial == name]
    judged = {decision.rung for decision in own}
    num_clusters = None if name in (UNCONDITIONAL, FEATURES) else int(name.removeprefix("c"))
    fit = fits.get(f"{name}-r0")
    failure = failures.get(name, failures.get(f"{name}-r0"))
    if failure is not None:
        status, reason = "failed", failure
    elif own:
        status, reason = own[-1].status, own[-1].reason
    else:
        status, reason = "running", "not yet at a rung"
    return TrialResult(
        trial=name,
        num_clusters=num_clusters,
        num_used=None if fit is None else fit.num_used,
        status=status,
        reason=reason,
        reports=tuple(report for report in study.reports(name) if report.rung in judged),
    )


def _best(trials: tuple[TrialResult, ...], grid: tuple[int, ...]) -> TrialResult | None:
    """The trial of the grid with the lowest distance among those that were trained on the whole budget."""
    usable = [t for t in trials if t.num_clusters in grid and t.status == "completed" and t.final is not None]
    return min(usable, key=lambda trial: (trial.final.distance, trial.num_clusters), default=None)


def _gain(best: TrialResult | None, baseline: TrialResult) -> float | None:
    if best is None or baseline.status != "completed" or not baseline.final or not baseline.final.distance:
        return None
    return 1 - best.final.distance / baseline.final.distance
