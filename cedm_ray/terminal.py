"""What a person at a terminal, or a log, gets to see: progress on standard error, results on standard output."""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from cedm_ray.data.decoding import printable
from cedm_ray.search.results import UNCONDITIONAL, ClusteringSummary, Notice, StudyResult, TrialResult, read_trial_name
from cedm_ray.search.results import Progress as Step
from cedm_ray.search.settings import cells, last_words, paths_of, told

LINE_EVERY_S = 30.0
"""How often a log hears of a task, where no more run at once than TASKS_OF_A_LOG; of more, less often in proportion."""
TASKS_OF_A_LOG = 8


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
# Wide enough for what agrees fully, which is 100.00 in every column of the labels.
_CLUSTERING_WIDTHS = (6, 6, 7, 9, 8, 11, 6, 7, 7, 7, 7, 8, 0)
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


@dataclass(slots=True)
class _Told:
    """Where a task stood when it was first heard of, which the time left is told by, and when a log was last told."""

    first_done: float
    first_time: float
    spoke: float


class Display:
    """Shows Progress and Notice values: bars with the time left on a terminal, else plain lines with date and time.

    Without a terminal (a file, a pipe, the log of a `ray job`) a task has a line every 30 seconds, and at milestones.
    quiet: shows nothing at all. table: takes the clusterings that are done; None = they are notices. Use it as a
    context manager; call it with each value.
    """

    def __init__(self, *, quiet: bool, table: ClusteringTable | None = None) -> None:
        self.quiet = quiet
        self.table = table
        # Asked here, because the console also takes FORCE_COLOR for a terminal, and bars make a log unreadable.
        self.console = Console(stderr=True, force_terminal=sys.stderr.isatty())
        self._bars: Progress | None = None
        self._ids: dict[str, TaskID] = {}
        self._told: dict[str, _Told] = {}

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
            # No control characters: a message may hold a file name with anything in it.
            self._print("\n".join(map(printable, event.text.split("\n"))))
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
            self._print(line)

    def _print(self, text: str) -> None:
        if self._bars is None:
            text = f"{datetime.now().astimezone().isoformat(' ', 'seconds')}  {text}"
        # Not as markup: a message may hold a file name with brackets.
        self.console.print(text, markup=False, emoji=False, highlight=False, soft_wrap=True)

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
            self._told.pop(step.task, None)
            return
        told = self._told.get(step.task)
        if told is None or step.done < told.first_done:
            # New, or begun again from an earlier point.
            told = _Told(first_done=step.done, first_time=now, spoke=now if told is None else told.spoke)
            self._told[step.task] = told
        interval = LINE_EVERY_S * max(1, len(self._told) / TASKS_OF_A_LOG)
        if step.milestone or now - told.spoke >= interval:
            told.spoke = now
            self._print(_describe(step, step.done - told.first_done, now - told.first_time))


def _describe(step: Step, gained: float, elapsed_s: float) -> str:
    text = f"{step.task}: {step.done:,.0f}"
    if step.total is not None:
        text += f" of {step.total:,.0f}"
    text += f" {step.unit}"
    if step.detail:
        text += f", {step.detail}"
    left = 0 if step.total is None else step.total - step.done
    return text + (f", {_duration(left * elapsed_s / gained)} left" if gained > 0 and left > 0 else "")


def _duration(seconds: float) -> str:
    """In the two units that a person would say it in: 45 s, 3 min 20 s, 26 h 5 min."""
    minutes, rest = divmod(round(seconds), 60)
    if not minutes:
        return f"{rest} s"
    hours, minutes_left = divmod(minutes, 60)
    return f"{hours} h {minutes_left} min" if hours else f"{minutes} min {rest} s"


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """A table on standard output, as `table_lines` below a title."""
    if title:
        print(title)
    for line in table_lines(columns, rows):
        print(line)


def table_lines(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    """A table's lines; the last column is text, the others are right-aligned. None is shown as a dash."""
    cells = [list(columns), *([("–" if cell is None else str(cell)) for cell in row] for row in rows)]
    widths = [max(len(row[index]) for row in cells) for index in range(len(columns))]
    lines = []
    for row in cells:
        padded = [cell.rjust(width) for cell, width in zip(row[:-1], widths[:-1], strict=True)]
        lines.append("  ".join([*padded, row[-1]]).rstrip())
    return lines


def print_result(result: StudyResult) -> None:
    """The bound's sentence, the table of all trials at all rungs, and the answer, on standard output."""
    print(result.bound.reason)
    print()
    levels = [f"{level:g} kimg" for level in result.rungs_kimg]
    searched = paths_of(trial.settings for trial in result.trials)
    columns = ["C", *map(last_words(searched).get, searched), "C^u", "r_C", *levels, "how it ended"]
    title = f"{result.metric} of {result.num_samples:,} samples at"
    print_table(title, columns, [_row(result, trial, searched) for trial in result.trials])
    print()
    print(answer(result))


def _row(result: StudyResult, trial: TrialResult, searched: Sequence[str]) -> list[object]:
    utilization = None if trial.utilization is None else f"{trial.utilization:.3f}"
    by_rung = {report.rung: report.distance for report in trial.reports}
    distances = [by_rung.get(rung) for rung in range(len(result.rungs_kimg))]
    mark = "  <- C_V" if trial.trial == result.best else ""
    shown = [None if distance is None else f"{distance:.4g}" for distance in distances]
    return [
        trial_label(trial.trial),
        *cells(trial.settings, searched),
        trial.num_used,
        utilization,
        *shown,
        trial.reason + mark,
    ]


def trial_label(trial: str) -> str:
    """A trial as tables call it, by its name: `none` for the baseline, `features`, its C, its C with the number of the
    proposal, with a further seed."""
    num_clusters, seed, proposal = read_trial_name(trial)
    if num_clusters is None:
        return "none" if trial == UNCONDITIONAL else trial
    return f"{num_clusters}" + (f" p{proposal}" if proposal else "") + (f" seed {seed}" if seed else "")


def answer(result: StudyResult) -> str:
    """C_V and what it gains, in one line; or that there is none."""
    if result.bound.c_max is None:
        return "C_V was not found: no number of clusters passes the bound."
    if result.best is None:
        return "C_V was not found: no trial inside the bound has a usable distance at the full budget yet."
    best = result.trial(result.best)
    shown = result.compared(best)
    having = f" with {told(best.settings)}" if best.settings else ""
    text = f"C_V = {best.num_clusters}{having}: {result.metric} {shown.distance:.4g}"
    if result.gain is None:
        return text + "; there is no unconditional model of the same budget to compare with."
    direction = "lower" if result.gain > 0 else "higher"
    baseline = f"the unconditional model's {result.trials[0].final.distance:.4g} at the same budget"
    text += f", {abs(result.gain):.1%} {direction} than {baseline}."
    if best.final is shown:
        return text
    return text + f" Trained on to {best.final.images_seen:,} images: {best.final.distance:.4g}."
