"""Which C are trained once the bound is known, and in what order; and what is searched with them."""

import math
import random
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Literal

import numpy as np
from pydantic import Field, field_validator, model_validator

from cedm_ray.config import Config
from cedm_ray.errors import ConfigurationError
from cedm_ray.search.settings import Range, Values, hashable

DRAWN_FIRST = 10
"""Trials whose ends "tpe" must know before it proposes by them; until then it draws."""


class CandidatesConfig(Config):
    """The grid of C inside [low, C_max].

    explicit: the C to train; those above C_max are left out. None: `count` values spaced evenly in log C.
    low: the smallest C of the spaced grid, at least 2. count: how many, at least 1. early: all C of the spaced grid but
    the largest lie where they lie wherever C_max comes to be in its bracket, so that they are trained while the bound's
    fine grid still runs; the last step, to C_max, is then up to the root of two longer or shorter than the others.
    refine: how many times the search then looks more finely around the best C so far, at the middles (in log C) towards
    its neighbors on both sides. best_first: C of an earlier search, the best first; candidates are started in that
    order, those in between by the place that theirs comes to in log C. None: in an order drawn by the seed.

    also: settings that are searched with C, each by its path in the space (`training.learning_rate`), with a list of
    values or a range {low, high, log}; `clustering.method` too, a list of temi and kmeans. Empty: C alone. A trial is
    then one C of the grid with one value of each setting; the unconditional model keeps the space's own, and so does
    the search for the bound. proposals: which of them are tried. "grid": all, for which each has a list; "random":
    drawn by the seed; "tpe": drawn until it knows how ten of them ended, so the first ahead + 9 at least, then proposed
    by Optuna's tree-structured Parzen estimator from what others measured. It looks at no best_first. num_trials: how
    many, None = all of the grid. ahead: how many "tpe" proposes before the first of them must be over. So at most so
    many run at once, and a proposal follows from how the trials before that ended, whoever else may have been quick.
    """

    explicit: tuple[int, ...] | None = None
    low: int = Field(default=2, ge=2)
    count: int = Field(default=6, ge=1)
    early: bool = False
    refine: int = Field(default=0, ge=0)
    best_first: tuple[int, ...] | None = None
    also: dict[str, Values] = Field(default_factory=dict)
    proposals: Literal["grid", "random", "tpe"] = "grid"
    num_trials: int | None = Field(default=None, ge=1)
    ahead: int = Field(default=8, ge=1)

    @field_validator("explicit", "best_first")
    @classmethod
    def _usable(cls, explicit: tuple[int, ...] | None) -> tuple[int, ...] | None:
        if explicit is not None and (not explicit or min(explicit) < 2 or len(set(explicit)) < len(explicit)):
            raise ValueError("list at least one C, each at least 2 and once")
        return explicit

    @field_validator("also")
    @classmethod
    def _each_once(cls, also: dict[str, Values]) -> dict[str, Values]:
        for path, values in also.items():
            if isinstance(values, tuple) and (not values or any(values.count(value) > 1 for value in values)):
                raise ValueError(f"list at least one value of {path}, each once")
        return {path: hashable(values) for path, values in also.items()}

    @model_validator(mode="after")
    def _can_be_proposed(self) -> "CandidatesConfig":
        ranges = [path for path, values in self.also.items() if isinstance(values, Range)]
        if self.proposals == "grid" and ranges:
            raise ValueError(f"a grid has no ranges: list values of {', '.join(ranges)}, or let proposals be random")
        if self.proposals != "grid" and self.num_trials is None:
            raise ValueError(f"num_trials must say how many trials are proposed by {self.proposals}")
        if self.proposes and (self.early or self.refine):
            which = "early" if self.early else "refine"
            raise ValueError(f"{which} is for a search of C alone, without also, proposals and num_trials")
        return self

    def __hash__(self) -> int:
        """As other configurations have one: a dict has none."""
        return hash(self.model_dump_json())

    @property
    def drawn(self) -> int:
        """How many trials "tpe" draws before it proposes one by what others measured, where none fails; 0 of others."""
        return self.ahead + DRAWN_FIRST - 1 if self.proposals == "tpe" else 0

    @property
    def proposes(self) -> bool:
        """Whether trials are proposals, and not the C of the grid one by one."""
        return bool(self.also) or self.proposals != "grid" or self.num_trials is not None


def candidates(
    config: CandidatesConfig, c_max: int, seed: int, bracket: tuple[int, int] | None = None
) -> tuple[int, ...]:
    """The C to train, both ends of [low, c_max] included (the paper's bounded grid, Sec. 3.3), shuffled by `seed` or,
    where the configuration has an order of an earlier search, in that.

    bracket: the C of the climb that c_max lies between, which place the grid if config.early; None = not known.

    Raises ConfigurationError where nothing of the grid lies within the bound.
    """
    if config.explicit is not None:
        grid: Iterable[int] = [c for c in config.explicit if c <= c_max]
    elif config.low > c_max:
        grid = []
    elif config.count == 1:
        grid = [c_max]
    elif config.early and bracket is not None and config.low < bracket[0]:
        # Spaced as if C_max were the middle of the bracket.
        low, high = math.log(config.low), math.log(bracket[0] * bracket[1]) / 2
        steady = (round(math.exp(low + (high - low) * i / (config.count - 1))) for i in range(config.count - 1))
        grid = {c_max, *(c for c in steady if c <= bracket[0])}
    else:
        low, high = math.log(config.low), math.log(c_max)
        grid = {round(math.exp(low + (high - low) * i / (config.count - 1))) for i in range(config.count)}
    order = sorted(grid)
    if not order:
        what = f"none of candidates.explicit {list(config.explicit)}" if config.explicit else f"no C >= {config.low}"
        mend = "begin another study whose `candidates` reach lower"
        raise ConfigurationError(f"{what} lies within C_max = {c_max}", mend=mend)
    return _ordered(config, order, seed)


def certain_candidates(config: CandidatesConfig, possible: Mapping[int, tuple[int, int]], seed: int) -> tuple[int, ...]:
    """The C that are candidates whichever of `possible` comes to be C_max, shuffled by `seed`; none where none may be.

    possible: the bracket of every C that C_max may be. They can be trained before C_max is known. Of a spaced grid that
    is not `early` these are its smallest C alone, since the others move with C_max.
    """
    grids = []
    for c_max, bracket in possible.items():
        try:
            grids.append(set(candidates(config, c_max, seed, bracket)))
        except ConfigurationError:
            return ()
    return _ordered(config, sorted(set.intersection(*grids)) if grids else [], seed)


def refined(tried: Collection[int], best: int) -> tuple[int, ...]:
    """The C halfway in log C from the best of those tried to its neighbors, at most one on each side, rising.

    This narrows the bracket of a curve with one minimum. Empty where no C lies in between.
    """
    order = sorted(tried)
    place = order.index(best)
    sides = [(a, b) for a, b in pairwise(order[max(0, place - 1) : place + 2])]
    return tuple(middle for a, b in sides if a < (middle := round(math.sqrt(a * b))) < b)


def _ordered(config: CandidatesConfig, grid: list[int], seed: int) -> tuple[int, ...]:
    if config.best_first is not None and grid:
        return _ordered_by(config.best_first, grid)
    # Shuffled, because under ASHA the first trial at a rung always goes on: a rising order would favor small C.
    order = list(grid)
    random.Random(seed).shuffle(order)
    return tuple(order)


def _ordered_by(best_first: Sequence[int], grid: Sequence[int]) -> tuple[int, ...]:
    """The grid by the places that its C have in `best_first`, in between by interpolation in log C; outside, as the
    nearest. Of equal places the smaller C is first."""
    known = sorted(best_first)
    places = [best_first.index(c) for c in known]
    # Rounded, so that what is halfway is equal on every machine.
    found = np.interp(np.log(grid), np.log(known), places).round(9)
    return tuple(c for _, c in sorted(zip(found.tolist(), grid, strict=True)))
