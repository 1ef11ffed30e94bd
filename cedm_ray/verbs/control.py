"""The verbs for a search that runs elsewhere: status, watch, stop. They read a study's records and need no Ray."""

import json
import time
from pathlib import Path

import click

from cedm_ray.verbs.options import options

_ENDED = "nobody drives it"
_LAST_WORDS_S = 5.0


@click.command()
@click.argument("study", type=click.Path(path_type=Path))
@options("json")
def status(study: Path, as_json: bool) -> None:
    """Show where a study stands: trials, costs, who drives it."""
    from cedm_ray.search.status import read_standing

    standing = read_standing(_place(study))
    if as_json:
        click.echo(json.dumps(standing.to_json(), indent=2))
        return
    for line in standing_lines(standing):
        click.echo(line)


@click.command()
@click.argument("study", type=click.Path(path_type=Path))
@click.option("--every", type=click.FloatRange(min=0, min_open=True), default=5.0, show_default=True, help="Seconds.")
def watch(study: Path, every: float) -> None:
    """Show where a study stands, again and again, until it ends.

    On a terminal the table is renewed in place; elsewhere a line is printed whenever something has changed.
    """
    from cedm_ray.search.status import read_standing

    place = _place(study)
    standing = read_standing(place)
    owner = standing.driver
    with _Screen() as screen:
        while standing.driver is not None:
            owner = standing.driver
            screen.show(standing)
            time.sleep(every)
            standing = read_standing(place)
    if owner is not None:
        # How it ended it writes down after it has let go of the study.
        until = time.monotonic() + _LAST_WORDS_S
        while owner.is_here and time.monotonic() < until:
            time.sleep(0.1)
        standing = read_standing(place)
    for line in standing_lines(standing):
        click.echo(line)


@click.command()
@click.argument("study", type=click.Path(path_type=Path))
@click.option(
    "--timeout",
    type=click.FloatRange(min=0),
    default=60.0,
    show_default=True,
    help="Seconds to wait for the driver to end; shared storage may hand a request on late.",
)
def stop(study: Path, timeout: float) -> None:
    """End the driver of a study, on whatever machine it runs.

    Waits until it is gone. Everything acknowledged is saved: the same search command goes on from there.
    """
    from cedm_ray.search.stop import stop_driver

    owner = stop_driver(_place(study), timeout_s=timeout)
    if owner is None:
        click.echo(f"{study} is not driven by anybody; there is nothing to stop")
    else:
        click.echo(f"{owner} has ended; the same search command goes on from there")


def _place(study: Path):
    """The study at a path. Raises ConfigurationError where there is none."""
    from cedm_ray.search.study import Study

    place = Study(study)
    place.settled()
    return place


class _Screen:
    """Shows a standing again and again: in place on a terminal, elsewhere as a line when it has changed."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.live import Live

        self.console = Console()
        self._live = Live(console=self.console, auto_refresh=False, transient=True)
        self._said = ""

    def __enter__(self) -> "_Screen":
        if self.console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self.console.is_terminal:
            self._live.stop()

    def show(self, standing) -> None:
        from rich.text import Text

        if self.console.is_terminal:
            # As it is: a reason may hold brackets, which would be markup.
            self._live.update(Text("\n".join(standing_lines(standing)), no_wrap=True), refresh=True)
            return
        line = standing_line(standing)
        if line != self._said:
            self._said = line
            click.echo(line)


def standing_lines(standing) -> list[str]:
    """A `Standing` as the lines of a table and what is to be said around it."""
    from cedm_ray.search.settings import last_words, paths_of
    from cedm_ray.terminal import table_lines

    lines = [f"{standing.name}: {_work(standing)}"]
    if standing.bound is not None:
        lines.append(standing.bound)
    if standing.trials:
        total = standing.rungs_kimg[-1]
        searched = paths_of(trial.settings for trial in standing.trials)
        columns = ["C", *map(last_words(searched).get, searched), "C^u", "r_C", "rung", "kimg", standing.metric]
        columns += ["images/s", "GPUs", "ETA", "state"]
        lines += ["", *table_lines(columns, [_row(trial, standing, total, searched) for trial in standing.trials]), ""]
    if standing.gpu_h and standing.trials:
        share = f", {standing.wasted_gpu_h / standing.gpu_h:.0%}"
        wasted = f"{standing.wasted_gpu_h:.3g} GPU-hours ({standing.wasted_h:.3g} h on any device{share})"
        lines.append(f"trials took {standing.gpu_h:.3g} GPU-hours; those that were stopped or failed {wasted}")
    elif standing.trials:
        gpus = "GPUs are not on record" if standing.gpu_h is None else "none held a GPU"
        all_h = sum(trial.trial_h for trial in standing.trials)
        lines.append(f"trials took {all_h:.3g} h; those that were stopped or failed {standing.wasted_h:.3g} h; {gpus}")
    if standing.eta_s is not None:
        lines.append(f"all trials at the last rung in {duration(standing.eta_s)} at the most, if none is stopped")
    lines.append(_driver(standing))
    return lines


def standing_line(standing) -> str:
    """A `Standing` as one line for a log."""
    running = [trial for trial in standing.trials if trial.state == "running"]
    ended = sum(trial.state not in ("waiting", "running", "interrupted") for trial in standing.trials)
    parts = [f"{standing.name}: {_work(standing)}"]
    if standing.trials:
        parts.append(f"{ended} of {len(standing.trials)} trials ended")
    for trial in running:
        distance = "" if trial.distance is None else f", {standing.metric} {trial.distance:.4g}"
        parts.append(f"{trial.trial} at {trial.images_seen / 1000:g} of {standing.rungs_kimg[-1]:g} kimg{distance}")
    if standing.eta_s is not None:
        parts.append(f"{duration(standing.eta_s)} left at the most")
    return "; ".join(parts)


def _work(standing) -> str:
    done = f"{standing.fits} {'fit' if standing.fits == 1 else 'fits'} done"
    # What nobody works on is said to be missing.
    now, missing = {
        "images": ("the images are being read", "the images are not read yet"),
        "features": ("features and neighbors are being found", "features and neighbors are not found yet"),
        "bound": (f"the bound is searched for, {done}", f"the bound is not found yet, {done}"),
        "trials": (f"{done}, trials are trained", f"{done}, trials are not all trained yet"),
        "over": (f"{done}, no trial is left to train",) * 2,
    }[standing.phase]
    return missing if standing.driver is None else now


def _row(trial, standing, total: float, searched: list[str]) -> list[object]:
    from cedm_ray.search.settings import cells
    from cedm_ray.terminal import trial_label

    rung = None if trial.rung is None else f"{trial.rung + 1}/{len(standing.rungs_kimg)}"
    return [
        trial_label(trial.trial),
        *cells(trial.settings, searched),
        trial.num_used,
        None if trial.utilization is None else f"{trial.utilization:.3f}",
        rung,
        f"{trial.images_seen / 1000:g}/{total:g}",
        None if trial.distance is None else f"{trial.distance:.4g}",
        None if trial.images_per_s is None else f"{trial.images_per_s:,.0f}",
        None if trial.gpus is None else f"{trial.gpus:g}",
        None if trial.eta_s is None else duration(trial.eta_s),
        f"{trial.state}: {trial.reason}",
    ]


def _driver(standing) -> str:
    if standing.driver is not None:
        return f"driven by {standing.driver}"
    if standing.last_exit is None:
        return f"{_ENDED}; no command has ended yet, so the last one was killed"
    return f"{_ENDED}; the last command ended with {standing.last_exit['code']}: {standing.last_exit['text']}"


def duration(seconds: float) -> str:
    """Seconds for people, such as 45 s, 12 min, 3.4 h or 2.1 days."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} days"
