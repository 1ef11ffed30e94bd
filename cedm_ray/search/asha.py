"""Rung levels and the rule that judges trials at them: pure and replayable.

Two rules. `asha` (Li et al. 2018, arXiv 1810.05934), the stopping variant: a trial that reports at a rung goes on
unless its distance is above the rung's cutoff, the 100/reduction_factor percentile of the distances that others
reported there before it. Nobody ever waits, the first at a rung always goes on, and decisions depend on the order in
which reports arrive. `halving` (`halving.py`): a trial that reports waits, without a process, until its place among
all that start is certain; fewer images are trained, and decisions do not depend on any order.

The order of reports is recorded, and the same records give the same decisions. Differences from Ray Tune's
AsyncHyperBand are on purpose: a distance that is not finite ends the trial, a collapsed model ends it too, and the
unconditional baseline and the trial on features, which are there to compare with, are measured but neither stopped nor
counted; nor are further seeds of finalists.
"""

from collections.abc import Collection, Iterable, Sequence
from itertools import pairwise
from typing import Literal

import numpy as np
from pydantic import Field, field_validator

from cedm_ray.config import Config
from cedm_ray.search.finals import FinalsConfig
from cedm_ray.search.halving import kept, outstanding, verdict
from cedm_ray.search.results import FEATURES, UNCONDITIONAL, Decision, TrialReport, read_trial_name

_ALONE, _FIELD_UNKNOWN = "trained by itself", "for the bound"


class AshaConfig(Config):
    """Where trials are measured, and how many survive.

    rungs_kimg: thousands of training images at which a trial is evaluated, rising; the last is the full budget.
    reduction_factor: about one in so many trials survives a rung; above 1. rule: asha decides at once by what was
    reported before; halving lets a trial wait until its place among all candidates is certain. grace_kimg: no trial is
    stopped at a rung below this, unless it diverged or collapsed.
    """

    rungs_kimg: tuple[float, ...] = Field(default=(15_000, 40_000, 100_000), min_length=1)
    reduction_factor: float = Field(default=3, gt=1)
    rule: Literal["asha", "halving"] = "asha"
    grace_kimg: float = Field(default=0, ge=0)

    @field_validator("rungs_kimg")
    @classmethod
    def _rising(cls, rungs: tuple[float, ...]) -> tuple[float, ...]:
        if rungs[0] <= 0 or any(a >= b for a, b in pairwise(rungs)):
            raise ValueError("the rungs must be above 0 and rise")
        return rungs


class Asha:
    """The judge of one search. It holds the distances reported at each rung and the decisions taken, nothing else.

    finals: of the space; its finalists are kept at least at every rung under the rule halving, and its budget is one
    rung more, to which one trial comes.
    """

    def __init__(self, config: AshaConfig, finals: FinalsConfig | None = None) -> None:
        self.config, self.finals = config, finals or FinalsConfig()
        last = self.finals.budget_kimg
        self.levels_kimg = config.rungs_kimg if last is None else (*config.rungs_kimg, last)
        self._distances: list[dict[str, float]] = [{} for _ in self.levels_kimg]
        self._reports: dict[tuple[str, int], TrialReport] = {}
        self._log: list[Decision] = []
        self._newest: dict[tuple[str, int], Decision] = {}
        self._passed: list[set[str]] = [set() for _ in self.levels_kimg]
        self._out: set[str] = set()
        self._waves: tuple[frozenset[str], ...] = ()
        self._gone: frozenset[str] = frozenset()
        self._alone: frozenset[str] = frozenset()
        self._field_known = True

    def expect(
        self,
        waves: Sequence[Collection[str]],
        gone: Collection[str] = (),
        alone: Collection[str] = (),
        *,
        field_known: bool = True,
    ) -> None:
        """Say which trials there will be, for the rule halving. It decides nothing.

        waves: names of the candidates' trials; those of a later wave, a refinement, go on while they are the best of
        all. gone: those that will never report (again), because they failed. alone: those that are to go on whatever
        others measure; so do all that are no candidates. field_known: False while the bound is searched, when nobody
        can tell yet how many there will be: then whoever reports waits.
        """
        self._field_known = field_known
        self._waves, self._gone, self._alone = tuple(map(frozenset, waves)), frozenset(gone), frozenset(alone)

    def decide(self, report: TrialReport) -> Decision:
        """Judge a report. The same (trial, rung) again gets the newest decision that was taken on it.

        Raises ValueError for a rung that the configuration does not have.
        """
        if not 0 <= report.rung < len(self.levels_kimg):
            raise ValueError(f"rung must lie in [0, {len(self.levels_kimg)}), got {report.rung}")
        key = (report.trial, report.rung)
        if key not in self._newest:
            self._note(self._judge(report), report)
        return self._newest[key]

    def settle(self) -> None:
        """Decide on every trial that waits and need not any more. Each decision may be what another waits for."""
        while True:
            waiting = [decision for decision in self._newest.values() if decision.status == "waiting"]
            found = [self._place(self._reports[decision.trial, decision.rung]) for decision in waiting]
            if all(decision.status == "waiting" for decision in found):
                return
            first = next(decision for decision in found if decision.status != "waiting")
            self._note(first, self._reports[first.trial, first.rung])

    def replay(self, reports: Iterable[TrialReport], decisions: Iterable[Decision]) -> None:
        """Take over what an earlier driver decided: `decisions` in any order, each with its report among `reports`.

        Raises ValueError where a recorded decision is not the one that these records give: the rule or the
        configuration has changed, or a record is missing.
        """
        found = {(report.trial, report.rung): report for report in reports}
        for decision in sorted(decisions, key=lambda decision: decision.sequence):
            self.take_over(decision, found)

    def take_over(self, decision: Decision, reports: dict[tuple[str, int], TrialReport]) -> TrialReport:
        """Take over the next recorded decision; returns its report. reports: by trial and rung. Raises as `replay`."""
        report = reports.get((decision.trial, decision.rung))
        if report is None:
            raise ValueError(f"decision {decision.sequence} on {decision.trial} has no report at its rung")
        earlier = self._newest.get((decision.trial, decision.rung))
        if earlier is not None and earlier.status != "waiting":
            again = earlier
        else:
            again = self._judge(report)
        if again != decision and not self._agrees(again, decision, report):
            raise ValueError(
                f"decision {decision.sequence} on {decision.trial} at rung {decision.rung} was "
                f"{decision.status!r} and is {again.status!r} from the same records"
            )
        self._note(decision, report)
        return report

    @property
    def decisions(self) -> tuple[Decision, ...]:
        """All decisions in the order in which they were taken."""
        return tuple(self._log)

    @property
    def newest(self) -> dict[str, Decision]:
        """The decision that stands for every trial, by its name: that of its highest rung."""
        return {decision.trial: decision for decision in sorted(self._newest.values(), key=lambda one: one.rung)}

    def _note(self, decision: Decision, report: TrialReport) -> None:
        self._log.append(decision)
        self._newest[decision.trial, decision.rung] = decision
        self._reports[decision.trial, decision.rung] = report
        if decision.status in ("diverged", "collapsed"):
            self._out.add(decision.trial)
            return
        if self._counts(report):
            self._distances[decision.rung][decision.trial] = report.distance
        if decision.status == "running":
            self._passed[decision.rung].add(decision.trial)
        elif decision.status != "waiting":
            self._out.add(decision.trial)

    def _counts(self, report: TrialReport) -> bool:
        """Whether others are held against this report."""
        inner = report.rung < len(self.config.rungs_kimg) - 1
        apart = report.trial in (UNCONDITIONAL, FEATURES) or _seed(report)
        return inner and not apart and not self._in_grace(report.rung)

    def _in_grace(self, rung: int) -> bool:
        return self.levels_kimg[rung] < self.config.grace_kimg

    def _judge(self, report: TrialReport) -> Decision:
        level = f"{self.levels_kimg[report.rung]:g} kimg"
        distance, cutoff = report.distance, None
        if distance is None or not np.isfinite(distance) or distance < 0:
            status, reason = "diverged", f"diverged by {level}: its distance is not a finite number"
        elif report.collapsed:
            status, reason = "collapsed", f"collapsed by {level}: its images are all alike"
        elif report.rung >= len(self.config.rungs_kimg) - 1:
            status, reason = "completed", f"trained to {level}: {distance:.4g}"
        elif report.trial == UNCONDITIONAL:
            status, reason = "running", f"goes on at {level}: {distance:.4g}, the baseline is never stopped"
        elif report.trial == FEATURES:
            status, reason = "running", f"goes on at {level}: {distance:.4g}, a comparison is never stopped"
        elif _seed(report):
            status, reason = "running", f"goes on at {level}: {distance:.4g}, a finalist's seed is never stopped"
        elif self._in_grace(report.rung):
            status, reason = "running", f"goes on at {level}: {distance:.4g}, within the grace period"
        elif self.config.rule == "halving":
            return self._place(report)
        else:
            cutoff = self._cutoff(report.rung)
            if cutoff is None:
                status, reason = "running", f"goes on at {level}: {distance:.4g}, the first at this rung"
            else:
                status, verb = ("running", "goes on") if distance <= cutoff else ("stopped", "stopped")
                reason = f"{verb} at {level}: {distance:.4g}, rung cutoff {cutoff:.4g}"
        return self._decision(report, status, cutoff, reason)

    def _decision(self, report: TrialReport, status: str, cutoff: float | None, reason: str) -> Decision:
        return Decision(
            sequence=len(self._log) + 1,
            trial=report.trial,
            rung=report.rung,
            images_seen=report.images_seen,
            status=status,
            cutoff=cutoff,
            reason=reason,
        )

    def _cutoff(self, rung: int) -> float | None:
        """The distance above which the rule asha stops a trial at a rung; None while nobody has been there."""
        earlier = list(self._distances[rung].values())
        return float(np.percentile(earlier, 100 / self.config.reduction_factor)) if earlier else None

    # Halving -------------------------------------------------------------------------------------------------

    def _place(self, report: TrialReport) -> Decision:
        """The decision of the rule halving by what is known now."""
        level, distance = f"{self.levels_kimg[report.rung]:g} kimg", report.distance
        wave = next((index for index, names in enumerate(self._waves) if report.trial in names), None)
        if not self._field_known and report.trial not in self._alone:
            return self._decision(report, "waiting", None, f"waits at {level}: {distance:.4g}, {_FIELD_UNKNOWN}")
        if wave is None or report.trial in self._alone:
            return self._decision(report, "running", None, f"goes on at {level}: {distance:.4g}, {_ALONE}")
        better, keep = self._better(report, wave), self._kept(wave, report.rung)
        missing = self._missing(report, wave)
        status = verdict(len(better), missing, keep)
        if status == "stopped":
            cutoff = better[keep - 1]
            reason = f"stopped at {level}: {distance:.4g}, rung cutoff {cutoff:.4g}"
            return self._decision(report, status, cutoff, reason)
        if status == "waiting":
            trials = "one trial" if missing == 1 else f"{missing} trials"
            reason = f"waits at {level}: {distance:.4g}, for {trials} still to come"
        else:
            count = "the best" if keep == 1 else f"one of the best {keep}"
            reason = f"goes on at {level}: {distance:.4g}, {count} at this rung"
        return self._decision(report, status, None, reason)

    def _better(self, report: TrialReport, wave: int) -> list[float]:
        """The distances at the rung that are better, of its wave and of those before, rising; of equals the first name
        in order is the better."""
        field = frozenset().union(*self._waves[: wave + 1])
        own = (report.distance, report.trial)
        at_rung = self._distances[report.rung].items()
        return sorted(d for name, d in at_rung if name in field and name != report.trial and (d, name) < own)

    def _kept(self, wave: int, rung: int) -> int:
        if wave:
            return 1
        return kept(len(self._waves[0]), rung, self.config.reduction_factor, self.finals.finalists)

    def _missing(self, report: TrialReport, wave: int) -> int:
        """How many of its wave may still come to its rung, itself not counted."""
        first = next(rung for rung in range(len(self.levels_kimg)) if not self._in_grace(rung))
        arrived = [*self._distances]
        arrived[report.rung] = {**arrived[report.rung], report.trial: report.distance}
        room = self._kept(wave, report.rung - 1) if report.rung > first else len(self._waves[wave])
        out = self._out | self._gone
        return outstanding(self._waves[wave], report.rung, arrived, self._passed, out, room)

    def _agrees(self, again: Decision, decision: Decision, report: TrialReport) -> bool:
        """Whether a recorded decision of the rule halving holds by the order of distances then. How many were still to
        come is not asked again: who had failed by then, or came later, is not in the order of decisions."""
        if self.config.rule != "halving" or again.status not in ("running", "stopped", "waiting"):
            return False
        same = (again.sequence, again.trial, again.rung, again.images_seen)
        if same != (decision.sequence, decision.trial, decision.rung, decision.images_seen):
            return False
        if decision.status == "stopped":
            return again == decision
        unasked = decision.reason.endswith((_ALONE, _FIELD_UNKNOWN))
        return unasked or (again.status != "stopped" and decision.cutoff is None)


def _seed(report: TrialReport) -> int:
    return read_trial_name(report.trial)[1]
