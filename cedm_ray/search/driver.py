"""The driver: it alone asks the agenda, judges reports and writes down what it decided. It knows no cluster.

Whatever runs the tasks (`distributed/`) asks it for the next task, brings it what a task said, and does what it
answers. Only one driver works on a study at a time; the study's lock sees to that.
"""

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from cedm_ray.data.image_set import ImageSet
from cedm_ray.errors import CedmError, ConfigurationError
from cedm_ray.search.clusterings import features_shape, fit_summary
from cedm_ray.search.goals import FitTask, Goal, Task, TrainTask
from cedm_ray.search.outcome import dead_end, restore
from cedm_ray.search.packing import Cluster, Resources, Room, needs
from cedm_ray.search.results import Decision, Notice, Progress, Show, TrialReport
from cedm_ray.search.settings import EXTRACTOR, told
from cedm_ray.search.space import SearchSpace
from cedm_ray.search.study import FitRecord, Study

ATTEMPTS = 2
"""Deaths of a task's process, on machines that are still there, that are one too many."""

DOUBT_S = 30.0
"""So long nothing is started on a machine whose process cannot be reached: Ray takes some 15 s to find out that a
machine is gone."""


class Driver:
    """Drives one study towards a goal, from wherever its records leave it.

    images: the study's image set. cluster: says what the cluster holds in all, now. show: takes what the user should
    see. labels: of the images, integers [N], which only the summaries of the fits are told; None without any. Raises
    IntegrityError where the records contradict themselves, ConfigurationError where a task asks for more than the
    cluster holds.

    live: the tasks that run, by name, with what they hold. fatal: an error that ends the whole search, None while there
    is none. began: when this driver did, in monotonic seconds. bound_was_unknown: then. bound_found: when it came to be
    known, likewise; None while it is not.
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
        self._contest = restore(study, space, len(images), goal)
        self.agenda, self.asha = self._contest.agenda, self._contest.asha
        self.live: dict[str, tuple[Task, Resources]] = {}
        self.fatal: CedmError | None = dead_end(study, self.agenda)
        self.bound_was_unknown = self.agenda.bound is None
        self.bound_found: float | None = None
        self.began = time.monotonic()
        # By the extractor, None for the space's own: to look means to read all neighbors.
        self._features_shapes = {None: features_shape(study)}
        self._waves_recorded, self._proposals_recorded = 0, len(study.proposals())
        self._record_candidates()
        self._deaths: dict[str, list[Resources]] = {}
        # Machines in doubt, and until when in monotonic seconds.
        self._doubted: dict[str, float] = {}
        self._short_of_memory: set[str] = set()
        self._said_to_wait = False
        self._later: list[Callable[[], None]] = []
        # What the records leave open: a driver may have died before it wrote, or a failure was removed.
        self._record(self._contest.settle())
        # The last cluster seen that had GPUs, if one had: what needs a GPU waits where all of them are lost.
        self._hardware = cluster()
        for task in _kinds_of_tasks(goal):
            self._refuse_what_never_fits(task, self._hardware)

    @property
    def over(self) -> bool:
        """Whether nothing more is wanted, not even of what runs: the goal is reached, or cannot be."""
        return self.fatal is not None or self.agenda.finished

    @property
    def finished(self) -> bool:
        """Whether it is over and nothing runs."""
        return self.over and not self.live

    def needless(self, name: str) -> bool:
        """Whether a running task is to be stopped: nothing is wanted any more, or not this. Raises as `next_task`."""
        self.study.confirm()
        return self.over or name in self.agenda.unneeded

    @property
    def followed(self) -> Counter[str]:
        """How many trials may yet begin on each machine as what runs there ends."""
        running = Counter(node for _, held in self.live.values() for node in held.nodes)
        workers = self.space.resources.trial.workers * self.agenda.num_open_trials
        return Counter({node: min(count, workers) for node, count in running.items()})

    def next_task(self) -> tuple[Task, Resources] | None:
        """A task that fits on what is free, with what it will hold; None where there is none now. Raises LockedError
        where another driver has overtaken this one."""
        if self.over:
            self._say_later()
            return None
        cluster = self._trusted()
        room = Room(cluster)
        for _, held in self.live.values():
            room.take(held)
        smallest = needs(self.space, FitTask(num_clusters=2, repeat=0), self._hardware, self._features_shapes[None])
        trial = needs(self.space, TrainTask(num_clusters=2), self._hardware)
        running_fits = sum(isinstance(task, FitTask) for task, _ in self.live.values())
        free_fits = room.count(smallest, max(0, self.space.resources.fit.at_once - running_fits))
        free_trials = room.count(trial, 1)
        task = self.agenda.ask(free_fits=free_fits, free_trials=free_trials)
        held = None if task is None else self._placed(task, room)
        if isinstance(task, FitTask) and held is None:
            # It is the most urgent one, and what it waits for must not go to others; a trial takes no memory from it.
            self.agenda.forget(task)
            task = self.agenda.ask(free_fits=0, free_trials=free_trials)
            held = None if task is None else self._placed(task, room)
        if task is None:
            self._say_later()
            self._say_if_nothing_can_start(cluster)
            return None
        # Only now: it reads a file on the study's storage, and this question is asked many times a second.
        self.study.confirm()
        self._said_to_wait = False
        self.live[task.name] = (task, held)
        return task, held

    def space_for(self, task: Task) -> SearchSpace:
        """The space that a task is run with: that of its own settings. One that ran out of memory computes half as much
        at once, which changes no result but its rounding."""
        space = self._own_space(task)
        if task.name not in self._short_of_memory:
            return space
        if isinstance(task, FitTask):
            clustering = space.clustering.model_copy(update={"head_group": 1})
            return space.model_copy(update={"clustering": clustering})
        training, sampling = space.training, space.sampling
        share = max(1, training.batch_size // space.resources.trial.workers)
        return space.model_copy(
            update={
                "training": training.model_copy(
                    update={"microbatch": -(-min(training.microbatch or share, share) // 2)}
                ),
                "sampling": sampling.model_copy(update={"batch_size": -(-sampling.batch_size // 2)}),
            }
        )

    def misplaced(self, name: str) -> bool:
        """Whether a machine that a running task lies on is gone, so that it can only start again elsewhere."""
        return name in self.live and not self._all_there(self.live[name][1])

    def judge(self, report: TrialReport) -> Decision:
        """Decide on a report, and have the decision on record before it is acted on."""
        decision, new = self._contest.judge(report)
        # It has got on since, so that earlier deaths say nothing of the next.
        self._deaths.pop(report.trial, None)
        # A process that takes over says its earlier reports again, of which everything is on record.
        self._record(new)
        return decision

    def end(self, name: str) -> None:
        """A task's process is done with it. What it did is on record; a trial cut short may be asked for again, and so
        may one that waits, once it is decided that it goes on."""
        lost = self.misplaced(name)
        task, _ = self.live.pop(name)
        if isinstance(task, FitTask):
            fit = self.study.fits().get(name)
            if fit is not None:
                self._tell_fit(fit)
            else:
                if name in self.agenda.unneeded:
                    self._show(Notice(text=f"{name} was not needed any more"))
                self.agenda.forget(task)
        else:
            # Asked for again if it is not over: the agenda knows.
            self.agenda.forget(task)
            if lost:
                self._show(Notice(text=f"{name} lost its machine and goes on elsewhere from its checkpoint"))
        self._show(Progress(task=name, done=1, total=1, unit="", ended=True))

    def die(self, name: str, text: str, *, out_of_memory: bool = False, unreachable: bool = False) -> None:
        """A task's process died, or raised what we did not expect. It is tried again where that may help.

        What a lost machine took with it is begun again as often as that happens. A process that dies on machines which
        are still there is tried again once, and once more after every rung that the trial gets to. One that ran out of
        memory is tried again once, with half the microbatch. unreachable: nobody says that it died, but nobody reaches
        it, so that its machine is most likely lost.
        """
        task, held = self.live[name]
        if unreachable:
            self._doubted |= dict.fromkeys(held.nodes, time.monotonic() + DOUBT_S)
        if out_of_memory:
            if name in self._short_of_memory:
                self.fail(name, f"oom: {text}")
                return
            self._short_of_memory.add(name)
            said = "ran out of memory and starts again, computing half as much at once"
        else:
            deaths = self._deaths.setdefault(name, [])
            deaths.append(held)
            # Whether the machine of one that nobody reaches is there, the next death will tell.
            told = deaths[:-1] if unreachable else deaths
            if sum(self._all_there(death) for death in told) >= ATTEMPTS:
                self.fail(name, text)
                return
            lost = "machine" if unreachable else "process"
            said = f"lost its {lost} and goes on from its checkpoint"
        del self.live[name]
        self.agenda.forget(task)
        self._show(Progress(task=name, done=1, total=1, unit="", ended=True))
        self._show(Notice(text=f"{name} {said}"))

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
        # Others may have waited for it.
        self._record(self._contest.settle())
        self.fatal = self.fatal or dead_end(self.study, self.agenda)

    def _trusted(self) -> Cluster:
        """The cluster as it is now, without machines in doubt."""
        found, now = self._cluster(), time.monotonic()
        if found.total.gpus or not self._hardware.total.gpus:
            self._hardware = found
        self._doubted = {name: until for name, until in self._doubted.items() if until > now}
        if not self._doubted:
            return found
        return replace(found, nodes=tuple(node for node in found.nodes if node.name not in self._doubted))

    def _placed(self, task: Task, room: Room) -> Resources | None:
        """What a task holds and where it goes; None where it finds no place now. A fit takes none that a trial needs,
        as far as there is another."""
        extractor = dict(task.changes).get(EXTRACTOR) if isinstance(task, FitTask) else None
        if extractor not in self._features_shapes:
            self._features_shapes[extractor] = features_shape(self.study, extractor)
        wanted = needs(self._own_space(task), task, self._hardware, self._features_shapes[extractor])
        trial = needs(self.space, TrainTask(num_clusters=2), self._hardware)
        nodes = room.place(wanted, beside=trial if isinstance(task, FitTask) else None)
        return None if nodes is None else wanted.on(nodes)

    def _own_space(self, task: Task) -> SearchSpace:
        """The space with what a task has otherwise."""
        return self.space.changed(task.changes) if task.changes else self.space

    def _all_there(self, held: Resources) -> bool:
        """Whether all machines that a task lies on, or lay on, are still of the cluster."""
        return set(held.nodes) <= {node.name for node in self._cluster().nodes}

    def _refuse_what_never_fits(self, task: Task, cluster: Cluster) -> None:
        """Raise ConfigurationError where the whole cluster, empty, has no place for a task."""
        wanted = needs(self.space, task, self._hardware, self._features_shapes[None])
        if Room(cluster).place(wanted) is not None:
            return
        kind, total = "fit" if isinstance(task, FitTask) else "trial", cluster.total
        text = f"one {kind} asks for {wanted.cpus:g} CPUs and {wanted.gpus:g} GPUs"
        text += f", and the cluster has {total.cpus:g} and {total.gpus:g}"
        if len(cluster.nodes) > 1:
            largest = max(cluster.nodes, key=lambda node: (node.gpus, node.cpus) if wanted.gpus else (node.cpus, 0))
            text += (
                f" on {len(cluster.nodes)} machines, the largest of which has {largest.cpus:g} and {largest.gpus:g}: "
                "no process lies on two"
            )
        if wanted.workers > 1:
            text += f"; each of its {wanted.workers} workers asks for {wanted.each.cpus:g} and {wanted.each.gpus:g}"
        raise ConfigurationError(
            text, mend=f"lower resources.{kind} in the search space, or use a larger cluster or larger machines"
        )

    def _say_if_nothing_can_start(self, cluster: Cluster) -> None:
        """Tell the user, once, where nothing runs and the cluster has shrunk so that nothing can start."""
        if self.live or self._said_to_wait:
            return
        try:
            for task in _kinds_of_tasks(self.goal):
                self._refuse_what_never_fits(task, cluster)
        except ConfigurationError as error:
            self._said_to_wait = True
            self._show(Notice(text=f"waiting for machines: {error} now"))

    def _record(self, decisions: tuple[Decision, ...]) -> None:
        """Have decisions on record, and say them; then the refinement that they may have led to."""
        for decision in decisions:
            self.study.write_decision(decision)
            self._show(Notice(text=f"{decision.trial} {decision.reason}"))
        self._record_candidates()

    def _tell_fit(self, fit: FitRecord) -> None:
        """Tell the agenda of a fit, and the user of it and of the bound once it is known by it."""
        task = fit.task
        self.agenda.tell_fit(task.num_clusters, task.repeat, fit.num_used, lower=task.lower, changes=task.changes)
        # Comparing with labels takes a while, in which the next tasks shall work.
        self._later.append(lambda: self._show(fit_summary(self.study, self.space, task, fit.seconds, self._labels)))
        # A fit that was asked ahead may have failed before; this answer may be what makes the bound wait for it.
        self.fatal = self.fatal or dead_end(self.study, self.agenda)
        # Trials may have waited for the bound.
        self._record(self._contest.settle())
        if self.agenda.bound is not None and self.bound_was_unknown and self.bound_found is None:
            self.bound_found = time.monotonic()
            if self.goal.kind in ("bound", "search"):
                # At once: a driver that is killed later would take it along.
                self.study.write_timing("bound", self.bound_found - self.began)
            reason = self.agenda.bound.reason
            self._later.append(lambda: self._show(Notice(text=reason)))

    def _say_later(self) -> None:
        """Show what could wait until no task waited to be handed out."""
        later, self._later = self._later, []
        for show in later:
            show()

    def _record_candidates(self) -> None:
        """Have the candidates' order on record as soon as it is known, that of a refinement too, and every proposal."""
        if self.goal.kind != "search":
            return
        try:
            waves = self.agenda.waves or ()
            grid, proposals = self.agenda.grid or (), self.agenda.proposals
        except ConfigurationError as error:
            self.fatal = self.fatal or error
        else:
            # Of proposals the waves are no refinements, and what they are made of is recorded once.
            orders = [grid] if proposals else [[task.num_clusters for task in wave] for wave in waves]
            for wave, order in enumerate(orders[self._waves_recorded :], start=self._waves_recorded):
                if order:
                    self.study.write_candidates(order, wave)
                    self._waves_recorded = wave + 1
            for proposal in proposals[self._proposals_recorded :]:
                self.study.write_proposal(proposal)
                self._proposals_recorded = proposal.number
                if proposal.settings:
                    self._show(Notice(text=f"{proposal.task.trial} has {told(proposal.settings)}"))


def _kinds_of_tasks(goal: Goal) -> list[Task]:
    """One task of each kind that the goal may need."""
    kinds: list[Task] = []
    if goal.kind != "trial" or goal.num_clusters is not None:
        kinds.append(FitTask(num_clusters=2, repeat=0))
    if goal.kind != "bound":
        kinds.append(goal.trial if goal.kind == "trial" else TrainTask(num_clusters=2))
    return kinds
