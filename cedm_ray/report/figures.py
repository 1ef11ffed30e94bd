"""The figures of the paper for the user's own study: distance against C, distance against images seen.

C clusters.

Every function takes values and returns a matplotlib Figure; nothing is shown, kept or written here,
and pyplot with its global state is not used. `svg` turns a Figure into markup that stands inside an HTML page.

What the first figure shows is Fig. 3 of the paper (distance and r_C against C), the second is Fig. 2 and Fig. 9. The
colors are those of Okabe and Ito and of viridis, which readers with any color vision tell apart; what matters is
told by shape and label as well.
"""

import html
import io
import math
import re
import unicodedata
import warnings
from collections.abc import Sequence

import matplotlib
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from cedm_ray.report.labels import LineEnd, name_ends, spaced
from cedm_ray.search.results import StudyResult, TrialReport, TrialResult, read_trial_name

INK, MUTED, PAPER = "#1f2328", "#6e7781", "#ffffff"
BLUE, GREEN, ORANGE = "#0072b2", "#009e73", "#d55e00"

# Inches, and points.
_WIDTH, _HEIGHT = 8.6, 4.4
_TEXT, _SMALL = 9.5, 8.5
_LEGEND = ("trained", "short", "best", "unconditional", "on", "searched", "share", "threshold")


def number(value: float) -> str:
    """A distance for the eye: four digits, and no exponent above 1,000."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:#.4g}"


def amount(kimg: float) -> str:
    """A number of images, given in thousands, for the eye: 500, 2.5k, 20k, 100M."""
    for size, unit in ((1000, "M"), (1, "k")):
        if kimg >= size:
            return f"{kimg / size:.4g}{unit}"
    return f"{1000 * kimg:.0f}"


def printable(text: str) -> str:
    """Text from outside as one line; control characters (terminal escapes, text direction) become visible codes."""
    hidden = ("Cc", "Cf", "Cs", "Co", "Cn")
    line = " ".join(text.split())
    return "".join(c if unicodedata.category(c) not in hidden else f"\\u{ord(c):04x}" for c in line)


def distance_versus_clusters(result: StudyResult) -> Figure:
    """The distance at the full budget against C, with r_C on the second axis and the searched range as a band.

    Trials that did not complete are drawn hollow at their last usable distance, labeled with the images they had seen
    (where there is room): a hollow point is an upper estimate, not a competitor.
    """
    figure, axes = new_figure(right=0.92, top=0.80)
    conditional = sorted(
        (t for t in result.trials if t.num_clusters is not None and t.final), key=lambda t: t.num_clusters
    )
    completed = [t for t in conditional if t.status == "completed"]
    unfinished = [t for t in conditional if t.status != "completed"]
    levels = _levels(result)
    distances = [result.compared(t).distance for t in (*conditional, *(level[0] for level in levels))]
    # The scales come first: where a label has room depends on them.
    _distance_axis(axes, result.metric, distances)
    _cluster_axis(axes, result, conditional)

    c_max = result.bound.c_max
    if c_max is not None:
        bound = f"at least {c_max:,}" if result.bound.censored else f"{c_max:,}"
        axes.axvspan(2, c_max, color=GREEN, alpha=0.11, linewidth=0, zorder=0, label=f"searched range, 2 to {bound}")
    for trial, label, color, dash in levels:
        if trial.status != "completed":
            label += f", {trial.status} at {_seen(trial.final)} images"
        distance = result.compared(trial).distance
        axes.axhline(distance, color=color, linestyle=(0, (dash, 3)), linewidth=1.3, label=label)
    if completed:
        values = [result.compared(t).distance for t in completed]
        x = [t.num_clusters for t in completed]
        axes.plot(x, values, "o", color=BLUE, markersize=6, zorder=3, label="trained to the full budget")
        # Where a C was tried with several settings or seeds the line goes through the best of each.
        lowest = {c: min(value for other, value in zip(x, values, strict=True) if other == c) for c in x}
        axes.plot(list(lowest), list(lowest.values()), "-", color=BLUE, linewidth=1.6, zorder=3)
    if unfinished:
        values = [result.compared(t).distance for t in unfinished]
        x = [t.num_clusters for t in unfinished]
        label = "short of the full budget (images seen)"
        axes.plot(x, values, "o", color=BLUE, markerfacecolor=PAPER, markersize=6, zorder=3, label=label)
        to_axes = axes.transData + axes.transAxes.inverted()
        places = [tuple(place) for place in to_axes.transform(list(zip(x, values, strict=True)))]
        for trial in spaced(unfinished, places, (0.05, 0.06)):
            at = (trial.num_clusters, trial.final.distance)
            axes.annotate(
                _seen(trial.final),
                at,
                xytext=(0, 7),
                textcoords="offset points",
                ha="center",
                fontsize=_SMALL,
                color=BLUE,
            )
    if result.best is not None and (best := result.trial(result.best)).final:
        shown = result.compared(best)
        at = (best.num_clusters, shown.distance)
        axes.plot(*at, "*", color=ORANGE, markersize=15, markeredgecolor=PAPER, zorder=4, label="best")
        axes.annotate(
            f"C = {best.num_clusters:,}: {number(shown.distance)}",
            at,
            xytext=(0, -17),
            textcoords="offset points",
            ha="center",
            fontsize=_TEXT,
            fontweight="bold",
            color=ORANGE,
        )
    if not distances:
        _say_nothing_to_draw(axes)
    right = _utilization_axis(axes, result)
    _legend(figure, [axes, right] if right else [axes])
    return figure


def distance_versus_images(result: StudyResult) -> Figure:
    """The distance of every trial against the training images it had seen; an x is where a trial was ended.

    Vertical hairs are the rungs, at which the trials were compared. The lines' colors run with log C.
    """
    figure, axes = new_figure(right=0.85, top=0.97)
    trials = [t for t in result.trials if _usable(t)]
    _distance_axis(axes, result.metric, [r.distance for t in trials for r in _usable(t)])
    _images_axis(axes, result, trials)
    for rung in result.rungs_kimg:
        axes.axvline(rung, color=MUTED, alpha=0.35, linewidth=0.7, zorder=0)
    colors = _colors([t.num_clusters for t in trials if t.num_clusters is not None])
    ends = []
    for trial in trials:
        x = [r.images_seen / 1000 for r in _usable(trial)]
        y = [r.distance for r in _usable(trial)]
        best, apart = trial.trial == result.best, trial.num_clusters is None
        other = ORANGE if best else colors.get(trial.num_clusters)
        color = INK if trial.is_baseline else MUTED if trial.is_comparison else other
        dashes = (0, (5 if trial.is_baseline else 1, 3)) if apart else "-"
        width, order = (2.4, 4) if best else (1.4, 3.5 if apart else 3)
        axes.plot(x, y, "o", color=color, ms=3.5, ls=dashes, lw=width, zorder=order, label=trial.trial)
        if trial.status not in ("completed", "running", "waiting"):
            axes.plot(x[-1], y[-1], "x", color=color, markersize=8, markeredgewidth=2, zorder=5)
        name = trial.trial if apart else f"C = {trial.num_clusters:,}"
        name += f", p{proposal}" if (proposal := read_trial_name(trial.trial).proposal) else ""
        name += f", seed {trial.seed}" if trial.seed else ""
        left = _is_point(trial, result)
        ends.append(LineEnd(x=x[-1], y=y[-1], name=name, color=color, bold=best, keep=best or apart, left=left))
    name_ends(axes, ends, _SMALL)
    if not trials:
        _say_nothing_to_draw(axes)
    return figure


def svg(figure: Figure, description: str) -> str:
    """The figure as an `<svg>` element for the body of an HTML page: no prologue, no metadata, no address in it.

    Its text stays text, set in the page's font. description: what a screen reader says; escaped here.
    """
    buffer = io.StringIO()
    # A salt of its own keeps the identifiers of two figures on one page apart and makes the same study the same bytes.
    settings = {"svg.fonttype": "none", "svg.hashsalt": description}
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        # A character that matplotlib's font lacks is drawn all the same, by the page's font.
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from font")
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    markup = buffer.getvalue()
    markup = re.sub(r"<metadata>.*?</metadata>", "", markup[markup.index("<svg") :], flags=re.DOTALL)
    markup = re.sub(r' xmlns(:xlink)?="[^"]*"', "", markup)
    label = html.escape(description, quote=True)
    return markup.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1)


def new_figure(right: float, top: float) -> tuple[Figure, Axes]:
    """An empty figure of the page's width; right, top: where its axes end, in shares of the figure."""
    figure = Figure(figsize=(_WIDTH, _HEIGHT))
    axes = figure.add_axes((0.075, 0.125, right - 0.075, top - 0.125))
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(MUTED)
    axes.tick_params(colors=INK, labelsize=_SMALL, length=3, color=MUTED)
    axes.grid(axis="y", color=MUTED, alpha=0.18, linewidth=0.7)
    axes.set_axisbelow(True)
    return figure, axes


def _distance_axis(axes: Axes, metric: str, distances: Sequence[float]) -> None:
    """Logarithmic where the distances span more than a factor of 3: the first rungs would flatten all others."""
    # A metric's name may come from a file name; a dollar sign in it is no formula.
    axes.set_ylabel(f"{printable(metric)} (lower is better)", fontsize=_TEXT, color=INK, parse_math=False)
    low, high = (min(distances), max(distances)) if distances else (0.0, 1.0)
    if low > 0 and high / low > 3:
        margin = (high / low) ** 0.12
        axes.set_yscale("log")
        axes.set_ylim(low / margin, high * margin)
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7) if high / low < 30 else (1, 2, 5)))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    else:
        margin = 0.16 * (high - low) or 0.1 * high or 1.0
        axes.set_ylim(max(low - margin, 0.0) if low >= 0 else low - margin, high + margin)


def _cluster_axis(axes: Axes, result: StudyResult, conditional: Sequence[TrialResult]) -> None:
    """log2 C, with plain integers at the C that were asked; where they crowd, the best and C_max win."""
    c_max = result.bound.c_max
    wanted = [result.best_num_clusters, c_max, 2 if c_max else None]
    wanted += [t.num_clusters for t in conditional] + [p.num_clusters for p in result.bound.points]
    log_cluster_axis(axes, [c for c in wanted if c is not None])


def log_cluster_axis(axes: Axes, wanted: Sequence[int]) -> None:
    """log2 C, wide enough for all of `wanted`, with plain integers at them; where they crowd, the first ones win."""
    low, high = (min(wanted), max(wanted)) if wanted else (2, 64)
    margin = 2 ** (0.04 * math.log2(high / low) if high > low else 0.5)
    axes.set_xscale("log", base=2)
    axes.set_xlim(low / margin, high * margin)
    ticks = spaced(wanted, [(math.log2(c),) for c in wanted], (0.042 * math.log2(high * margin**2 / low),))
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.set_xlabel("number of clusters C", fontsize=_TEXT, color=INK)


def _utilization_axis(axes: Axes, result: StudyResult) -> Axes | None:
    points = sorted(result.bound.points, key=lambda p: p.num_clusters)
    if not points:
        return None
    right = axes.twinx()
    right.spines[["top", "left", "bottom"]].set_visible(False)
    right.spines["right"].set_color(MUTED)
    right.tick_params(labelsize=_SMALL, colors=MUTED, length=3)
    alpha = result.bound.alpha
    x, shares = [p.num_clusters for p in points], [p.utilization for p in points]
    right.axhline(alpha, color=MUTED, linestyle=":", linewidth=1.3, zorder=1, label=f"threshold α = {alpha:g}")
    right.plot(x, shares, "s-", color=MUTED, markersize=4, linewidth=1, alpha=0.9, label="share of clusters used, r(C)")
    low = min(*shares, alpha)
    span = max(1 - low, 0.01)
    # The curve keeps to the upper part, because the good distances are at the bottom.
    right.set_ylim(1 - 2.2 * span, 1 + 0.12 * span)
    step = next(step for step in (0.005, 0.01, 0.02, 0.05, 0.1, 0.2) if span / step <= 6)
    right.yaxis.set_major_locator(FixedLocator([1 - step * index for index in range(int(span / step) + 2)]))
    right.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    right.set_ylabel("share of clusters used, r(C)", fontsize=_TEXT, color=MUTED)
    return right


def _legend(figure: Figure, sides: Sequence[Axes]) -> None:
    """Above the axes: first the trials, then what they are held against, then the bound."""
    handles: dict[str, Artist] = {}
    for side in sides:
        handles |= {label: handle for handle, label in zip(*side.get_legend_handles_labels(), strict=True)}
    if handles:
        order = sorted(handles, key=lambda label: next(i for i, name in enumerate(_LEGEND) if label.startswith(name)))
        figure.legend(
            [handles[label] for label in order],
            order,
            loc="upper left",
            bbox_to_anchor=(0.065, 0.995),
            ncols=3,
            frameon=False,
            fontsize=_SMALL,
            handlelength=2.2,
            columnspacing=2.0,
            labelspacing=0.6,
            labelcolor=INK,
        )


def _images_axis(axes: Axes, result: StudyResult, trials: Sequence[TrialResult]) -> None:
    """Linear in the images seen, or log2 where the last rung is more than 5 times the first."""
    seen = [r.images_seen / 1000 for t in trials for r in _usable(t)]
    ends = [value for value in (*result.rungs_kimg, *seen) if value > 0] or [1.0]
    low, high = min(ends), max(ends)
    position = float
    named_on_the_left = high > low and any(_is_point(t, result) for t in trials)
    if high / low > 5:
        axes.set_xscale("log", base=2)
        axes.set_xlim(low / (high / low) ** (0.27 if named_on_the_left else 0.12), high * (high / low) ** 0.01)
        position = math.log2
    else:
        left = low - 0.27 * (high - low) if named_on_the_left else 0.9 * low
        axes.set_xlim(0 if low < 0.5 * high else left, high * 1.015)
    span = position(high) - (position(low) if position is math.log2 else 0.0)
    wanted = sorted(result.rungs_kimg, reverse=True)
    axes.xaxis.set_major_locator(FixedLocator(spaced(wanted, [(position(r),) for r in wanted], (0.05 * span,))))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: amount(value)))
    axes.set_xlabel("training images seen", fontsize=_TEXT, color=INK)


def _colors(clusters: Sequence[int]) -> dict[int, tuple[float, float, float, float]]:
    """Viridis by log C, without its yellow end, which is too pale on white."""
    shades = matplotlib.colormaps["viridis"]
    logs = {c: math.log2(c) for c in clusters}
    low, high = (min(logs.values()), max(logs.values())) if logs else (0.0, 1.0)
    return {c: shades(0.72 * (value - low) / (high - low) if high > low else 0.36) for c, value in logs.items()}


def _usable(trial: TrialResult) -> list[TrialReport]:
    return [report for report in trial.reports if report.distance is not None and not report.collapsed]


def _is_point(trial: TrialResult, result: StudyResult) -> bool:
    """Whether a trial's line is one point of several rungs: it has nothing on its left, where its name goes, but all
    the others on its right."""
    return len(_usable(trial)) == 1 and len(result.rungs_kimg) > 1


def _levels(result: StudyResult) -> list[tuple[TrialResult, str, str, int]]:
    """The trials that have no C and a distance: each with its name, its color and the length of its dashes."""
    looks = {"is_baseline": ("unconditional model", INK, 5), "is_comparison": ("on feature vectors", MUTED, 1)}
    return [(t, *look) for kind, look in looks.items() for t in result.trials if getattr(t, kind) and t.final]


def _seen(report: TrialReport) -> str:
    return amount(report.images_seen / 1000)


def _say_nothing_to_draw(axes: Axes) -> None:
    message = "no trial has a usable distance"
    axes.text(0.5, 0.25, message, transform=axes.transAxes, ha="center", va="center", fontsize=11, color=MUTED)
    axes.set_yticks([])
