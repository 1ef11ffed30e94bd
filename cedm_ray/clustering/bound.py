"""The search for C_max, the largest number of clusters that the data still fills.

r_C = C^u / C is the share of the C clusters that hold at least one image, and C_max the highest C with r_C > alpha
(section 3.3 of the paper). The search asks and is told; it fits nothing and knows no clock:

1. climb: c_start, then doublings, until `patience` of them in a row fail;
2. descend: where nothing passed, halve c_start down to 2 until something passes;
3. refine: a grid between the last passing C and the first failing one above it, from the top, until one passes.

r_C is noisy and need not fall with C. Nothing here infers one answer from another: C_max is the highest C among those
that were answered. The grid is walked from the top because what lies below a passing C cannot change that.
"""

import bisect
from collections import Counter
from dataclasses import dataclass
from fractions import Fraction
from statistics import median_low

from pydantic import Field

from cedm_ray.config import Config

_GRID_PARTS = 8


class BoundConfig(Config):
    """How C_max is searched for.

    alpha: a C passes if its utilization is strictly above this, in (0, 1). c_start: the first C, at least 2.
    grid_step: distance of the fine grid's points; None = an eighth of the bracket, rounded up, so at most 7 points.
    patience: failing doublings in a row that end the climb, at least 1. c_limit: no C above it is asked; None = the
    number of images. repeats: fits (seeds) for each C, at least 1; their median counts.
    """

    alpha: float = Field(default=0.96, gt=0, lt=1)
    c_start: int = Field(default=50, ge=2)
    grid_step: int | None = Field(default=None, ge=1)
    patience: int = Field(default=1, ge=1)
    c_limit: int | None = Field(default=None, ge=2)
    repeats: int = Field(default=1, ge=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class BoundPoint:
    """One answered C.

    num_used: C^u; the median over the repeats, the lower middle one of an even number. utilization: num_used /
    num_clusters. passed: utilization > alpha, exactly. spread: largest minus smallest utilization over the repeats;
    None with a single one. told: C^u of every repeat, in the order in which they were told.
    """

    num_clusters: int
    num_used: int
    utilization: float
    passed: bool
    spread: float | None
    told: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class BoundResult:
    """What the search found.

    c_max: the highest answered C that passes; None if none does. alpha: the threshold. censored: the highest C that
    may be asked passed, so C_max is c_max or more. reason: one sentence for people. points: every answered C, in the
    order in which the answers came.
    """

    c_max: int | None
    alpha: float
    censored: bool
    reason: str
    points: tuple[BoundPoint, ...]


class UpperBoundSearch:
    """Ask which C to fit, tell how many clusters each used, until there is a result.

    What is asked next depends on the answers alone, and not on who asked for them or in which order they came: a
    resumed study tells its records to a fresh search and goes on.
    """

    def __init__(self, config: BoundConfig, num_images: int) -> None:
        """num_images: N, at least 2; no C above it is asked."""
        if num_images < 2:
            raise ValueError(f"num_images must be at least 2, got {num_images}")
        self._config = config
        self._num_images = num_images
        self._limit = min(num_images, config.c_limit or num_images)
        start = min(config.c_start, self._limit)
        self._halvings = _halvings(start)
        self._doublings = _doublings(start, self._limit)
        self._asked: Counter[int] = Counter()
        self._told: dict[int, list[int]] = {}

    def ask(self, slots: int = 1) -> list[int]:
        """Up to `slots` further C to fit now, each C `repeats` times in all; empty if there is nothing to add.

        With answers outstanding, or more than one slot, the search asks ahead: the doublings that follow if those
        before them pass, then the further halvings, then the rest of the grid. Nothing is asked a second time.
        """
        if slots < 1:
            raise ValueError(f"slots must be at least 1, got {slots}")
        questions: list[int] = []
        for num_clusters in self._wanted():
            started = max(self._asked[num_clusters], len(self._told.get(num_clusters, ())))
            missing = min(self._config.repeats - started, slots - len(questions))
            questions += [num_clusters] * missing
        for num_clusters in questions:
            # Answers that came unasked (a resumed study's records) stand for questions too.
            told = len(self._told.get(num_clusters, ()))
            self._asked[num_clusters] = max(self._asked[num_clusters], told) + 1
        return questions

    def tell(self, num_clusters: int, num_used: int) -> None:
        """One fit's answer: `num_used` of `num_clusters` clusters hold an image. It need not have been asked."""
        if not 2 <= num_clusters <= self._num_images:
            raise ValueError(f"num_clusters must lie in [2, N] = [2, {self._num_images}], got {num_clusters}")
        if not 1 <= num_used <= num_clusters:
            raise ValueError(f"num_used must lie in [1, num_clusters] = [1, {num_clusters}], got {num_used}")
        self._told.setdefault(num_clusters, []).append(num_used)

    def unneeded(self) -> list[int]:
        """The C that were asked and not yet answered, and whose answer can no longer matter, ascending."""
        wanted = set(self._wanted())
        return sorted(
            num_clusters
            for num_clusters, asked in self._asked.items()
            if num_clusters not in wanted and len(self._told.get(num_clusters, ())) < asked
        )

    def result(self) -> BoundResult | None:
        """The result, or None while an answer is missing that could change it."""
        if self._wanted():
            return None
        points = tuple(self._points())
        best = self._best()
        censored = best is not None and best >= self._doublings[-1]
        reason = self._explain(points, best, censored)
        return BoundResult(c_max=best, alpha=self._config.alpha, censored=censored, reason=reason, points=points)

    def possible(self) -> list[int]:
        """Every C that may still turn out to be C_max, ascending; none while nothing has passed.

        It shrinks as answers come in, and holds C_max alone once that is known.
        """
        best, wanted = self._best(), self._wanted()
        if best is None or not wanted:
            return [] if best is None else [best]
        if wanted[0] not in self._doublings:
            return [best, *sorted(wanted)]
        # The climb goes on: any doubling above may pass, and any point of the grid above one that does.
        rungs = [best, *wanted]
        return sorted({*rungs, *(c for rung in rungs for c in self._grid_above(rung) if not self._answered(c))})

    def bracket(self, num_clusters: int) -> tuple[int, int]:
        """The two neighbors, among the C of the climb and of the descent, that C lies between, the lower one included;
        twice the highest of all for that and what lies above."""
        rungs = sorted(self._halvings) + self._doublings
        position = bisect.bisect_right(rungs, num_clusters)
        low = rungs[max(0, position - 1)]
        return low, rungs[position] if position < len(rungs) else low

    def _wanted(self) -> list[int]:
        """Every unanswered C that may still matter, the most urgent first; empty when the search is over."""
        best = self._best()
        above = [c for c in self._doublings if best is None or c > best]
        if not all(self._answered(c) for c in above[: self._config.patience]):
            return [c for c in above if not self._answered(c)]
        if best is None:
            # All of the climb failed that had to be asked: downwards, until something passes.
            return [c for c in self._halvings if not self._answered(c)]
        return [c for c in self._grid_above(best) if not self._answered(c)]

    def _grid_above(self, best: int) -> list[int]:
        """The grid's points above `best`, descending."""
        rungs = sorted(self._halvings) + self._doublings
        position = bisect.bisect_right(rungs, best)
        if position == len(rungs):
            return []
        low, high = rungs[position - 1], rungs[position]
        step = self._config.grid_step or max(1, -(-(high - low) // _GRID_PARTS))
        return [c for c in reversed(range(low + step, high, step)) if c > best]

    def _answered(self, num_clusters: int) -> bool:
        return len(self._told.get(num_clusters, ())) >= self._config.repeats

    def _passed(self, num_clusters: int) -> bool:
        return self._answered(num_clusters) and passes(
            median_low(self._told[num_clusters]), num_clusters, self._config.alpha
        )

    def _best(self) -> int | None:
        return max((c for c in self._told if self._passed(c)), default=None)

    def _points(self) -> list[BoundPoint]:
        points = []
        for num_clusters, told in self._told.items():
            if not self._answered(num_clusters):
                continue
            used = median_low(told)
            spread = (max(told) - min(told)) / num_clusters if len(told) > 1 else None
            points.append(
                BoundPoint(
                    num_clusters=num_clusters,
                    num_used=used,
                    utilization=used / num_clusters,
                    passed=self._passed(num_clusters),
                    spread=spread,
                    told=tuple(told),
                )
            )
        return points

    def _explain(self, points: tuple[BoundPoint, ...], best: int | None, censored: bool) -> str:
        by_size = {point.num_clusters: point for point in points}
        failing = min((c for c in by_size if best is None or c > best), default=None)
        verdict = ""
        if failing is not None:
            point = by_size[failing]
            verdict = f"{failing} uses {point.num_used} ({point.utilization:.3f} <= {self._config.alpha})"
        if best is None:
            return f"No C passed: even C = {verdict}"
        used = f"{by_size[best].num_used} of {best} used"
        if len(told := by_size[best].told) > 1:
            used += f" (median of {len(told)} fits, {min(told) / best:.3f} to {max(told) / best:.3f})"
        if censored:
            return f"C_max is at least {best}: {used}, and no larger C may be asked"
        return f"C_max = {best}: {used}; {verdict}"


def passes(num_used: int, num_clusters: int, alpha: float) -> bool:
    """Whether r_C = num_used / num_clusters > alpha, strictly and exactly."""
    # The threshold that was written down: 0.96 is 24/25, which no binary fraction is.
    return num_used > Fraction(str(alpha)) * num_clusters


def _doublings(start: int, limit: int) -> list[int]:
    """start, 2 start, 4 start, ... and `limit` itself as the last."""
    rungs = []
    while start < limit:
        rungs.append(start)
        start *= 2
    return [*rungs, limit]


def _halvings(start: int) -> list[int]:
    """start / 2, start / 4, ..., rounded down, not below 2, descending."""
    rungs = []
    while start // 2 >= 2:
        start //= 2
        rungs.append(start)
    if start > 2:
        rungs.append(2)
    return rungs
