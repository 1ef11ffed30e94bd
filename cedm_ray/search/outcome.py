"""Where a study stands and what it found, rebuilt from its space and its records and from nothing else."""

from collections.abc import Sequence

from cedm_ray.data.image_set import ImageSet
from cedm_ray.errors import IntegrityError, NoUsableResultError
from cedm_ray.features.extractors import distance_name
from cedm_ray.search.agenda import Agenda
from cedm_ray.search.asha import Asha
from cedm_ray.search.contest import Contest
from cedm_ray.search.goals import Goal, Proposal, task_of
from cedm_ray.search.results import UNCONDITIONAL, Decision, StudyResult, TrialResult, TrialStatus
from cedm_ray.search.space import SearchSpace
from cedm_ray.search.study import Study


def restore(study: Study, space: SearchSpace, num_images: int, goal: Goal) -> Contest:
    """The agenda and the judge as the records leave them.

    Raises IntegrityError where the decisions that were taken are not those that the same records give.
    """
    # Decisions first: another process may be writing, and a decision's report is always there before it.
    decisions = study.decisions()
    reports = [report for trial in study.trials() for report in study.reports(trial)]
    agenda = Agenda(
        goal=goal,
        bound=space.bound,
        lower=space.lower_bound,
        grid=space.candidates,
        seed=space.seed,
        num_images=num_images,
        finals=space.finals,
        own=space.own,
    )
    for fit in study.fits().values():
        task = fit.task
        agenda.tell_fit(task.num_clusters, task.repeat, fit.num_used, lower=task.lower, changes=task.changes)
    for name in study.failures():
        agenda.tell_end(name)
    for wave, order in enumerate(study.refinements(), start=1):
        agenda.tell_refinement(wave, order)
    for proposal in study.proposals():
        agenda.tell_proposal(proposal)
    contest = Contest(agenda, Asha(space.rungs, space.finals))
    try:
        contest.replay(reports, decisions)
    except ValueError as error:
        raise IntegrityError(f"{study.path}: {error}") from None
    return contest


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
    contest = restore(study, space, len(images), Goal(kind="search"))
    agenda, asha = contest.agenda, contest.asha
    if agenda.bound is None:
        return None
    fits, failures = study.fits(), study.failures()
    planned = sorted(agenda.trials, key=lambda task: (task.num_clusters or 0, task.proposal, task.seed))
    planned = [task.trial for task in planned]
    planned = list(dict.fromkeys([UNCONDITIONAL, *planned]))
    names = [*planned, *sorted(set(study.trials()) - set(planned))]
    # After the trials, which are begun when their proposals are on record; the next may be known before it is.
    proposals = max(agenda.proposals, tuple(study.proposals()), key=len)
    trials = tuple(_trial_result(study, name, asha, fits, failures, proposals) for name in names)
    full = len(space.rungs.rungs_kimg) - 1
    further = any(report.rung > full for trial in trials for report in trial.reports)
    best = None if agenda.winner is None else next(trial for trial in trials if trial.trial == agenda.winner.trial)
    return StudyResult(
        name=space.name,
        num_images=len(images),
        image_size=images.size,
        extractor=space.features.extractor,
        metric=distance_name(space.evaluation.detector, space.evaluation.weights),
        num_samples=space.evaluation.num_samples,
        rungs_kimg=asha.levels_kimg if further else space.rungs.rungs_kimg,
        full_rung=full,
        bound=agenda.bound,
        trials=trials,
        best=None if best is None else best.trial,
        gain=_gain(best, trials[0], full),
        stage_s=study.stage_s(),
    )


def _trial_result(study: Study, name: str, asha: Asha, fits, failures, proposals: Sequence[Proposal]) -> TrialResult:
    judged = {decision.rung for decision in asha.decisions if decision.trial == name}
    task = task_of(name, proposals)
    fit_name = None if task.fit is None else task.fit.name
    fit = fits.get(fit_name)
    status, reason = standing(asha.newest.get(name), failures.get(name, failures.get(fit_name)))
    if (last := failures.get(f"{name}-final")) is not None:
        reason = f"{reason}; training on from there failed: {last}"
    return TrialResult(
        trial=name,
        num_clusters=task.num_clusters,
        num_used=None if fit is None else fit.num_used,
        status=status,
        reason=reason,
        reports=tuple(report for report in study.reports(name) if report.rung in judged),
        seed=task.seed,
        settings=dict(proposals[task.proposal - 1].settings) if task.proposal else {},
    )


def standing(newest: Decision | None, failure: str | None) -> tuple[TrialStatus, str]:
    """How a trial stands, and why in words. newest: the decision that stands for it. failure: its own or its fit's."""
    if failure is not None:
        return "failed", failure
    return ("running", "not yet at a rung") if newest is None else (newest.status, newest.reason)


def _gain(best: TrialResult | None, baseline: TrialResult, full_rung: int) -> float | None:
    if best is None or baseline.status != "completed":
        return None
    ours, theirs = best.at(full_rung), baseline.at(full_rung)
    if ours is None or theirs is None or not theirs.distance:
        return None
    return 1 - ours.distance / theirs.distance
