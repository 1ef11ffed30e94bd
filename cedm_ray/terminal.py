"""What a person at a terminal, or a log, gets to see: progress on standard error, results on standard output."""

import sys
import time
from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from cedm_ray.search.results import ClusteringSummary, Notice, StudyResult, TrialResult
from cedm_ray.search.results import Progress as Step

LINE_EVERY_S = 30.0


class ClusteringTable:
    """A table of clusterings on standard output that gets its lines one by one, each clustering once.

    Standard output is the one of the time when the table is made: whatever does the work may turn it elsewhere.
    """

    def __init__(self) -> None:
        self.out = sys.stdout
        self._shown: set[str] = set()

    def lines(self, summary: ClusteringSummary) -> list[str]:
        """What is to be printed for a clustering: nothing for one that was shown, and before the first the header."""
        if summary.name in self._shown:
            return []
        lines = [] if self._shown else [_clustering_line(_CLUSTERING_COLUMNS, summary.agreement is not None)]
        self._shown.add(summary.name)
        sizes, agreement = summary.sizes, summary.agreement
        cells = [str(summary.num_clusters), str(summary.num_used), f"{summary.utilization:.4f}"]
        cells += [str(sizes.smallest), str(sizes.largest), f"{sizes.perplexity:.1f}", f"{sizes.kl_from_uniform:.3f}"]
        if agreement is not None:
            cells += [
                f"{100 * value:.2f}" for value in (agreement.accuracy, agreement.nmi, agreement.ami, agreement.ari)
            ]
        cells.append("–" if summary.seconds is None else f"{summary.seconds:.1f}")
        verdict = "" if summary.passed is None else ", passes" if summary.passed else ", fails"
        return [*lines, _clustering_line([*cells, summary.name + verdict], agreement is not None)]

    def show(self, summary: ClusteringSummary) -> None:
        """Print the line of a clustering, unless it was shown."""
        for line in self.lines(summary):
            print(line, file=self.out, flush=True)


_CLUSTERING_COLUMNS = (
    "C",
    "C^u",
    "r_C",
    "smallest",
    "largest",
    "perplexity",
    "KL",
    "ACC",
    "NMI",
    "ANMI",
    "ARI",
    "s",
    "",
)
_CLUSTERING_WIDTHS = (6, 6, 7, 9, 8, 11, 6, 6, 6, 6, 6, 8, 0)
_OF_LABELS = slice(7, 11)


def _clustering_line(cells: Sequence[str], with_agreement: bool) -> str:
    """Cells under their columns; without labels those of the agreement are not there."""
    widths = list(_CLUSTERING_WIDTHS)
    if not with_agreement:
        del widths[_OF_LABELS]
        if len(cells) > len(widths):
            cells = [*cells[: _OF_LABELS.start], *cells[_OF_LABELS.stop :]]
    *padded, last = zip(cells, widths, strict=True)
    return ("".join(cell.rjust(width) for cell, width in padded) + f"  {last[0]}").rstrip()


class Display:
    """Shows Progress and Notice values: bars with the time left on a terminal, else a line every 30 seconds.

    quiet: shows nothing at all. table: takes the clusterings that are done; None = they are notices. Use it as a
    context manager; call it with each value.
    """

    def __init__(self, *, quiet: bool, table: ClusteringTable | None = None) -> None:
        self.quiet = quiet
        self.table = table
        self.console = Console(stderr=True)
        self._bars: Progress | None = None
        self._ids: dict[str, TaskID] = {}
        self._steps: dict[str, tuple[Step, float, float]] = {}
        self._spoke = time.monotonic()

    def __enter__(self) -> "Display":
        if not self.quiet and self.console.is_terminal:
            self._bars = Progress(
                TextColumn("{task.description:<14}"),
                BarColumn(bar_width=24),
                TextColumn("{task.percentage:>3.0f} %"),
                TextColumn("{task.fields[detail]}"),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                console=self.console,
                transient=True,
                redirect_stdout=False,
            )
            self._bars.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bars is not None:
            self._bars.stop()

    def __call__(self, event: Step | Notice | ClusteringSummary) -> None:
        if isinstance(event, ClusteringSummary):
            if self.table is not None:
                self._add_to_table(event)
                return
            took = "" if event.seconds is None else f" in {event.seconds:.1f} s"
            event = Notice(text=f"C = {event.num_clusters}: {event.num_used} clusters used{took} ({event.name})")
        if self.quiet:
            return
        if isinstance(event, Notice):
            # Not as markup: a message may hold a file name with brackets.
            self.console.print(event.text, markup=False, emoji=False, highlight=False, soft_wrap=True)
        elif self._bars is not None:
            self._move_bar(event)
        else:
            self._write_line(event)

    def _add_to_table(self, summary: ClusteringSummary) -> None:
        if self._bars is None or not self.table.out.isatty():
            self.table.show(summary)
            return
        # Both streams are the same screen, and only what goes through the console leaves its bars whole.
        for line in self.table.lines(summary):
            self.console.print(line, markup=False, emoji=False, highlight=False, soft_wrap=True)

    def _move_bar(self, step: Step) -> None:
        if step.task not in self._ids:
            if step.ended:
                return
            self._ids[step.task] = self._bars.add_task(escape(step.task), total=step.total, detail="")
        if step.ended:
            self._bars.remove_task(self._ids.pop(step.task))
            return
        amount = f"{step.done:,.0f}" + (f" of {step.total:,.0f}" if step.total is not None else "") + f" {step.unit}"
        detail = escape(f"{amount}  {step.detail}".rstrip())
        self._bars.update(self._ids[step.task], completed=step.done, total=step.total, detail=detail)

    def _write_line(self, step: Step) -> None:
        now = time.monotonic()
        if step.ended:
            self._steps.pop(step.task, None)
            return
        _, first_done, first_time = self._steps.get(step.task, (step, step.done, now))
        self._steps[step.task] = (step, first_done, first_time)
        if now - self._spoke < LINE_EVERY_S:
            return
        self._spoke = now
        parts = [_describe(step, done, now - since) for step, done, since in self._steps.values()]
        self.console.print("; ".join(parts), markup=False, emoji=False, highlight=False, soft_wrap=True)


def _describe(step: Step, first_done: float, elapsed_s: float) -> str:
    text = f"{step.task}: {step.done:,.0f}"
    if step.total is not None:
        text += f" of {step.total:,.0f}"
    text += f" {step.unit}"
    gained = step.done - first_done
    if step.total is not None and gained > 0:
        text += f", {round((step.total - step.done) * elapsed_s / gained)} s left"
    return text + (f", {step.detail}" if step.detail else "")


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """A table on standard output; the last column is text, the others are right-aligned. None is shown as a dash."""
    cells = [list(columns), *([("–" if cell is None else str(cell)) for cell in row] for row in rows)]
    widths = [max(len(row[index]) for row in cells) for index in range(len(columns))]
    if title:
        print(title)
    for row in cells:
        padded = [cell.rjust(width) for cell, width in zip(row[:-1], widths[:-1], strict=True)]
        print("  ".join([*padded, row[-1]]).rstrip())


def print_result(result: StudyResult) -> None:
    """The bound's sentence, the table of all trials at all rungs, and the answer, on standard output."""
    print(result.bound.reason)
    print()
    levels = [f"{level:g} kimg" for level in result.rungs_kimg]
    columns = ["C", "C^u", "r_C", *levels, "how it ended"]
    title = f"{result.metric} of {result.num_samples:,} samples at"
    print_table(title, columns, [_row(result, trial) for trial in result.trials])
    print()
    print(answer(result))


def _row(result: StudyResult, trial: TrialResult) -> list[object]:
    name = "none" if trial.is_baseline else "features" if trial.is_comparison else trial.num_clusters
    utilization = None if trial.utilization is None else f"{trial.utilization:.3f}"
    by_rung = {report.rung: report.distance for report in trial.reports}
    distances = [by_rung.get(rung) for rung in range(len(result.rungs_kimg))]
    mark = "  <- C_V" if trial.trial == result.best else ""
    shown = [None if distance is None else f"{distance:.4g}" for distance in distances]
    return [name, trial.num_used, utilization, *shown, trial.reason + mark]


def answer(result: StudyResult) -> str:
    """C_V and what it gains, in one line; or that there is none."""
    if result.best is None:
        return "C_V was not found: no trial inside the bound has a usable distance at the full budget yet."
    best = result.trial(result.best)
    text = f"C_V = {best.num_clusters}: {result.metric} {best.final.distance:.4g}"
    if result.gain is None:
        return text + "; there is no unconditional model of the same budget to compare with."
    direction = "lower" if result.gain > 0 else "higher"
    baseline = f"the unconditional model's {result.trials[0].final.distance:.4g} at the same budget"
    return text + f", {abs(result.gain):.1%} {direction} than {baseline}."
