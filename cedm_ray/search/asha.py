"""Rung levels and the successive-halving rule of ASHA (Li et al. 2018, arXiv 1810.05934): pure and replayable.

The stopping variant: a trial that reports at a rung goes on unless its distance is above the rung's cutoff, the
100/reduction_factor percentile of the distances that others reported there before it. The first at a rung always goes
on. Decisions depend on the order in which reports arrive; that order is recorded, and the same records give the same
decisions. Differences from Ray Tune's AsyncHyperBand are on purpose: a distance that is not finite ends the trial, a
collapsed model ends it too, and the unconditional baseline and the trial on features, which are there to compare with,
are measured but neither stopped nor counted.
"""

from collections.abc import Iterable
from itertools import pairwise

import numpy as np
from pydantic import Field, field_validator

from cedm_ray.config import Config
from cedm_ray.search.results import FEATURES, UNCONDITIONAL, Decision, TrialReport


class AshaConfig(Config):
    """Where trials are measured, and how many survive.

    rungs_kimg: thousands of training images at which a trial is evaluated, rising; the last is the full budget.
    reduction_factor: about one in so many trials survives a rung; above 1.
    """

    rungs_kimg: tuple[float, ...] = Field(default=(15_000, 40_000, 100_000), min_length=1)
    reduction_factor: float = Field(default=3, gt=1)

    @field_validator("rungs_kimg")
    @classmethod
    def _rising(cls, rungs: tuple[float, ...]) -> tuple[float, ...]:
        if rungs[0] <= 0 or any(a >= b for a, b in pairwise(rungs)):
            raise ValueError("the rungs must be above 0 and rise")
        return rungs


class Asha:
    """The judge of one search. It holds the distances reported at each rung and the decisions taken, nothing else."""

    def __init__(self, config: AshaConfig) -> None:
        self.config = config
        self._distances: list[dict[str, float]] = [{} for _ in config.rungs_kimg]
        self._decisions: dict[tuple[str, int], Decision] = {}

    def decide(self, report: TrialReport) -> Decision:
        """Judge a report. The same (trial, rung) again gets the decision that was already taken.

        Raises ValueError for a rung that the configuration does not have.
        """
        if not 0 <= report.rung < len(self.config.rungs_kimg):
            raise ValueError(f"rung must lie in [0, {len(self.config.rungs_kimg)}), got {report.rung}")
        key = (report.trial, report.rung)
        if key not in self._decisions:
            self._decisions[key] = self._judge(report)
        return self._decisions[key]

    def replay(self, reports: Iterable[TrialReport], decisions: Iterable[Decision]) -> None:
        """Take over what an earlier driver decided: `decisions` in any order, each with its report among `reports`.

        Raises ValueError where a recorded decision is not the one that these records give: the rule or the
        configuration has changed, or a record is missing.
        """
        found = {(report.trial, report.rung): report for report in reports}
        for decision in sorted(decisions, key=lambda decision: decision.sequence):
            key = (decision.trial, decision.rung)
            if key not in found:
                raise ValueError(f"decision {decision.sequence} on {decision.trial} has no report at its rung")
            again = self.decide(found[key])
            if again != decision:
                raise ValueError(
                    f"decision {decision.sequence} on {decision.trial} at rung {decision.rung} was "
                    f"{decision.status!r} and is {again.status!r} from the same records"
                )

    @property
    def decisions(self) -> tuple[Decision, ...]:
        """All decisions in the order in which they were taken."""
        return tuple(sorted(self._decisions.values(), key=lambda decision: decision.sequence))

    def _judge(self, report: TrialReport) -> Decision:
        level = f"{self.config.rungs_kimg[report.rung]:g} kimg"
        distance, cutoff = report.distance, None
        if distance is None or not np.isfinite(distance) or distance < 0:
            status, reason = "diverged", f"diverged by {level}: its distance is not a finite number"
        elif report.collapsed:
            status, reason = "collapsed", f"collapsed by {level}: its images are all alike"
        elif report.rung == len(self.config.rungs_kimg) - 1:
            status, reason = "completed", f"trained to {level}: {distance:.4g}"
        elif report.trial == UNCONDITIONAL:
            status, reason = "running", f"goes on at {level}: {distance:.4g}, the baseline is never stopped"
        elif report.trial == FEATURES:
            status, reason = "running", f"goes on at {level}: {distance:.4g}, a comparison is never stopped"
        else:
            cutoff = self._cutoff(report.rung)
            self._distances[report.rung][report.trial] = distance
            if cutoff is None:
                status, reason = "running", f"goes on at {level}: {distance:.4g}, the first at this rung"
            else:
                status, verb = ("running", "goes on") if distance <= cutoff else ("stopped", "stopped")
                reason = f"{verb} at {level}: {distance:.4g}, rung cutoff {cutoff:.4g}"
        return Decision(
            sequence=len(self._decisions) + 1,
            trial=report.trial,
            rung=report.rung,
            images_seen=report.images_seen,
            status=status,
            cutoff=cutoff,
            reason=reason,
        )

    def _cutoff(self, rung: int) -> float | None:
        """The distance above which a trial is stopped at a rung; None while nobody has been there."""
        earlier = list(self._distances[rung].values())
        return float(np.percentile(earlier, 100 / self.config.reduction_factor)) if earlier else None
