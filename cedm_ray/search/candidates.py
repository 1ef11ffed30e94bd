"""Which C are trained once the bound is known, and in what order."""

import math
import random
from collections.abc import Collection, Iterable
from itertools import pairwise

from pydantic import Field, field_validator

from cedm_ray.config import Config
from cedm_ray.errors import ConfigurationError


class CandidatesConfig(Config):
    """The grid of C inside [low, C_max].

    explicit: the C to train; those above C_max are left out. None: `count` values spaced evenly in log C.
    low: the smallest C of the spaced grid, at least 2. count: how many, at least 1. refine: how many times the search
    then looks more finely around the best C so far, at the middles (in log C) towards its neighbors on both sides.
    """

    explicit: tuple[int, ...] | None = None
    low: int = Field(default=2, ge=2)
    count: int = Field(default=6, ge=1)
    refine: int = Field(default=0, ge=0)

    @field_validator("explicit")
    @classmethod
    def _usable(cls, explicit: tuple[int, ...] | None) -> tuple[int, ...] | None:
        if explicit is not None and (not explicit or min(explicit) < 2 or len(set(explicit)) < len(explicit)):
            raise ValueError("list at least one C, each at least 2 and once")
        return explicit


def candidates(config: CandidatesConfig, c_max: int, seed: int) -> tuple[int, ...]:
    """The C to train, both ends of [low, c_max] included (the paper's bounded grid, Sec. 3.3), shuffled by `seed`.

    Raises ConfigurationError where nothing of the grid lies within the bound.
    """
    if config.explicit is not None:
        grid: Iterable[int] = [c for c in config.explicit if c <= c_max]
    elif config.low > c_max:
        grid = []
    elif config.count == 1:
        grid = [c_max]
    else:
        low, high = math.log(config.low), math.log(c_max)
        grid = {round(math.exp(low + (high - low) * i / (config.count - 1))) for i in range(config.count)}
    order = sorted(grid)
    if not order:
        what = f"none of candidates.explicit {list(config.explicit)}" if config.explicit else f"no C >= {config.low}"
        mend = "begin another study whose `candidates` reach lower"
        raise ConfigurationError(f"{what} lies within C_max = {c_max}", mend=mend)
    # Shuffled, because under ASHA the first trial at a rung always goes on: a rising order would favor small C.
    random.Random(seed).shuffle(order)
    return tuple(order)


def refined(tried: Collection[int], best: int) -> tuple[int, ...]:
    """The C halfway in log C from the best of those tried to its neighbors, at most one on each side, rising.

    This narrows the bracket of a curve with one minimum. Empty where no C lies in between.
    """
    order = sorted(tried)
    place = order.index(best)
    sides = [(a, b) for a, b in pairwise(order[max(0, place - 1) : place + 2])]
    return tuple(middle for a, b in sides if a < (middle := round(math.sqrt(a * b))) < b)
