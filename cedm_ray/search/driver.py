"""The driver: it alone asks the agenda, judges reports and writes down what it decided. It knows no cluster.

Whatever runs the tasks (`distributed/`) asks it for the next task, brings it what a task said, and does what it
answers. Only one driver works on a study at a time; the study's lock sees to that.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

from cedm_ray.data.image_set import ImageSet
from cedm_ray.errors import CedmError, ConfigurationError
from cedm_ray.search.agenda import FitTask, Goal, Task, TrainTask
from cedm_ray.search.outcome import dead_end, restore
from cedm_ray.search.results import Decision, Notice, Progress, Show, TrialReport
from cedm_ray.search.space import SearchSpace
from cedm_ray.search.study import FitRecord, Study


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """Cores and GPUs, shares allowed: of a cluster, or what a task holds."""

    cpus: float
    gpus: float

    def __sub__(self, other: "Resources") -> "Resources":
        return Resources(cpus=self.cpus - other.cpus, gpus=self.gpus - other.gpus)

    def room_for(self, other: "Resources") -> int:
        """How many times `other` fits into this; a billionth is forgiven, as shares are added in floating point."""
        shares = [(self.cpus, other.cpus), (self.gpus, other.gpus)]
        return max(0, int(min(have / want + 1e-9 for have, want in shares if want > 0)))


def needs(space: SearchSpace, task: Task, cluster_gpus: float) -> Resources:
    """What a task holds while it runs, all workers together, on a cluster with that many GPUs."""
    if isinstance(task, FitTask):
        fit = space.resources.fit
        gpus = fit.gpus if fit.gpus is not None else (0.25 if cluster_gpus else 0.0)
        return Resources(cpus=fit.cpus, gpus=gpus)
    trial = space.resources.trial
    gpus = trial.gpus if trial.gpus is not None else (1.0 if cluster_gpus else 0.0)
    return Resources(cpus=trial.workers * trial.cpus, gpus=trial.workers * gpus)


class Driver:
    """Drives one study towards a goal, from wherever its records leave it.

    images: the study's image set. cluster: says what the cluster holds in all, now. show: takes Progress and Notice
    values for the user's eyes. Raises IntegrityError where the records contradict themselves, ConfigurationError where
    a task asks for more than the cluster holds.

    live: the tasks that run, by name, with what they hold. fatal: an error that ends the whole search, None while there
    is none. bound_was_unknown: when this driver began. bound_found: when it came to be known, in monotonic seconds;
    None while it is not.
    """

    def __init__(
        self,
        *,
        study: Study,
        space: SearchSpace,
        goal: Goal,
        images: ImageSet,
        cluster: Callable[[], Resources],
        show: Show,
    ) -> None:
        self.study, self.space, self.goal = study, space, goal
        self._cluster, self._show = cluster, show
        self.agenda, self.asha = restore(study, space, len(images), goal)
        self.live: dict[str, tuple[Task, Resources]] = {}
        self.fatal: CedmError | None = dead_end(study, self.agenda)
        self.bound_was_unknown = self.agenda.bound is None
        self.bound_found: float | None = None
        self._record_candidates()
        total = cluster()
        for task in _kinds_of_tasks(goal):
            wanted = needs(space, task, total.gpus)
            if not total.room_for(wanted):
                kind = "fit" if isinstance(task, FitTask) else "trial"
                raise ConfigurationError(
                    f"one {kind} asks for {wanted.cpus:g} CPUs and {wanted.gpus:g} GPUs, "
                    f"and the cluster has {total.cpus:g} and {total.gpus:g}",
                    mend=f"lower resources.{kind} in the search space, or use a larger cluster",
                )

    @property
    def over(self) -> bool:
        """Whether nothing more is wanted, not even of what runs: the goal is reached, or cannot be."""
        return self.fatal is not None or self.agenda.finished

    @property
    def finished(self) -> bool:
        """Whether it is over and nothing runs."""
        return self.over and not self.live

    def next_task(self) -> tuple[Task, Resources] | None:
        """A task that fits on what is free, with what it will hold; None where there is none now."""
        if self.over:
            return None
        total = self._cluster()
        free = total
        for _, held in self.live.values():
            free = free - held
        fit = needs(self.space, FitTask(num_clusters=2, repeat=0), total.gpus)
        trial = needs(self.space, TrainTask(num_clusters=2), total.gpus)
        running_fits = sum(isinstance(task, FitTask) for task, _ in self.live.values())
        task = self.agenda.ask(
            free_fits=min(self.space.resources.fit.at_once - running_fits, free.room_for(fit)),
            free_trials=free.room_for(trial),
        )
        if task is None:
            return None
        held = fit if isinstance(task, FitTask) else trial
        self.live[task.name] = (task, held)
        return task, held

    def judge(self, report: TrialReport) -> Decision:
        """Decide on a report, and have the decision on record before it is acted on."""
        decision = self.asha.decide(report)
        self.study.write_decision(decision)
        if decision.status != "running":
            self.agenda.tell_end(report.trial)
        self._show(Notice(text=f"{report.trial} {decision.reason}"))
        return decision

    def end(self, name: str) -> None:
        """A task's process is done with it. What it did is on record; a trial cut short may be asked for again."""
        task, _ = self.live.pop(name)
        if isinstance(task, FitTask):
            fit = self.study.fits().get(name)
            if fit is not None:
                self._tell_fit(fit)
                self._show(Notice(text=f"C = {fit.num_clusters}: {fit.num_used} clusters used in {fit.seconds:.1f} s"))
            else:
                self.agenda.forget(task)
        elif not any(decision.trial == name and decision.status != "running" for decision in self.asha.decisions):
            self.agenda.forget(task)
        self._show(Progress(task=name, done=1, total=1, unit="", ended=True))

    def fail(self, name: str, text: str, *, fatal: CedmError | None = None) -> None:
        """A task failed for good. `fatal`: an error that no other task would survive either, such as a full disk."""
        self.live.pop(name, None)
        self._show(Progress(task=name, done=1, total=1, unit="", ended=True))
        self._show(Notice(text=f"{name} failed: {text}"))
        if fatal is not None:
            self.fatal = fatal
            return
        self.study.write_failure(name, text)
        self.agenda.tell_end(name)
        self.fatal = self.fatal or dead_end(self.study, self.agenda)

    def _tell_fit(self, fit: FitRecord) -> None:
        """Tell the agenda of a fit, and the user of the bound once it is known by it."""
        self.agenda.tell_fit(fit.num_clusters, fit.repeat, fit.num_used)
        # A fit that was asked ahead may have failed before; this answer may be what makes the bound wait for it.
        self.fatal = self.fatal or dead_end(self.study, self.agenda)
        self._record_candidates()
        if self.agenda.bound is not None and self.bound_was_unknown and self.bound_found is None:
            self.bound_found = time.monotonic()
            self._show(Notice(text=self.agenda.bound.reason))

    def _record_candidates(self) -> None:
        """Have the candidates' order on record as soon as the bound is known."""
        if self.goal.kind != "search":
            return
        try:
            order = self.agenda.candidates
        except ConfigurationError as error:
            self.fatal = self.fatal or error
        else:
            if order:
                self.study.write_candidates(order)


def _kinds_of_tasks(goal: Goal) -> list[Task]:
    """One task of each kind that the goal may need."""
    kinds: list[Task] = []
    if goal.kind != "trial" or goal.num_clusters is not None:
        kinds.append(FitTask(num_clusters=2, repeat=0))
    if goal.kind != "bound":
        kinds.append(TrainTask(num_clusters=2))
    return kinds
