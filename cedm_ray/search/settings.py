"""Settings that are searched besides C: which may be, and the values that they may have.

A setting is named by its path in the search space, such as `training.learning_rate`.
"""

import itertools
import math
import random
from collections.abc import Iterable, Mapping
from typing import Annotated, Any

from pydantic import Discriminator, Tag, model_validator

from cedm_ray.config import Config

Settings = tuple[tuple[str, Any], ...]
"""Values by their paths, in the order of the paths: as a dict, but with an order and a hash."""

SECTIONS = ("clustering", "network", "edm", "augmentation", "training", "sampling")
"""The sections of a space whose settings may be searched; they say what a trial is, and not how trials are compared."""

MOST_CORNERS = 2048
"""How many combinations of smallest, largest and listed values a space may have, all of which are checked."""

METHOD, KMEANS = "clustering.method", "kmeans"
"""The one setting that is no key of a space, whose bound is always TEMI's: how the trial's images are grouped."""
METHODS = ("temi", KMEANS)
WITHOUT_C = {
    "labels": "its groups are the labels, so there is no C to search, and a search looks at no labels",
    "clip": "its groups are the classes that somebody names, so there is no C to search, and a search is told no names",
}
"""Why the other ways of `cedm-ray cluster` to group images are none of these."""

EXTRACTOR = "features.extractor"
"""What the trial's clusters are found in the features of."""

CLUSTERING = "clustering."
"""What the paths of TEMI's settings begin with."""

# What changes no result, or is not a trial's own.
_REFUSED = {
    "clustering.preset": "its values are settings of their own",
    "clustering.num_neighbors": "all fits of a study share its neighbors",
    "clustering.head_group": "it changes no result",
    "clustering.memory_budget_gib": "it changes no result",
    "clustering.compile": "it changes no result",
    "training.microbatch": "it changes no result",
    "training.compile": "it changes no result",
    "sampling.batch_size": "it changes no result",
    "sampling.compile": "it changes no result",
}

DIGITS = 4
"""Of a number that is drawn from a range, so that people can read it and write it down."""


class Range(Config):
    """Values from low to high, both included, evenly spread; with `log` evenly in their logarithm. Whole numbers where
    the setting is a whole number, else drawn to four digits."""

    low: int | float
    high: int | float
    log: bool = False

    @model_validator(mode="after")
    def _in_order(self) -> "Range":
        if self.low >= self.high:
            raise ValueError(f"low must lie below high {self.high:g}, got {self.low:g}")
        if self.log and self.low <= 0:
            raise ValueError(f"low must be above 0 for a range in log, got {self.low:g}")
        return self

    def draw(self, dice: random.Random, *, whole: bool, digits: int = DIGITS) -> float:
        """A value. dice: what it follows from, and nothing else. whole: whether it must be a whole number. digits: of
        any other."""
        if whole and not self.log:
            return dice.randint(math.ceil(self.low), math.floor(self.high))
        low, high = self._spread
        value = dice.uniform(low, high)
        return self.rounded(math.exp(value) if self.log else value, whole=whole, digits=digits)

    def at(self, share: float, *, whole: bool, digits: int = DIGITS) -> float:
        """The value that so much of the range lies below, share in [0, 1]."""
        low, high = self._spread
        value = low + share * (high - low)
        return self.rounded(math.exp(value) if self.log else value, whole=whole, digits=digits)

    @property
    def _spread(self) -> tuple[float, float]:
        """The ends where values are evenly spread."""
        return (math.log(self.low), math.log(self.high)) if self.log else (self.low, self.high)

    def rounded(self, value: float, *, whole: bool, digits: int = DIGITS) -> float:
        """The value as it is used: whole, or to so many digits, and within the range all the same."""
        if whole:
            return min(max(round(value), math.ceil(self.low)), math.floor(self.high))
        return float(min(max(float(f"{value:.{digits}g}"), self.low), self.high))


Values = Annotated[
    Annotated[Range, Tag("range")] | Annotated[tuple[Any, ...], Tag("values")],
    Discriminator(
        lambda given: (
            "values" if isinstance(given, list | tuple) else "range" if isinstance(given, dict | Range) else None
        ),
        custom_error_type="values_or_range",
        custom_error_message="must be a list of values, or a range with low and high",
    ),
]
"""A range, or the values themselves."""


def frozen(values: Mapping[str, Any]) -> Settings:
    """Values by their paths with an order and a hash: lists become tuples."""
    return tuple((path, hashable(values[path])) for path in sorted(values))


def effective(settings: Settings) -> Settings:
    """Those settings that a trial depends on: one whose clusters are those of k-means knows nothing of TEMI's."""
    kmeans = (METHOD, KMEANS) in settings
    return tuple(
        (path, value) for path, value in settings if not kmeans or path == METHOD or not path.startswith(CLUSTERING)
    )


def of_clusterings(settings: Settings) -> Settings:
    """Those settings that a clustering depends on: k-means on nothing but the features."""
    return tuple(
        (path, value) for path, value in effective(settings) if path.startswith(CLUSTERING) or path == EXTRACTOR
    )


def differing(settings: Settings, own: Mapping[str, Any]) -> Settings:
    """Those settings whose values are not the space's own. own: by path."""
    return tuple((path, value) for path, value in settings if value != hashable(own[path]))


def is_whole(own: Any) -> bool:
    """Whether a setting is a whole number, by the space's own value of it."""
    return isinstance(own, int) and not isinstance(own, bool)


def why_not(path: str, space: Mapping[str, Any]) -> str | None:
    """Why a setting may not be searched, in words; None where it may. space: a whole search space as plain values."""
    if path in (METHOD, EXTRACTOR):
        return None
    section, _, name = path.partition(".")
    if section not in space or section not in SECTIONS:
        known = ", ".join(SECTIONS)
        return f"settings of {known}, and {EXTRACTOR}, may be searched"
    if not isinstance(space[section], Mapping) or name not in space[section]:
        free = [name for name in space[section] if f"{section}.{name}" not in _REFUSED]
        return f"{section} has no such setting; of its settings {', '.join(free)} may be searched"
    if path in _REFUSED:
        return _REFUSED[path]
    if path == "sampling.num_steps" and space["evaluation"]["num_steps"] is not None:
        return "rungs are measured with evaluation.num_steps, so it would change no distance"
    return None


def corners(also: Mapping[str, Values]) -> Iterable[dict[str, Any]]:
    """Every combination of the listed values and the ends of the ranges. Raises ValueError where there are too many."""
    choices = {
        path: values if isinstance(values, tuple) else (values.low, values.high) for path, values in also.items()
    }
    count = math.prod(map(len, choices.values()))
    if count > MOST_CORNERS:
        raise ValueError(
            f"the values of candidates.also have {count:,} combinations, and at most {MOST_CORNERS:,} can be "
            "checked; search fewer settings at once, or write ranges instead of lists"
        )
    return (dict(zip(choices, values, strict=True)) for values in itertools.product(*choices.values()))


def between(own: Mapping[str, Any], also: Mapping[str, Values]) -> Iterable[dict[str, Any]]:
    """For each range a value of it that is no end, with the first or lowest value of every other setting; none of a
    range of two whole numbers. own: the space's own values by path."""
    first = next(iter(corners(also)))
    for path, values in also.items():
        if isinstance(values, Range):
            inner = values.low + 1 if is_whole(own[path]) else (values.low + values.high) / 2
            if inner < values.high:
                yield first | {path: inner}


def shown(value: Any) -> str:
    """A value as tables show it: what has no number in it as a space is written, null, true, false."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, tuple | list):
        return "[" + ", ".join(map(shown, value)) + "]"
    return f"{value:g}" if isinstance(value, float) else str(value)


def told(settings: Settings | Mapping[str, Any]) -> str:
    """Settings in one line, each by the last part of its path: `guidance 0.5, learning_rate 0.001`. Where two paths end
    alike, these are told whole."""
    values = dict(settings)
    names = last_words(values)
    return ", ".join(f"{names[path]} {shown(value)}" for path, value in values.items())


def last_words(paths: Iterable[str]) -> dict[str, str]:
    """What tables call settings, by path: the last part, or the whole path where two end alike."""
    ends = {path: path.rpartition(".")[2] for path in paths}
    return {path: path if list(ends.values()).count(end) > 1 else end for path, end in ends.items()}


def paths_of(trials: Iterable[Mapping[str, Any]]) -> list[str]:
    """The paths of all settings that some trial has, each once, in the order in which they come. trials: the settings
    of each, by path."""
    return list(dict.fromkeys(path for settings in trials for path in settings))


def cells(settings: Mapping[str, Any], paths: Iterable[str]) -> list[str | None]:
    """A trial's settings as a table shows them under those paths; None where it has no such setting."""
    return [shown(settings[path]) if path in settings else None for path in paths]


def hashable(value: Any) -> Any:
    """A value whose lists, inner ones too, are tuples."""
    return tuple(map(hashable, value)) if isinstance(value, list | tuple) else value
