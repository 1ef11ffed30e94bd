"""What to do next in a search: the pure ask/tell object that a driver follows.

It composes the bound search, the candidates inside the bound and the C-EDM trials. It knows no process, file or clock:
fed with a study's records, in any order, it stands where the study stood. The unconditional baseline needs no clusters,
so it may train while the bound is still searched.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from cedm_ray.clustering.bound import BoundConfig, BoundResult, UpperBoundSearch
from cedm_ray.search.candidates import CandidatesConfig, candidates
from cedm_ray.search.results import trial_name


@dataclass(frozen=True, slots=True, kw_only=True)
class FitTask:
    """Fit TEMI with `num_clusters` clusters; repeat: which of the repeated fits, from 0."""

    num_clusters: int
    repeat: int

    @property
    def name(self) -> str:
        return f"{trial_name(self.num_clusters)}-r{self.repeat}"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainTask:
    """Train the C-EDM conditioned on `num_clusters` clusters; None: the unconditional baseline."""

    num_clusters: int | None

    @property
    def name(self) -> str:
        return trial_name(self.num_clusters)


Task = FitTask | TrainTask


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """How far a driver goes. bound: stop when C_max is known. search: to C_V. trial: train one C (None: the baseline)
    through the rungs, whatever the bound says; a rung stops it where the study's other trials are better."""

    kind: Literal["bound", "search", "trial"]
    num_clusters: int | None = None


class Agenda:
    """Ask for tasks, tell what came of them. Tells may come in any order and for tasks that were never asked.

    bound, grid: the space's configurations. seed: shuffles the candidates. num_images: N.
    """

    def __init__(self, *, goal: Goal, bound: BoundConfig, grid: CandidatesConfig, seed: int, num_images: int) -> None:
        self.goal = goal
        self._bound_config, self._num_images = bound, num_images
        self._grid, self._seed = grid, seed
        self._fitted: dict[int, dict[int, int]] = {}
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

    def tell_fit(self, num_clusters: int, repeat: int, num_used: int) -> None:
        """A fit is done and used `num_used` of its clusters. Telling it again changes nothing."""
        if repeat not in self._fitted.setdefault(num_clusters, {}):
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
    def blocked_by(self) -> FitTask | None:
        """The failed fit that the search for the bound has come to wait for; None while it can go on."""
        waiting = self._waiting if self.goal.kind != "trial" else None
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
            return self._is_over(self.goal.num_clusters)
        if self.bound is None:
            return self.blocked_by is not None
        if self.goal.kind == "bound" or self.bound.c_max is None:
            return True
        return all(self._is_over(c) for c in (None, *self.candidates))

    def _is_over(self, num_clusters: int | None) -> bool:
        """Whether the trial of this C ended, or can never start because its fit failed."""
        names = {trial_name(num_clusters)}
        if num_clusters is not None:
            names.add(FitTask(num_clusters=num_clusters, repeat=0).name)
        return not names.isdisjoint(self._ended)

    def _open(self, free_fits: int) -> Iterator[Task]:
        """Tasks that could start now, the most urgent first: the bound unlocks all else, so its fits go first."""
        if self.finished:
            return
        if self.goal.kind == "trial":
            yield from self._steps(self.goal.num_clusters)
            return
        if self.bound is None:
            for task in self._questions(free_fits):
                yield from self._new(task)
            if self.goal.kind == "search":
                yield from self._steps(None)
            return
        for num_clusters in (None, *self.candidates):
            yield from self._steps(num_clusters)

    def _steps(self, num_clusters: int | None) -> Iterator[Task]:
        """What the trial of this C needs next, if it is neither under way nor over."""
        if num_clusters is not None and 0 not in self._fitted.get(num_clusters, ()):
            yield from self._new(FitTask(num_clusters=num_clusters, repeat=0))
        else:
            yield from self._new(TrainTask(num_clusters=num_clusters))

    def _new(self, task: Task) -> Iterator[Task]:
        if task not in self._asked and task.name not in self._ended:
            yield task

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
        return task.repeat in self._fitted.get(task.num_clusters, {})
