"""What to do next in a search: the pure ask/tell object that a driver follows.

It composes the bound search, the candidates inside the bound with their refinements, the C-EDM trials, more seeds of
the finalists and the winner's last stretch. It knows no process, file or clock: fed with a study's records, in any
order, it stands where the study stood. The unconditional baseline needs no clusters, so it may train while the bound is
still searched, and so may the C that will be candidates wherever C_max comes to lie: nothing is trained on a guess. The
fits of the lower end unlock nothing and come after the bound's.
"""

from collections import Counter
from collections.abc import Iterator
from functools import cache

from cedm_ray.clustering.bound import BoundConfig, BoundResult, UpperBoundSearch
from cedm_ray.clustering.lower_bound import LowerBoundConfig, LowerBoundResult, lower_bound
from cedm_ray.search.candidates import CandidatesConfig, candidates, certain_candidates, refined
from cedm_ray.search.finals import FinalsConfig, finalists, winner
from cedm_ray.search.goals import FitTask, Goal, Task, TrainTask
from cedm_ray.search.results import Decision, TrialReport, read_trial_name, trial_name


class Agenda:
    """Ask for tasks, tell what came of them. Tells may come in any order and for tasks that were never asked.

    bound, lower, grid, finals: the space's configurations. seed: shuffles the candidates. num_images: N.

    told: how often it was told anything; while it stays, so does all that it says but what it asks.
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
        finals: FinalsConfig | None = None,
    ) -> None:
        self.goal, self.finals = goal, finals or FinalsConfig()
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
        self._waiting_trials: set[str] = set()
        self._full: dict[int, dict[int, float]] = {}
        self._refinements: dict[int, tuple[int, ...]] = {}
        self._first: tuple[int, ...] | None = None
        # How often it was told anything, and what followed from it then.
        self.told = 0
        self._known: tuple[int, tuple[TrainTask, ...]] = (-1, ())
        self._search, self._waiting = self._replay()
        self._bound = self._search.result()
        self._certain: tuple[tuple[int, ...], tuple[int, ...]] = ((), ())

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
        self.told += 1
        if lower:
            self._lower_used[FitTask(num_clusters=num_clusters, repeat=repeat, lower=True)] = num_used
        elif repeat not in self._fitted.setdefault(num_clusters, {}):
            self._fitted[num_clusters][repeat] = num_used
            if self._bound is None:
                self._search, self._waiting = self._replay()
                self._bound = self._search.result()

    def tell_end(self, name: str) -> None:
        """The task of that name ended for good: a trial whichever way, or a fit that failed. It is not asked again."""
        self.told += 1
        self._ended.add(name)

    def tell_decision(self, decision: Decision, report: TrialReport) -> None:
        """A trial was judged on a report. One that waits is not asked for until it is told to go on."""
        self.told += 1
        if decision.status == "waiting":
            self._waiting_trials.add(decision.trial)
            return
        self._waiting_trials.discard(decision.trial)
        if decision.status == "running":
            return
        num_clusters, seed = read_trial_name(decision.trial)
        full = self._full.setdefault(num_clusters, {}) if num_clusters is not None else {}
        if seed in full:
            # It had come to the full budget before, so this is the end of its last stretch.
            self._ended.add(TrainTask(num_clusters=num_clusters, seed=seed, final=True).name)
            return
        if decision.status == "completed":
            full[seed] = report.distance
        self._ended.add(decision.trial)

    def tell_refinement(self, wave: int, order: tuple[int, ...]) -> None:
        """The C of a refinement, from 1, that is on record: it stays what it was, even if a failed trial before it is
        tried again and would change it."""
        self.told += 1
        self._refinements[wave] = order

    def forget(self, task: Task) -> None:
        """A task was given back unfinished and may be asked again."""
        self._asked.discard(task)

    @property
    def bound(self) -> BoundResult | None:
        """The upper bound, None while it is searched. What was asked ahead, and when that ended, changes nothing."""
        return self._bound

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
            wanted = {waiting.num_clusters, *search.ask(self._num_images * self._bound_config.repeats), *self.certain}
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
        """The C to train in their order, refinements so far included; None while the bound is unknown, empty where no C
        passes it."""
        waves = self.waves
        return None if waves is None else tuple(c for wave in waves for c in wave)

    @property
    def waves(self) -> tuple[tuple[int, ...], ...] | None:
        """The C to train: those of the first pass, and those of each refinement so far, which begins when all before it
        are done. None while the bound is unknown."""
        result = self.bound
        if result is None:
            return None
        if self._first is None:
            self._first = ()
            if result.c_max is not None:
                bracket = self._search.bracket(result.c_max)
                self._first = candidates(self._grid, result.c_max, self._seed, bracket)
        waves = [self._first]
        while len(waves) <= self._grid.refine and (found := self._refinement(waves)):
            waves.append(found)
        return tuple(waves)

    @property
    def certain(self) -> tuple[int, ...]:
        """The C that will be candidates wherever C_max comes to lie, and so may train before it is known.

        They come in an order of their own: with the bound known, `candidates` has the order.
        """
        if self.goal.kind != "search":
            return ()
        if self.bound is not None:
            return self.candidates
        possible = tuple(self._search.possible())
        if self._certain[0] != possible:
            brackets = {num_clusters: self._search.bracket(num_clusters) for num_clusters in possible}
            self._certain = possible, certain_candidates(self._grid, brackets, self._seed)
        return self._certain[1]

    @property
    def gone(self) -> frozenset[str]:
        """Names of the candidates' trials that ended without a decision, or can never start."""
        failed = (c for c in self.candidates or () if _first_fit(c) in self._ended)
        return frozenset(self._ended | {trial_name(c) for c in failed})

    @property
    def winner(self) -> TrainTask | None:
        """The trial with the best model so far, None where none has come to the full budget."""
        found = winner(self._full, self._finalists)
        return None if found is None else TrainTask(num_clusters=found[0], seed=found[1])

    @property
    def trials(self) -> tuple[TrainTask, ...]:
        """All that a search trains as far as it is known now, in the order in which it is begun."""
        if self._known[0] != self.told:
            self._known = (self.told, self._all_trials())
        return self._known[1]

    def _all_trials(self) -> tuple[TrainTask, ...]:
        waves = self.waves
        if waves is not None and not any(waves):
            return ()
        tasks = [TrainTask(num_clusters=c) for c in (None, *self.certain)]
        if waves is None or not all(self._is_over(task) for task in tasks[1:]):
            return tuple(tasks)
        again = range(1, self.finals.seeds)
        tasks += [TrainTask(num_clusters=c, seed=seed) for c in self._finalists for seed in again]
        best = self.winner
        if best is not None and self.finals.budget_kimg is not None and all(self._is_over(task) for task in tasks[1:]):
            tasks.append(TrainTask(num_clusters=best.num_clusters, seed=best.seed, final=True))
        return tuple(tasks)

    @property
    def _finalists(self) -> tuple[int, ...]:
        grid = self.candidates or ()
        return finalists(
            {c: full[0] for c, full in self._full.items() if c in grid and 0 in full}, self.finals.finalists
        )

    def _refinement(self, waves: list[tuple[int, ...]]) -> tuple[int, ...]:
        """The next refinement; empty where none is due or none is left."""
        if len(waves) in self._refinements:
            return self._refinements[len(waves)]
        tried = [c for wave in waves for c in wave]
        done = {c: self._full[c][0] for c in tried if 0 in self._full.get(c, {})}
        if not done or not all(self._is_over(TrainTask(num_clusters=c)) for c in tried):
            return ()
        (best,) = finalists(done, 1)
        return refined(tried, best)

    @property
    def finished(self) -> bool:
        """Whether nothing is left to ask or to wait for."""
        if self.goal.kind == "trial":
            return self._is_over(self.goal.trial)
        if self.goal.kind == "fits":
            return all(self._is_fitted(task) or task.name in self._ended for task in self._own_fits())
        if self.bound is None:
            return self.blocked_by is not None
        trials = self.trials if self.goal.kind == "search" else ()
        lower_end = all(self._is_fitted(task) or task.name in self._ended for task in self._lower_tasks)
        return lower_end and all(self._is_over(task) for task in trials)

    def _is_over(self, task: TrainTask) -> bool:
        """Whether a trial ended, or can never start because its fit failed."""
        if task.name in self._ended:
            return True
        return task.num_clusters is not None and _first_fit(task.num_clusters) in self._ended

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
            for task in self.trials:
                yield from self._steps(task)

    def _steps(self, task: TrainTask) -> Iterator[Task]:
        """What a trial needs next, if it is neither under way nor over nor waiting."""
        if task.num_clusters is not None and 0 not in self._fitted.get(task.num_clusters, ()):
            yield from self._new(FitTask(num_clusters=task.num_clusters, repeat=0))
        elif task.name not in self._waiting_trials:
            yield from self._new(task)

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


@cache
def _first_fit(num_clusters: int) -> str:
    """The name of the fit that trials of this C are conditioned on."""
    return FitTask(num_clusters=num_clusters, repeat=0).name
