"""The agenda and the judge in step: what is decided on a trial may change what is asked next, and what others wait for.

Whoever follows the agenda (the driver, a simulation) passes reports and failures through here.
"""

from collections.abc import Iterable

from cedm_ray.errors import ConfigurationError
from cedm_ray.search.agenda import Agenda
from cedm_ray.search.asha import Asha
from cedm_ray.search.results import Decision, TrialReport


class Contest:
    """agenda, asha: as the records leave them once `replay` has been called; they are told of decisions here alone."""

    def __init__(self, agenda: Agenda, asha: Asha) -> None:
        self.agenda, self.asha = agenda, asha
        self._reports: dict[tuple[str, int], TrialReport] = {}
        self._told = 0
        self._expected = (-1, False)

    def replay(self, reports: Iterable[TrialReport], decisions: Iterable[Decision]) -> None:
        """Take over what an earlier driver decided. Nothing new is decided. Raises ValueError as `Asha.replay`."""
        self._reports |= {(report.trial, report.rung): report for report in reports}
        for decision in sorted(decisions, key=lambda one: one.sequence):
            self._expect(replaying=True)
            self.asha.take_over(decision, self._reports)
            self._tell()
        self._expect()

    def judge(self, report: TrialReport) -> tuple[Decision, tuple[Decision, ...]]:
        """(The decision on a report, all decisions that are new with it in their order)."""
        self._reports.setdefault((report.trial, report.rung), report)
        self._expect()
        decision = self.asha.decide(report)
        return decision, (*self._tell(), *self.settle())

    def settle(self) -> tuple[Decision, ...]:
        """What can be decided on trials that wait, by what was told since; in order."""
        found: list[Decision] = []
        while True:
            self._expect()
            self.asha.settle()
            new = self._tell()
            if not new:
                return tuple(found)
            found += new

    def _expect(self, *, replaying: bool = False) -> None:
        # Only the rule halving asks who is still to come.
        if self.asha.config.rule != "halving":
            return
        if self._expected == (self.agenda.told, replaying):
            return
        self._expected = (self.agenda.told, replaying)
        if self.agenda.bound is None:
            # Trials that are certain to be candidates may report before the others are known.
            self.asha.expect((), field_known=self.agenda.goal.kind != "search")
            return
        try:
            waves = [[task.trial for task in wave] for wave in self.agenda.waves]
        except ConfigurationError:
            # Nothing lies within the bound, which whoever asks the agenda for the next task is told.
            return
        goal = self.agenda.goal
        # What one command trains by itself waits for nobody; in the records it may have waited for a search.
        alone = [goal.trial.name] if goal.kind == "trial" and not replaying else []
        self.asha.expect(waves, self.agenda.gone, alone)

    def _tell(self) -> tuple[Decision, ...]:
        new = self.asha.decisions[self._told :]
        for decision in new:
            self.agenda.tell_decision(decision, self._reports[decision.trial, decision.rung])
        self._told += len(new)
        return new
