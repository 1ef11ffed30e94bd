"""What a study found, for people and for spreadsheets: one self-contained HTML page and one CSV table.

k images, S image side, C clusters.

The page carries its style, its figures (SVG) and its pictures (PNG) inside; it holds no script, and a content security
policy in its head forbids it to load anything. Every text that came from outside (names, reasons) is escaped, in the
page by the template engine and in the table against formulas (spreadsheets run cells that begin with = + - @).
"""

import base64
import csv
import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2
import numpy as np
from markupsafe import Markup

from cedm_ray.data.pictures import png, sample_grid
from cedm_ray.durable import write_bytes
from cedm_ray.report import figures
from cedm_ray.report.figures import amount, number, printable
from cedm_ray.search import settings
from cedm_ray.search.results import StudyResult, TrialReport, TrialResult, read_trial_name

_ENDINGS = {
    "running": "still running",
    "waiting": "waiting for others",
    "completed": "completed",
    "stopped": "stopped early",
    "diverged": "diverged",
    "collapsed": "collapsed",
    "failed": "failed",
}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ClusterRow:
    """One cluster in pictures: images of the training set, and images that the best model made for it.

    cluster: the cluster's original number, before empty ones were dropped. share: q(c), its share of the training
    images, in (0, 1]. training and samples: uint8 [k, 3, S, S], k at least 1 and not necessarily the same.
    """

    cluster: int
    share: float
    training: np.ndarray
    samples: np.ndarray

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(f"share must lie in (0, 1], got {self.share}")


def write_report(result: StudyResult, rows: Sequence[ClusterRow], path: Path) -> None:
    """Write the page, durably. rows: clusters to show, in this order; none leaves their section out.

    Raises StorageError where `path` cannot be written.
    """
    searched = settings.paths_of(trial.settings for trial in result.trials)
    page = template("page.html.jinja").render(
        result=result,
        headline=_headline(result),
        searched=list(settings.last_words(searched).values()),
        trials=[_table_row(result, trial, searched) for trial in _ordered(result)],
        bound_points=sorted(result.bound.points, key=lambda point: point.num_clusters),
        clusters_figure=Markup(figures.svg(figures.distance_versus_clusters(result), _describe_clusters(result))),
        images_figure=Markup(figures.svg(figures.distance_versus_images(result), _describe_images(result))),
        rows=[
            {
                "cluster": row.cluster,
                "share": row.share,
                "training": _data_uri(row.training),
                "samples": _data_uri(row.samples),
            }
            for row in rows
        ],
    )
    write_bytes(path, page.encode())


def template(name: str) -> jinja2.Template:
    """A page's template: everything that goes into it is escaped, and nothing may be missing."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("cedm_ray", "report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "amount": amount, "duration": duration, "plain": printable}
    return environment.get_template(name)


def write_table(result: StudyResult, path: Path) -> None:
    """Write one line per trial as CSV (UTF-8, comma, one header line), durably; the baseline first, then by C, the one
    on features last.

    The table is wide: after trial, num_clusters, num_used, utilization, status, reason, images_seen and distance (the
    last two of the trial's last usable report) comes one column per rung, `distance_at_<thousands of images>_kimg`, and
    one for each setting that is searched besides C, by its path.
    Numbers are plain, with all their digits; an empty cell means that there is none. A text cell that a spreadsheet
    would run as a formula begins with an apostrophe. Raises StorageError where `path` cannot be written.
    """
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    fixed = ["trial", "num_clusters", "num_used", "utilization", "status", "reason", "images_seen", "distance"]
    searched = settings.paths_of(trial.settings for trial in result.trials)
    writer.writerow([*fixed, *(f"distance_at_{kimg:.15g}_kimg" for kimg in result.rungs_kimg), *searched])
    for trial in _ordered(result):
        final = trial.final
        writer.writerow(
            [
                _inert(trial.trial),
                trial.num_clusters,
                trial.num_used,
                trial.utilization,
                trial.status,
                _inert(trial.reason),
                final.images_seen if final else None,
                final.distance if final else None,
                *(report.distance if report else None for report in _by_rung(result, trial)),
                *(_cell(trial.settings[path]) if path in trial.settings else None for path in searched),
            ]
        )
    write_bytes(path, buffer.getvalue().encode())


def duration(seconds: float) -> str:
    """Wall time for the eye: 0.4 s, 12 s, 3 min 20 s, 5 h 7 min, 2 d 3 h."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    total = round(seconds)
    for size, unit, part, part_unit in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if total >= size:
            return f"{total // size} {unit} {total % size // part} {part_unit}"
    return f"{total} s"


def _headline(result: StudyResult) -> dict[str, str]:
    """The answer in one sentence, and the second one that says how far it can be trusted."""
    baseline = next((t for t in result.trials if t.is_baseline), None)
    if result.best is None:
        ends = Counter(_ENDINGS[t.status] for t in result.trials if t.num_clusters is not None)
        told = ", ".join(f"{count} {end}" for end, count in ends.items()) or "none was started"
        if result.bound.c_max is None:
            return {
                "answer": "No number of clusters passed the bound",
                "because": f"Nothing could be searched with the generative model. {result.bound.reason}",
            }
        return {
            "answer": "No usable result",
            "because": f"No conditional trial reached the full budget with a distance that can be used ({told}).",
        }
    best = result.trial(result.best)
    shown = result.compared(best)
    distance = f"{result.metric} {number(shown.distance)}"
    at = f"after {amount(shown.images_seen / 1000)} training images"
    if result.gain is None:
        state = (
            "was not trained"
            if baseline is None
            else f"ended without a distance to compare ({_ENDINGS[baseline.status]})"
        )
        return {
            "answer": f"{best.num_clusters:,} clusters are the best of those tried",
            "because": f"{distance} {at}. The unconditional model {state}, so no gain is stated.",
        }
    having = f" It has {settings.told(best.settings)}." if best.settings else ""
    other = f"{number(shown.distance / (1 - result.gain))} of the unconditional model trained with the same budget"
    if result.gain > 0:
        return {
            "answer": f"Condition on {best.num_clusters:,} clusters",
            "because": f"{distance} {at}, {100 * result.gain:.1f} % below the {other}.{_further(result, best)}{having}",
        }
    return {
        "answer": "No number of clusters beat the unconditional model",
        "because": f"The best of them, C = {best.num_clusters:,}, has {distance} {at}: "
        + (f"{-100 * result.gain:.1f} % above the {other}." if result.gain < 0 else f"exactly the {other}."),
    }


def _further(result: StudyResult, best: TrialResult) -> str:
    """What the winner measured where it was trained on; empty where it was not."""
    if best.final is result.compared(best):
        return ""
    after = amount(best.final.images_seen / 1000)
    return f" Trained on to {after} training images: {result.metric} {number(best.final.distance)}."


def _cell(value: object) -> object:
    """A setting's value as a cell of the table, a number with all its digits."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return value if is_number else _inert(settings.shown(value))


def _table_row(result: StudyResult, trial: TrialResult, searched: Sequence[str]) -> dict[str, object]:
    return {
        "name": (trial.trial if trial.num_clusters is None else f"{trial.num_clusters:,}")
        + (f", p{proposal}" if (proposal := read_trial_name(trial.trial).proposal) else "")
        + (f", seed {trial.seed}" if trial.seed else ""),
        "settings": settings.cells(trial.settings, searched),
        "num_used": trial.num_used,
        "utilization": trial.utilization,
        "reports": _by_rung(result, trial),
        "ending": _ENDINGS[trial.status],
        "status": trial.status,
        "reason": trial.reason,
        "best": trial.trial == result.best,
        "baseline": trial.is_baseline,
    }


def _ordered(result: StudyResult) -> list[TrialResult]:
    """The baseline, then the trials by C, then the one on features."""

    def place(trial: TrialResult) -> tuple:
        proposal = read_trial_name(trial.trial).proposal
        return trial.is_comparison, trial.num_clusters or 0, proposal, trial.seed

    return sorted(result.trials, key=place)


def _by_rung(result: StudyResult, trial: TrialResult) -> list[TrialReport | None]:
    """The trial's report at each rung (counted from 0), None where it did not get there."""
    reports = {report.rung: report for report in trial.reports}
    if unknown := [rung for rung in reports if not 0 <= rung < len(result.rungs_kimg)]:
        raise ValueError(
            f"{trial.trial} reports rung {unknown[0]}, the study has {len(result.rungs_kimg)} counted from 0"
        )
    return [reports.get(rung) for rung in range(len(result.rungs_kimg))]


def _describe_clusters(result: StudyResult) -> str:
    return f"{printable(result.metric)} against the number of clusters; the table below has the same numbers."


def _describe_images(result: StudyResult) -> str:
    return f"{printable(result.metric)} of each trial against the training images seen; same numbers as the table."


def _data_uri(images: np.ndarray) -> str:
    picture = png(sample_grid(images, columns=len(images)))
    return f"data:image/png;base64,{base64.b64encode(picture).decode()}"


def _inert(text: str) -> str:
    """A text cell that no spreadsheet takes for a formula."""
    line = printable(text)
    return f"'{line}" if line.startswith(("=", "+", "-", "@")) else line
