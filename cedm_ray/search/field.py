"""The trials that a search tries, the baseline and what follows them apart: the grid's C and its refinements, or
proposals."""

from collections.abc import Callable, Mapping
from typing import Any

from cedm_ray.search.candidates import CandidatesConfig, refined
from cedm_ray.search.finals import finalists
from cedm_ray.search.goals import Proposal, TrainTask
from cedm_ray.search.proposals import Proposer
from cedm_ray.search.results import Outcome


class Field:
    """All that are judged together, as far as they are known.

    config: of the space's candidates. seed: of the space. own: the space's own values of the settings that are
    searched besides C, by path; None where C is searched alone.

    proposals: made so far, those that it was told first. What it makes is a function of what it was told and of how
    trials ended.
    """

    def __init__(self, config: CandidatesConfig, seed: int, own: Mapping[str, Any] | None = None) -> None:
        self._config, self._seed, self._own = config, seed, own or {}
        self._refinements: dict[int, tuple[int, ...]] = {}
        self.proposals: list[Proposal] = []
        self._proposer: Proposer | None = None

    def tell_refinement(self, wave: int, order: tuple[int, ...]) -> None:
        """The C of a refinement, from 1, that is on record: it stays what it was, even if a failed trial before it is
        tried again and would change it."""
        self._refinements[wave] = order

    def tell_proposal(self, proposal: Proposal) -> None:
        """A proposal that is on record, in the order of their numbers; it stays as a refinement does."""
        self.proposals.append(proposal)

    def waves(
        self, grid: tuple[int, ...], outcome: Callable[[TrainTask], Outcome | None]
    ) -> tuple[tuple[TrainTask, ...], ...]:
        """The trials: those that begin at once, and those that came by what others measured, by refinement or one by
        one. grid: the C of the first pass in their order. outcome: how a trial ended; None = it has not.
        """
        if not grid:
            return ((),)
        if self._config.proposes:
            return self._proposed(grid, outcome)
        waves = [_tasks(grid)]
        while len(waves) <= self._config.refine and (found := self._refinement(waves, outcome)):
            waves.append(_tasks(found))
        return tuple(waves)

    def _refinement(
        self, waves: list[tuple[TrainTask, ...]], outcome: Callable[[TrainTask], Outcome | None]
    ) -> tuple[int, ...]:
        """The next refinement; empty where none is due or none is left."""
        if len(waves) in self._refinements:
            return self._refinements[len(waves)]
        ends = {task.num_clusters: outcome(task) for wave in waves for task in wave}
        if None in ends.values():
            return ()
        done = {c: end.distances[-1][1] for c, end in ends.items() if end.status == "completed"}
        return refined(ends, *finalists(done, 1)) if done else ()

    def _proposed(
        self, grid: tuple[int, ...], outcome: Callable[[TrainTask], Outcome | None]
    ) -> tuple[tuple[TrainTask, ...], ...]:
        if self._proposer is None:
            self._proposer = Proposer(self._config, grid, self._seed, self._own)
        by_others = self._config.proposals == "tpe"
        ahead = self._config.ahead if by_others else self._proposer.total
        while (count := len(self.proposals)) < self._proposer.total:
            known = max(0, count + 1 - ahead)
            ends = [outcome(one.task) for one in self.proposals[:known]]
            if None in ends:
                break
            # Whatever has ended beyond these is not looked at, so that no proposal depends on who was quick.
            self.proposals.append(self._proposer.propose(self.proposals, [*ends, *[None] * (count - known)]))
        tasks = [proposal.task for proposal in self.proposals]
        return (tuple(tasks[:ahead]), *((task,) for task in tasks[ahead:]))


def _tasks(grid: tuple[int, ...]) -> tuple[TrainTask, ...]:
    return tuple(TrainTask(num_clusters=num_clusters) for num_clusters in grid)
