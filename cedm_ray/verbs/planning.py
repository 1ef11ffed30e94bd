"""The verb that starts nothing: plan."""

import dataclasses
import json
import os
from pathlib import Path

import click

from cedm_ray.errors import ConfigurationError
from cedm_ray.verbs.options import options


@click.command()
@click.argument("space", type=click.Path(path_type=Path))
@click.option(
    "--image-size",
    type=click.IntRange(min=1),
    help="Side in pixels; default: images.size, else that of the first image.",
)
@click.option("--study", type=click.Path(path_type=Path), help="A study whose measured speed is taken.")
@options("gpus", "rate", "images", "json")
def plan(
    space: Path,
    image_size: int | None,
    study: Path | None,
    gpus: str | None,
    rate: float | None,
    images: str | None,
    as_json: bool,
) -> None:
    """Count what a search will cost, without starting anything.

    Also what it saves, and what one trial costs rung by rung.
    """
    from cedm_ray.config import read_config
    from cedm_ray.search.space import SearchSpace

    # Not read_space: a template without images can be counted too.
    read = read_config(SearchSpace, space, {"images.source": images} if images is not None else None)
    print_plan(read, study=study, image_size=image_size, gpus=gpus, rate=rate, as_json=as_json)


def print_plan(
    space, *, study: Path | None, image_size: int | None, gpus: str | None, rate: float | None, as_json: bool
) -> None:
    """Print what a search of the space will cost.

    study: folder of a study, whose reports tell the speed where it has any; None for none. gpus: such as 8xA100; None =
    the GPUs of this machine, or its cores where it has none. rate: images a second of each, None = what is known.
    """
    from cedm_ray.search.plan import plan_trial

    counted = plan_trial(space, image_size or space.images.size or _first_side(space.images))
    budget, hardware = _budget(space, counted, study, gpus, rate)
    if as_json:
        click.echo(json.dumps(_as_json(space, counted, budget, hardware), indent=2))
        return
    _print_trial(space, counted)
    click.echo()
    for line in _budget_lines(budget, hardware):
        click.echo(line)


def _budget(space, counted, study: Path | None, gpus: str | None, rate: float | None):
    """(Budget, the hardware in words) of a space."""
    import torch

    from cedm_ray.search.budget import plan_search
    from cedm_ray.search.rates import Rate, measured_rate, parse_gpus, rate_of
    from cedm_ray.search.study import Study
    from cedm_ray.search.variants import count_parameters, plan_variants

    trial = space.resources.trial
    if gpus is not None:
        number, name = parse_gpus(gpus)
    else:
        number = torch.cuda.device_count()
        name = torch.cuda.get_device_name(0) if number else ""
    each = (1.0 if trial.gpus is None else trial.gpus) if number else 0.0
    held = trial.workers * (each or trial.cpus)
    have, unit = (number, name) if each else (os.cpu_count() or 1, "cores")
    if held > have:
        raise ConfigurationError(
            f"one trial holds {held:g} and there are {have} {unit}",
            mend="lower resources.trial in the search space, or name more GPUs: --gpus 8xA100",
        )
    known = None
    if rate is not None:
        known = Rate(images_per_s=rate, source="as given by --rate")
    elif study is not None:
        place = Study(study)
        known = measured_rate([report for name_ in place.trials() for report in place.reports(name_)])
    if known is None and each:
        known = rate_of(name, counted.forward_flops)
    size = counted.image_size
    space.check_searched(size)
    budget = plan_search(
        space,
        counted,
        slots=int(have / held + 1e-9),
        gpus_each=trial.workers * each,
        rate=known,
        parameters=count_parameters(space, size),
        variants=plan_variants(space, size),
    )
    return budget, f"{have} x {unit}" if each else f"{have} {unit}"


def _as_json(space, counted, budget, hardware: str) -> dict:
    rungs = [
        {
            "rung_kimg": rung.rung_kimg,
            "images": rung.images,
            "training_flops": rung.training_flops,
            "num_samples": rung.num_samples,
            "num_steps": rung.num_steps,
            "sampling_flops": rung.sampling_flops,
            "detector_flops": rung.detector_flops,
            "share": rung.share,
        }
        for rung in counted.rungs
    ]
    return {
        "name": space.name,
        "image_size": counted.image_size,
        "forward_flops": counted.forward_flops,
        "training_flops": counted.training_flops,
        "evaluation_flops": counted.evaluation_flops,
        "rungs": rungs,
        "search": {**dataclasses.asdict(budget), "hardware": hardware},
    }


def _print_trial(space, counted) -> None:
    from cedm_ray.terminal import print_table

    rows = [
        [
            f"{rung.rung_kimg:g}",
            f"{rung.images:,}",
            _flops(rung.training_flops),
            f"{rung.num_samples:,} x {rung.num_steps} steps",
            _flops(rung.sampling_flops),
            "not counted" if rung.detector_flops is None else _flops(rung.detector_flops),
            f"{rung.share:.1%}",
        ]
        for rung in counted.rungs
    ]
    size = counted.image_size
    print_table(
        f"One trial of {space.name} at {size} x {size} pixels; a forward pass is {_flops(counted.forward_flops)}",
        ["kimg", "images", "training", "evaluation", "sampling", "detector", "share of the training"],
        rows,
    )
    total = f"{_flops(counted.training_flops)} of training and {_flops(counted.evaluation_flops)} of evaluation"
    click.echo(f"Through all rungs: {total}. The reference statistics, computed once a study, are not in it.")


def _budget_lines(budget, hardware: str) -> list[str]:
    """The search in sentences. Spans are the 5th and 95th percentile of searches whose outcome is drawn at random."""
    rungs = "".join(
        f", {'then ' if rung else ''}{_span(span)} go on from rung {rung + 1}"
        for rung, span in enumerate(budget.survivors)
    )
    millions = budget.images.times(1e-6)
    baseline = budget.baseline_images / 1e6
    what = "C" if budget.proposed is None else "trials"
    times = f"{_span(budget.saving)} times as many as these {what}"
    each = f", {budget.gpus_each:g} GPU each" if budget.gpus_each else ""
    more = f" and at most {budget.refined} more by refinement" if budget.refined else ""
    lines = [
        f"The search: after the bound's fits, {budget.candidates} {what}{_proposed(budget)}{more}{rungs}, and the "
        "unconditional model to the last.",
        f"Trained: {_span(millions)} million images for all {what}, {baseline:,.3g} for the unconditional model.",
        *_costs(budget),
        f"Saved: {budget.exhaustive} would be {budget.exhaustive_images / 1e6:,.4g} million, {times}.",
    ]
    after = _after(budget)
    if after:
        lines.append(f"After it: {after}.")
    lines.append(f"On {hardware}: at most {budget.slots} trials at once{each}.")
    if budget.rate is None:
        lines.append(
            "Hours: nothing is known of the speed of this network there. Measure it (cedm-ray train SPACE --study "
            "STUDY --dry-run) and give it (--rate IMAGES_PER_S), or name GPUs (--gpus 8xA100)."
        )
    else:
        took = f"{_span(budget.gpu_h)} GPU-hours" if budget.gpu_h else f"{_span(budget.trial_h)} hours of trials"
        final = budget.final_h.times(budget.gpus_each or 1.0)
        what = f" and the {_span(final)} after the search" if after else ""
        each = "GPU" if budget.gpus_each else "trial"
        lines.append(f"Time: {took}, {_span(budget.wall_h)} h on the clock, evaluations{what} included.")
        lines.append(f"  at {budget.rate.images_per_s:,.4g} images/s for each {each}: {budget.rate.source}")
    lines.append(f"Storage: {_storage(budget)}; images and features come to it.")
    spans = (*budget.survivors, budget.images, budget.saving, budget.seed_images, budget.trial_h, budget.wall_h)
    if any(span is not None and span.low != span.high for span in spans):
        lines.append("Figures a-b are the 5th and 95th percentile over searches whose ranking is drawn at random.")
    return lines


def _proposed(budget) -> str:
    """What trials are made of and who proposes them, in words; empty where C is searched alone."""
    from cedm_ray.search.settings import last_words

    if budget.proposed is None:
        return ""
    tpe = f"the first {budget.drawn} drawn, then proposed by TPE" if budget.drawn < budget.candidates else "all drawn"
    how = {"grid": "a grid", "random": "drawn", "tpe": tpe}[budget.proposed]
    return f" of C with {', '.join(last_words(budget.searched).values())} ({how})" if budget.searched else f" ({how})"


def _costs(budget) -> list[str]:
    """How far trials differ in what they cost; nothing where they do not."""
    from cedm_ray.search.settings import last_words
    from cedm_ray.search.variants import MOST

    cost = budget.relative_cost
    if cost is None:
        return []
    counted = f"; {MOST} combinations were drawn" if budget.cost_drawn else ""
    return [
        f"One of these trials takes {_figure(cost.low)} to {_figure(cost.high)} times the operations of one with the "
        f"space's own settings, {_figure(cost.mean)} on average if all proposals are as likely "
        f"({', '.join(last_words(budget.costly).values())}{counted})."
    ]


def _storage(budget) -> str:
    total = _bytes(budget.storage_bytes)
    if budget.costly:
        return f"at most {total} of checkpoints, {_bytes(budget.checkpoint_bytes)} each with the space's own network"
    return f"{total} of checkpoints, {_bytes(budget.checkpoint_bytes)} each"


def _after(budget) -> str:
    """What comes once all C are done, in words; empty where nothing does."""
    parts = []
    if budget.seed_images.high:
        parts.append(f"{_span(budget.seed_images.times(1e-6))} million images for more seeds of finalists")
    if budget.stretch_images:
        parts.append(f"{budget.stretch_images / 1e6:,.3g} million for the winner beyond the last rung")
    if budget.measured_images:
        parts.append(f"{budget.measured_images:,} images generated to measure the kept model")
    return ", ".join(parts)


def _span(span) -> str:
    """`375 (200-515)`, or one figure where there is no doubt."""
    low, mean, high = (_figure(value) for value in (span.low, span.mean, span.high))
    return mean if low == high else f"{mean} ({low}-{high})"


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def _bytes(count: float) -> str:
    """A number of bytes for people, such as `12.3 GB`."""
    for prefix in ("", "k", "M", "G"):
        if count < 1000:
            return f"{count:.3g} {prefix}B"
        count /= 1000
    return f"{count:,.3g} TB"


def _first_side(config) -> int:
    """The side of the first image of a source whose images keep their own."""
    from cedm_ray.data.decoding import SourceImage, decode_entries
    from cedm_ray.data.sources import open_source

    if config.source is None:
        raise ConfigurationError("neither images.size nor images.source is set", mend="name the side: --image-size 64")
    for image in decode_entries(open_source(config), config):
        if isinstance(image, SourceImage):
            return image.pixels.shape[-1]
    raise ConfigurationError(f"{config.source} holds no image that can be read", mend="name the side: --image-size 64")


def _flops(count: float) -> str:
    """A number of operations for people, such as `83.2 GFLOP`."""
    for prefix in ("", "k", "M", "G", "T", "P"):
        if count < 1000:
            return f"{count:.3g} {prefix}FLOP"
        count /= 1000
    return f"{count:,.3g} EFLOP"
