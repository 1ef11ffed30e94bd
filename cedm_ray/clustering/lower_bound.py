"""The lower end of C: how many clusters TEMI with gamma = 1 keeps of far too many.

With gamma = 1 nothing pushes TEMI to use all clusters, and C^u hardly depends on C once C is far too large: the paper
offers it as a lower bound of C (appendix C.2, Table 4), with a standard deviation of some 6 clusters over C and
features. It is told and never asked for: the search between both ends stays [2, C_max], and this says where in it the
data begin to need clusters.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev

from pydantic import Field, field_validator

from cedm_ray.config import Config


class LowerBoundConfig(Config):
    """Which fits with gamma = 1 are made.

    num_clusters: overestimates of C, each at least 2 and listed once; those above the number of images are left out;
    empty = the lower end is not looked for. repeats: fits (seeds) of each C, at least 1.
    """

    num_clusters: tuple[int, ...] = ()
    repeats: int = Field(default=1, ge=1)

    @field_validator("num_clusters")
    @classmethod
    def _usable(cls, num_clusters: tuple[int, ...]) -> tuple[int, ...]:
        if num_clusters and (min(num_clusters) < 2 or len(set(num_clusters)) < len(num_clusters)):
            raise ValueError("list each C once, at least 2")
        return num_clusters


@dataclass(frozen=True, slots=True, kw_only=True)
class LowerBoundResult:
    """The lower end and how far it can be trusted.

    c_min: mean C^u over all fits, rounded to the nearest whole number. deviation: sample standard deviation of C^u over
    all fits; None with a single one. num_used: C^u of every fit by its C, seeds in order. reason: one sentence.
    """

    c_min: int
    deviation: float | None
    num_used: dict[int, tuple[int, ...]]
    reason: str


def lower_bound(told: Mapping[int, Sequence[int]]) -> LowerBoundResult | None:
    """The result of the fits told so far, C^u of each fit by its C; None where there is none yet."""
    used = [value for values in told.values() for value in values]
    if not used:
        return None
    deviation = stdev(used) if len(used) > 1 else None
    spread = "" if deviation is None else f" +- {deviation:.1f}"
    sizes = ", ".join(str(num_clusters) for num_clusters in sorted(told))
    fits = f"{len(used)} fits" if len(used) > 1 else "one fit"
    return LowerBoundResult(
        c_min=round(mean(used)),
        deviation=deviation,
        num_used={num_clusters: tuple(values) for num_clusters, values in sorted(told.items())},
        reason=f"Lower end: gamma = 1 keeps {mean(used):.1f}{spread} clusters ({fits} at C = {sizes})",
    )
