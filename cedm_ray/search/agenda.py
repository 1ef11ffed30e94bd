"""What to do next in a search: the pure ask/tell object that a driver follows.

It composes the bound search, the candidates inside the bound with their refinements, the C-EDM trials, more seeds of
the finalists and the winner's last stretch. It knows no process, file or clock: fed with a study's records, in any
order, it stands where the study stood. The unconditional baseline needs no clusters, so it may train while the bound is
still searched, and so may the C that will be candidates wherever C_max comes to lie: nothing is trained on a guess. The
fits of the lower end unlock nothing and come after the bound's.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cache
from typing import Any

from cedm_ray.clustering.bound import BoundConfig, BoundResult, UpperBoundSearch
from cedm_ray.clustering.lower_bound import LowerBoundConfig, LowerBoundResult, lower_bound
from cedm_ray.search.candidates import CandidatesConfig, candidates, certain_candidates
from cedm_ray.search.field import Field
from cedm_ray.search.finals import FinalsConfig, finalists, winner
from cedm_ray.search.goals import FitTask, Goal, Proposal, Task, TrainTask
from cedm_ray.search.results import Decision, Outcome, TrialReport, TrialStatus, read_trial_name
from cedm_ray.search.settings import Settings


class Agenda:
    """Ask for tasks, tell what came of them. Tells may come in any order and for tasks that were never asked.

    bound, lower, grid, finals: the space's configurations. seed: shuffles the candidates. num_images: N. own: the
    space's values of the settings that are searched besides C, by path.

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
        own: Mapping[str, Any] | None = None,
    ) -> None:
        self.goal, self.finals = goal, finals or FinalsConfig()
        self._bound_config, self._num_images = bound, num_images
        self._lower_tasks = tuple(
            FitTask(num_clusters=num_clusters, repeat=repeat, lower=True)
            for num_clusters in lower.num_clusters
            for repeat in range(lower.repeats)
            if num_clusters <= num_images and goal.kind == "bound"
        )
        self._grid_config, self._seed = grid, seed
        self._field = Field(grid, seed, own)
        self._fitted: dict[int, dict[int, int]] = {}
        self._lower_used: dict[FitTask, int] = {}
        self._changed_fits: set[FitTask] = set()
        self._asked: set[Task] = set()
        self._ended: set[str] = set()
        self._waiting_trials: set[str] = set()
        # Of every candidate, a C with the number of its proposal: by seed the distance at the full budget.
        self._full: dict[tuple[int | None, int], dict[int, float]] = {}
        self._judged: dict[str, tuple[TrialStatus, dict[int, float]]] = {}
        self._first: tuple[int, ...] | None = None
        # How often it was told anything, and what followed from it then.
        self.told = 0
        self._known: tuple[int, tuple[TrainTask, ...]] = (-1, ())
        self._waves: tuple[int, tuple[tuple[TrainTask, ...], ...]] = (-1, ())
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

    def tell_fit(
        self, num_clusters: int, repeat: int, num_used: int, *, lower: bool = False, changes: Settings = ()
    ) -> None:
        """A fit is done and used `num_used` of its clusters. Telling it again changes nothing."""
        self.told += 1
        if changes:
            self._changed_fits.add(FitTask(num_clusters=num_clusters, repeat=repeat, changes=changes))
        elif lower:
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
        known, distances = self._judged.get(decision.trial, (None, {}))
        # What the last stretch measures says nothing of how the search's trials compared.
        if known != "completed":
            if report.distance is not None and not report.collapsed:
                distances[report.rung] = report.distance
            self._judged[decision.trial] = decision.status, distances
        if decision.status == "waiting":
            self._waiting_trials.add(decision.trial)
            return
        self._waiting_trials.discard(decision.trial)
        if decision.status == "running":
            return
        num_clusters, seed, proposal = read_trial_name(decision.trial)
        full = self._full.setdefault((num_clusters, proposal), {}) if num_clusters is not None else {}
        if seed in full:
            # It had come to the full budget before, so this is the end of its last stretch.
            self._ended.add(f"{decision.trial}-final")
            return
        if decision.status == "completed":
            full[seed] = report.distance
        self._ended.add(decision.trial)

    def tell_refinement(self, wave: int, order: tuple[int, ...]) -> None:
        """The C of a refinement that is on record, as `Field.tell_refinement`."""
        self.told += 1
        self._field.tell_refinement(wave, order)

    def tell_proposal(self, proposal: Proposal) -> None:
        """A proposal that is on record, as `Field.tell_proposal`."""
        self.told += 1
        self._field.tell_proposal(proposal)

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
            # Any C of the grid may yet be proposed.
            wanted = {*self.candidates, *self.grid} if self.goal.kind == "search" else set()
        fits = {task for task in self._asked if isinstance(task, FitTask) and not task.lower and not task.changes}
        return {task.name for task in fits if task.num_clusters not in wanted and not self._is_fitted(task)}

    @property
    def blocked_by(self) -> FitTask | None:
        """The failed fit that the search for the bound has come to wait for; None while it can go on."""
        waiting = self._waiting if self.goal.kind in ("bound", "search") else None
        return waiting if waiting is not None and waiting.name in self._ended else None

    @property
    def candidates(self) -> tuple[int, ...] | None:
        """The C to train in their order, refinements and proposals so far included, each once; None while the bound is
        unknown, empty where no C passes it."""
        waves = self.waves
        return None if waves is None else tuple(dict.fromkeys(task.num_clusters for wave in waves for task in wave))

    @property
    def grid(self) -> tuple[int, ...] | None:
        """The C of the first pass in their order, which proposals are made of; as `candidates` else."""
        result = self.bound
        if result is None:
            return None
        if self._first is None:
            self._first = ()
            if result.c_max is not None:
                bracket = self._search.bracket(result.c_max)
                self._first = candidates(self._grid_config, result.c_max, self._seed, bracket)
        return self._first

    @property
    def waves(self) -> tuple[tuple[TrainTask, ...], ...] | None:
        """The candidates' trials, as `Field.waves`. None while the bound is unknown."""
        if self.grid is None:
            return None
        if self._waves[0] != self.told:
            self._waves = (self.told, self._field.waves(self.grid, self._outcome))
        return self._waves[1]

    @property
    def proposals(self) -> tuple[Proposal, ...]:
        """Those made so far; none where C is searched alone, or while the bound is unknown."""
        return () if self.waves is None else tuple(self._field.proposals)

    def _outcome(self, task: TrainTask) -> Outcome | None:
        """How a candidate's trial ended; None where it has not."""
        if not self._is_over(task):
            return None
        status, distances = self._judged.get(task.name, ("failed", {}))
        # What was to go on and is over all the same has failed.
        status = "failed" if status in ("running", "waiting") else status
        return Outcome(status=status, distances=tuple(sorted(distances.items())))

    @property
    def certain(self) -> tuple[int, ...]:
        """The C that will be candidates wherever C_max comes to lie, and so may train before it is known.

        They come in an order of their own: with the bound known, `candidates` has the order.
        """
        if self.goal.kind != "search":
            return ()
        if self.bound is not None:
            return self.candidates
        if self._grid_config.proposes:
            return ()
        possible = tuple(self._search.possible())
        if self._certain[0] != possible:
            brackets = {num_clusters: self._search.bracket(num_clusters) for num_clusters in possible}
            self._certain = possible, certain_candidates(self._grid_config, brackets, self._seed)
        return self._certain[1]

    @property
    def gone(self) -> frozenset[str]:
        """Names of the candidates' trials that ended without a decision, or can never start."""
        failed = (task for task in self._field_tasks if _fit_of(task.num_clusters, task.changes)[1] in self._ended)
        return frozenset(self._ended | {task.name for task in failed})

    @property
    def winner(self) -> TrainTask | None:
        """The trial with the best model so far, None where none has come to the full budget."""
        found = winner(self._full, [_candidate(task) for task in self._finalists])
        if found is None:
            return None
        return next(replace(task, seed=found[1]) for task in self._finalists if _candidate(task) == found[0])

    @property
    def trials(self) -> tuple[TrainTask, ...]:
        """All that a search trains as far as it is known now, in the order in which it is begun."""
        if self._known[0] != self.told:
            self._known = (self.told, self._all_trials())
        return self._known[1]

    @property
    def num_open_trials(self) -> int:
        """How many of the trials that are known now have not begun."""
        if self.goal.kind != "search":
            return 0
        return sum(task not in self._asked and not self._is_over(task) for task in self.trials)

    def _all_trials(self) -> tuple[TrainTask, ...]:
        waves = self.waves
        if waves is not None and not any(waves):
            return ()
        tasks = [TrainTask(num_clusters=c) for c in (None, *(self.certain if waves is None else ()))]
        tasks += self._field_tasks
        if waves is None or not all(self._is_over(task) for task in tasks[1:]):
            return tuple(tasks)
        again = range(1, self.finals.seeds)
        tasks += [replace(task, seed=seed) for task in self._finalists for seed in again]
        best = self.winner
        if best is not None and self.finals.budget_kimg is not None and all(self._is_over(task) for task in tasks[1:]):
            tasks.append(replace(best, final=True))
        return tuple(tasks)

    @property
    def _field_tasks(self) -> tuple[TrainTask, ...]:
        """The candidates' trials as far as they are known."""
        return tuple(task for wave in self.waves or () for task in wave)

    @property
    def _finalists(self) -> tuple[TrainTask, ...]:
        known = {_candidate(task): task for task in self._field_tasks}
        found = {one: full[0] for one, full in self._full.items() if one in known and 0 in full}
        return tuple(known[one] for one in finalists(found, self.finals.finalists))

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
        return task.name in self._ended or _fit_of(task.num_clusters, task.changes)[1] in self._ended

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
            steps = [step for task in self.trials for step in self._steps(task)]
            # A trial that waits for its fit keeps a whole place idle; a fit takes a part of one, for a short while.
            yield from sorted(steps, key=lambda step: isinstance(step, TrainTask))

    def _steps(self, task: TrainTask) -> Iterator[Task]:
        """What a trial needs next, if it is neither under way nor over nor waiting."""
        fit, _ = _fit_of(task.num_clusters, task.changes)
        if fit is not None and not self._is_fitted(fit):
            yield from self._new(fit)
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
        if task.changes:
            return task in self._changed_fits
        if task.lower:
            return task in self._lower_used
        return task.repeat in self._fitted.get(task.num_clusters, {})


@cache
def _fit_of(num_clusters: int | None, changes: Settings) -> tuple[FitTask | None, str | None]:
    """The fit that such trials are conditioned on, and its name: remembered, because each is asked for very often."""
    fit = TrainTask(num_clusters=num_clusters, changes=changes).fit
    return fit, None if fit is None else fit.name


def _candidate(task: TrainTask) -> tuple[int | None, int]:
    return task.num_clusters, task.proposal
