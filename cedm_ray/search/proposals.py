"""Which trials are tried where more is searched than C: a grid, draws by the seed, or Optuna's proposals.

What is proposed is a function of the space, of the grid of C and of how earlier proposals ended, and of nothing else:
no state is kept from one proposal to the next, so a search that was interrupted goes on as if it had not been.
"""

import itertools
import math
import random
from collections.abc import Mapping, Sequence
from typing import Any

from cedm_ray.search.candidates import CandidatesConfig
from cedm_ray.search.goals import Proposal
from cedm_ray.search.results import Outcome
from cedm_ray.search.settings import (
    CLUSTERING,
    DIGITS,
    KMEANS,
    METHOD,
    METHODS,
    Range,
    Settings,
    differing,
    effective,
    frozen,
    is_whole,
)

_ATTEMPTS = 100
"""Draws that may fall on what was proposed before, until what is left is listed, or drawn to more digits."""

_MORE_DIGITS = 12


class Proposer:
    """Proposes the trials of one search.

    config: whose `proposes` is true. grid: the C inside the bound, in the order in which they would be started. seed:
    of the space. own: the space's own values of the settings that are searched, by path.

    total: how many trials it proposes in all, each once.
    """

    def __init__(self, config: CandidatesConfig, grid: Sequence[int], seed: int, own: Mapping[str, Any]) -> None:
        self._config, self._grid, self._seed, self._own = config, sorted(grid), seed, own
        self._whole = {path: is_whole(own[path]) for path in config.also}
        self.total = number_of_trials(config, len(grid), own)
        self._order: list[tuple[int, Settings]] = []
        if config.proposals == "grid":
            self._order = self._everything()
            random.Random(seed).shuffle(self._order)
        elif config.proposals == "random":
            for _ in range(self.total):
                self._order.append(self._new(self._order))
        if config.best_first is not None:
            place = {num_clusters: index for index, num_clusters in enumerate(grid)}
            self._order.sort(key=lambda point: place[point[0]])

    def propose(self, earlier: Sequence[Proposal], outcomes: Sequence[Outcome | None]) -> Proposal:
        """The next trial. earlier: all that were proposed before, and how each ended; None = it is not over, or that is
        not to be looked at."""
        number = len(earlier) + 1
        if self._order:
            num_clusters, settings = self._order[number - 1]
        else:
            num_clusters, settings = self._by_tpe(earlier, outcomes)
        changes = differing(settings, self._own)
        return Proposal(number=number, num_clusters=num_clusters, settings=settings, changes=changes)

    def _by_tpe(self, earlier: Sequence[Proposal], outcomes: Sequence[Outcome | None]) -> tuple[int, Settings]:
        # Here because Optuna takes a while to import.
        from cedm_ray.search.tpe import suggest

        tried = [(one.num_clusters, one.settings) for one in earlier]
        seed = self._dice(len(earlier) + 1, "tpe").getrandbits(32)
        found = suggest(self._grid, self._config.also, self._whole, list(zip(tried, outcomes, strict=True)), seed=seed)
        # What was tried would tell nothing new.
        return self._new(tried) if _trained(found) in map(_trained, tried) else found

    def _new(self, tried: Sequence[tuple[int, Settings]]) -> tuple[int, Settings]:
        """A draw that was not tried before."""
        known = set(map(_trained, tried))
        for attempt in range(_ATTEMPTS):
            found = self._draw(self._dice(len(tried) + 1, attempt), DIGITS)
            if _trained(found) not in known:
                return found
        last = self._dice(len(tried) + 1, "rest")
        if any(isinstance(values, Range) and not self._whole[path] for path, values in self._config.also.items()):
            # So narrow a range that few of its values have so few digits.
            return self._draw(last, _MORE_DIGITS)
        return last.choice([point for point in self._everything() if _trained(point) not in known])

    def _draw(self, dice: random.Random, digits: int) -> tuple[int, Settings]:
        num_clusters, found = dice.choice(self._grid), {}
        for path in sorted(self._config.also):
            values = self._config.also[path]
            if isinstance(values, Range):
                found[path] = values.draw(dice, whole=self._whole[path], digits=digits)
            else:
                found[path] = dice.choice(values)
        return num_clusters, frozen(found)

    def _dice(self, *words: object) -> random.Random:
        """Of their own for each purpose, so that no draw depends on how many came before."""
        return random.Random(" ".join(map(str, (self._seed, *words))))

    def _everything(self) -> list[tuple[int, Settings]]:
        """Every trial that there may be, where they can be listed; of those that train the same one the first."""
        # In the order of the paths: that of a file is lost in a study's record.
        choices = {path: _listed(self._config.also[path]) for path in sorted(self._config.also)}
        settings = [frozen(dict(zip(choices, values, strict=True))) for values in itertools.product(*choices.values())]
        points = [(num_clusters, values) for num_clusters in self._grid for values in settings]
        # Backwards, so that the first of them stays.
        first = {_trained(point): point for point in reversed(points)}
        return [point for point in points if first[_trained(point)] == point]


def number_of_trials(config: CandidatesConfig, num_grid: int, own: Mapping[str, Any]) -> int:
    """How many trials are proposed in all. num_grid: C of the grid. own: as `Proposer`."""
    sizes = {
        path: len(_listed(values)) if isinstance(values, tuple) or is_whole(own[path]) else math.inf
        for path, values in config.also.items()
    }
    sizes.pop(METHOD, None)
    of_temi = math.prod(sizes.pop(path) for path in config.also if path.startswith(CLUSTERING) and path in sizes)
    # With k-means they are all the same.
    clusterings = sum(1 if method == KMEANS else of_temi for method in config.also.get(METHOD, METHODS[:1]))
    everything = num_grid * clusterings * math.prod(sizes.values())
    return int(everything if config.num_trials is None else min(config.num_trials, everything))


def _trained(point: tuple[int, Settings]) -> tuple[int, Settings]:
    """What is trained for it: two points may differ in what says nothing."""
    num_clusters, settings = point
    return num_clusters, effective(settings)


def _listed(values: Range | tuple[Any, ...]) -> Sequence[Any]:
    """The values one by one; of a range, which is then of whole numbers."""
    return values if isinstance(values, tuple) else range(math.ceil(values.low), math.floor(values.high) + 1)
