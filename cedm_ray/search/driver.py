"""The driver: it alone asks the agenda, judges reports and writes down what it decided. It knows no cluster.

Whatever runs the tasks (`distributed/`) asks it for the next task, brings it what a task said, and does what it
answers. Only one driver works on a study at a time; the study's lock sees to that.
"""

import time
from collections.abc import Callable

import numpy as np

from cedm_ray.data.image_set import ImageSet
from cedm_ray.errors import CedmError, ConfigurationError
from cedm_ray.search.agenda import FitTask, Goal, Task, TrainTask
from cedm_ray.search.clusterings import features_shape, fit_summary
from cedm_ray.search.outcome import dead_end, restore
from cedm_ray.search.packing import Cluster, Resources, needs
from cedm_ray.search.results import Decision, Notice, Progress, Show, TrialReport
from cedm_ray.search.space import SearchSpace
from cedm_ray.search.study import FitRecord, Study


class Driver:
    """Drives one study towards a goal, from wherever its records leave it.

    images: the study's image set. cluster: says what the cluster holds in all, now. show: takes what the user should
    see. labels: of the images, integers [N], which only the summaries of the fits are told; None without any. Raises
    IntegrityError where the records contradict themselves, ConfigurationError where a task asks for more than the
    cluster holds.

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
        cluster: Callable[[], Cluster],
        show: Show,
        labels: np.ndarray | None = None,
    ) -> None:
        self.study, self.space, self.goal = study, space, goal
        self._cluster, self._show, self._labels = cluster, show, labels
        self.agenda, self.asha = restore(study, space, len(images), goal)
        self.live: dict[str, tuple[Task, Resources]] = {}
        self.fatal: CedmError | None = dead_end(study, self.agenda)
        self.bound_was_unknown = self.agenda.bound is None
        self.bound_found: float | None = None
        self._features_shape = features_shape(study)
        self._record_candidates()
        now = cluster()
        for task in _kinds_of_tasks(goal):
            wanted = needs(space, task, now, self._features_shape)
            if not now.total.room_for(wanted):
                kind = "fit" if isinstance(task, FitTask) else "trial"
                raise ConfigurationError(
                    f"one {kind} asks for {wanted.cpus:g} CPUs and {wanted.gpus:g} GPUs, "
                    f"and the cluster has {now.total.cpus:g} and {now.total.gpus:g}",
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

    def needless(self, name: str) -> bool:
        """Whether a running task is to be stopped: nothing is wanted any more, or not this."""
        return self.over or name in self.agenda.unneeded

    def next_task(self) -> tuple[Task, Resources] | None:
        """A task that fits on what is free, with what it will hold; None where there is none now."""
        if self.over:
            return None
        cluster = self._cluster()
        free = cluster.total
        for _, held in self.live.values():
            free = free - held
        smallest = needs(self.space, FitTask(num_clusters=2, repeat=0), cluster, self._features_shape)
        trial = needs(self.space, TrainTask(num_clusters=2), cluster)
        running_fits = sum(isinstance(task, FitTask) for task, _ in self.live.values())
        free_fits = min(self.space.resources.fit.at_once - running_fits, free.room_for(smallest))
        free_trials = free.room_for(trial)
        task = self.agenda.ask(free_fits=free_fits, free_trials=free_trials)
        held = None if task is None else needs(self.space, task, cluster, self._features_shape)
        if isinstance(task, FitTask) and not free.room_for(held):
            # It is the most urgent one, and what it waits for must not go to others; a trial takes no memory from it.
            self.agenda.forget(task)
            task = self.agenda.ask(free_fits=0, free_trials=free_trials)
            held = trial
        if task is None:
            return None
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
            else:
                if name in self.agenda.unneeded:
                    self._show(Notice(text=f"{name} was not needed any more"))
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
        """Tell the agenda of a fit, and the user of it and of the bound once it is known by it."""
        self.agenda.tell_fit(fit.num_clusters, fit.repeat, fit.num_used, lower=fit.lower)
        task = FitTask(num_clusters=fit.num_clusters, repeat=fit.repeat, lower=fit.lower)
        self._show(fit_summary(self.study, self.space, task, fit.seconds, self._labels))
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
        kinds.append(goal.trial if goal.kind == "trial" else TrainTask(num_clusters=2))
    return kinds
