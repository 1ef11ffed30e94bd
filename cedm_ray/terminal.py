"""What a person at a terminal, or a log, gets to see: progress on standard error, results on standard output."""

import time
from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from cedm_ray.search.results import Notice, StudyResult, TrialResult
from cedm_ray.search.results import Progress as Step

LINE_EVERY_S = 30.0


class Display:
    """Shows Progress and Notice values: bars with the time left on a terminal, else a line every 30 seconds.

    quiet: shows nothing at all. Use it as a context manager; call it with each value.
    """

    def __init__(self, *, quiet: bool) -> None:
        self.quiet = quiet
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
            )
            self._bars.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bars is not None:
            self._bars.stop()

    def __call__(self, event: Step | Notice) -> None:
        if self.quiet:
            return
        if isinstance(event, Notice):
            # Not as markup: a message may hold a file name with brackets.
            self.console.print(event.text, markup=False, emoji=False, highlight=False, soft_wrap=True)
        elif self._bars is not None:
            self._move_bar(event)
        else:
            self._write_line(event)

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
    name = "none" if trial.num_clusters is None else trial.num_clusters
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
