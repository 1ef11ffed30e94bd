"""What to do next in a search: the pure ask/tell object that a driver follows.

It composes the bound search, the candidates inside the bound and the C-EDM trials. It knows no process, file or clock:
fed with a study's records, in any order, it stands where the study stood. The unconditional baseline needs no clusters,
so it may train while the bound is still searched. The fits of the lower end unlock nothing and come after the bound's.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from cedm_ray.clustering.bound import BoundConfig, BoundResult, UpperBoundSearch
from cedm_ray.clustering.lower_bound import LowerBoundConfig, LowerBoundResult, lower_bound
from cedm_ray.search.candidates import CandidatesConfig, candidates
from cedm_ray.search.results import FEATURES, trial_name


@dataclass(frozen=True, slots=True, kw_only=True)
class FitTask:
    """Fit TEMI with `num_clusters` clusters; repeat: which of the repeated fits, from 0. lower: with gamma = 1, for the
    lower end."""

    num_clusters: int
    repeat: int
    lower: bool = False

    @property
    def name(self) -> str:
        return f"{trial_name(self.num_clusters)}{'-lower' if self.lower else ''}-r{self.repeat}"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainTask:
    """Train the C-EDM conditioned on `num_clusters` clusters; None: the unconditional baseline, or with `features` the
    one conditioned on the images' feature vectors."""

    num_clusters: int | None
    features: bool = False

    def __post_init__(self) -> None:
        if self.features and self.num_clusters is not None:
            raise ValueError(f"num_clusters must be None for a trial on features, got {self.num_clusters}")

    @property
    def name(self) -> str:
        return FEATURES if self.features else trial_name(self.num_clusters)


Task = FitTask | TrainTask


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """How far a driver goes. bound: stop when C_max and the lower end are known. search: to C_V. trial: train one C
    (None: the baseline, or with `features` the one on feature vectors) through the rungs, whatever the bound says; a
    rung stops it where the study's other trials are better. fits: only fit every C of `sizes`, as often as the bound's
    repeats."""

    kind: Literal["bound", "search", "trial", "fits"]
    num_clusters: int | None = None
    features: bool = False
    sizes: tuple[int, ...] = ()

    @property
    def trial(self) -> TrainTask:
        """The one trial of the kind `trial`."""
        return TrainTask(num_clusters=self.num_clusters, features=self.features)


class Agenda:
    """Ask for tasks, tell what came of them. Tells may come in any order and for tasks that were never asked.

    bound, lower, grid: the space's configurations. seed: shuffles the candidates. num_images: N.
    """

    def __init__(
        self,
        *,
        goal: Goal,
        bound: BoundConfig,
        lower: LowerBoundConfig,
        grid: CandidatesConfig,
        seed: int,
        num_images: int,
    ) -> None:
        self.goal = goal
        self._bound_config, self._num_images = bound, num_images
        self._lower_tasks = tuple(
            FitTask(num_clusters=num_clusters, repeat=repeat, lower=True)
            for num_clusters in lower.num_clusters
            for repeat in range(lower.repeats)
            if num_clusters <= num_images and goal.kind == "bound"
        )
        self._grid, self._seed = grid, seed
        self._fitted: dict[int, dict[int, int]] = {}
        self._lower_used: dict[FitTask, int] = {}
        self._asked: set[Task] = set()
        self._ended: set[str] = set()
        self._search, self._waiting = self._replay()

    def ask(self, *, free_fits: int, free_trials: int) -> Task | None:
        """The next task, or None where nothing can be asked now.

        free_fits, free_trials: how many of each could start now; the bound search doubles ahead as fits are free.
        """
        for task in self._open(free_fits):
            if (free_fits if isinstance(task, FitTask) else free_trials) > 0:
                self._asked.add(task)
                return task
        return None

    def tell_fit(self, num_clusters: int, repeat: int, num_used: int, *, lower: bool = False) -> None:
        """A fit is done and used `num_used` of its clusters. Telling it again changes nothing."""
        if lower:
            self._lower_used[FitTask(num_clusters=num_clusters, repeat=repeat, lower=True)] = num_used
        elif repeat not in self._fitted.setdefault(num_clusters, {}):
            self._fitted[num_clusters][repeat] = num_used
            self._search, self._waiting = self._replay()

    def tell_end(self, name: str) -> None:
        """The task of that name ended for good: a trial whichever way, or a fit that failed. It is not asked again."""
        self._ended.add(name)

    def forget(self, task: Task) -> None:
        """A task was given back unfinished and may be asked again."""
        self._asked.discard(task)

    @property
    def bound(self) -> BoundResult | None:
        """The upper bound, None while it is searched. What was asked ahead, and when that ended, changes nothing."""
        return self._search.result()

    @property
    def lower(self) -> LowerBoundResult | None:
        """The lower end by the fits that are done; None where there is none."""
        told: dict[int, list[int]] = {}
        for task in self._lower_tasks:
            if task in self._lower_used:
                told.setdefault(task.num_clusters, []).append(self._lower_used[task])
        return lower_bound(told)

    @property
    def unneeded(self) -> set[str]:
        """The names of fits that were asked ahead and whose answer can no longer matter."""
        if self.goal.kind not in ("bound", "search"):
            return set()
        if self.bound is None:
            # All that the sequential search may yet come to ask.
            search, waiting = self._replay()
            wanted = {waiting.num_clusters, *search.ask(self._num_images * self._bound_config.repeats)}
        else:
            wanted = set(self.candidates) if self.goal.kind == "search" else set()
        fits = {task for task in self._asked if isinstance(task, FitTask) and not task.lower}
        return {task.name for task in fits if task.num_clusters not in wanted and not self._is_fitted(task)}

    @property
    def blocked_by(self) -> FitTask | None:
        """The failed fit that the search for the bound has come to wait for; None while it can go on."""
        waiting = self._waiting if self.goal.kind in ("bound", "search") else None
        return waiting if waiting is not None and waiting.name in self._ended else None

    @property
    def candidates(self) -> tuple[int, ...] | None:
        """The C to train in their order; None while the bound is unknown, empty where no C passes it."""
        result = self.bound
        if result is None:
            return None
        return () if result.c_max is None else candidates(self._grid, result.c_max, self._seed)

    @property
    def finished(self) -> bool:
        """Whether nothing is left to ask or to wait for."""
        if self.goal.kind == "trial":
            return self._is_over(self.goal.trial)
        if self.goal.kind == "fits":
            return all(self._is_fitted(task) or task.name in self._ended for task in self._own_fits())
        if self.bound is None:
            return self.blocked_by is not None
        trials = self._trials() if self.goal.kind == "search" and self.candidates else ()
        lower_end = all(self._is_fitted(task) or task.name in self._ended for task in self._lower_tasks)
        return lower_end and all(self._is_over(trial) for trial in trials)

    def _trials(self) -> list[TrainTask]:
        """Those of a search as far as it is known, in their order."""
        return [TrainTask(num_clusters=num_clusters) for num_clusters in (None, *(self.candidates or ()))]

    def _is_over(self, trial: TrainTask) -> bool:
        """Whether the trial ended, or can never start because its fit failed."""
        names = {trial.name}
        if trial.num_clusters is not None:
            names.add(FitTask(num_clusters=trial.num_clusters, repeat=0).name)
        return not names.isdisjoint(self._ended)

    def _open(self, free_fits: int) -> Iterator[Task]:
        """Tasks that could start now, the most urgent first: the bound unlocks all else, so its fits go first."""
        if self.finished:
            return
        if self.goal.kind == "trial":
            yield from self._steps(self.goal.trial)
            return
        if self.goal.kind == "fits":
            for task in self._own_fits():
                yield from self._new(task)
            return
        if self.bound is None:
            for task in self._questions(free_fits):
                yield from self._new(task)
        for task in self._lower_tasks:
            yield from self._new(task)
        if self.goal.kind == "search":
            for trial in self._trials():
                yield from self._steps(trial)

    def _steps(self, trial: TrainTask) -> Iterator[Task]:
        """What the trial needs next, if it is neither under way nor over."""
        if trial.num_clusters is not None and 0 not in self._fitted.get(trial.num_clusters, ()):
            yield from self._new(FitTask(num_clusters=trial.num_clusters, repeat=0))
        else:
            yield from self._new(trial)

    def _new(self, task: Task) -> Iterator[Task]:
        done = isinstance(task, FitTask) and self._is_fitted(task)
        if task not in self._asked and task.name not in self._ended and not done:
            yield task

    def _own_fits(self) -> Iterator[FitTask]:
        """The fits that are the goal themselves."""
        for num_clusters in self.goal.sizes:
            for repeat in range(self._bound_config.repeats):
                yield FitTask(num_clusters=num_clusters, repeat=repeat)

    def _replay(self) -> tuple[UpperBoundSearch, FitTask | None]:
        """The bound search as the fits answer it one question at a time, and the question it now waits for, if any.

        It never asks ahead here: a fit that was run ahead counts only when the search comes to ask for it, so that the
        bound is a function of what the fits find and not of how many ran at once or which was done first.
        """
        search = UpperBoundSearch(self._bound_config, self._num_images)
        repeats: Counter[int] = Counter()
        while search.result() is None:
            (num_clusters,) = search.ask(1)
            task = FitTask(num_clusters=num_clusters, repeat=repeats[num_clusters])
            answer = self._fitted.get(num_clusters, {}).get(task.repeat)
            if answer is None:
                return search, task
            repeats[num_clusters] += 1
            search.tell(num_clusters, answer)
        return search, None

    def _questions(self, free_fits: int) -> Iterator[FitTask]:
        """What the bound search waits for, then what it would ask if all goes well, as far as fits can run at once."""
        search, waiting = self._replay()
        yield waiting
        repeats = Counter({waiting.num_clusters: waiting.repeat + 1})
        running = sum(isinstance(task, FitTask) and not self._is_fitted(task) for task in self._asked)
        unanswered = 1
        while unanswered < running + free_fits and (ahead := search.ask(1)):
            task = FitTask(num_clusters=ahead[0], repeat=repeats[ahead[0]])
            repeats[ahead[0]] += 1
            if not self._is_fitted(task):
                unanswered += 1
                yield task

    def _is_fitted(self, task: FitTask) -> bool:
        if task.lower:
            return task in self._lower_used
        return task.repeat in self._fitted.get(task.num_clusters, {})
