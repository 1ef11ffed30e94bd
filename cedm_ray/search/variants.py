"""What trials cost that differ in their network or their sampler, where a search for more than C proposes these."""

import itertools
import math
import random
from dataclasses import dataclass
from typing import Any

import torch

from cedm_ray.diffusion.unet import UNet, UNetConfig
from cedm_ray.search.plan import Plan, plan_trial
from cedm_ray.search.settings import Range, Settings, frozen, is_whole
from cedm_ray.search.space import SearchSpace

COSTLY = (
    "network.model_channels",
    "network.channel_mult",
    "network.num_blocks",
    "network.attention_resolutions",
    "sampling.num_steps",
    "sampling.guidance",
)
"""The settings that change how many operations a trial takes; all others that may be searched change none."""

MOST = 256
"""Combinations that are counted one by one; of more, so many are drawn."""

_FIFTHS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """A trial as it may be proposed. plan: what it costs. parameters: of its network."""

    plan: Plan
    parameters: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Variants:
    """The trials that may be proposed, as far as their cost differs.

    searched: the paths of the settings that it differs by, none where it does not. likely: each as likely as any other.
    extremes: those among which the cheapest and the dearest are. complete: whether all combinations were counted, and
    not some that were drawn.
    """

    searched: tuple[str, ...]
    likely: tuple[Variant, ...]
    extremes: tuple[Variant, ...]
    complete: bool = True


def plan_variants(space: SearchSpace, image_size: int) -> Variants:
    """Count the trials that the space may propose on images of that side in pixels.

    Of a range the middles of its fifths stand for what is drawn from it, and its ends for its extremes. TPE may propose
    some more often than others; here all are as likely. Raises ConfigurationError where a network does not fit the
    images.
    """
    searched = tuple(path for path in space.candidates.also if path in COSTLY)
    counted: dict[tuple[UNetConfig, int, float], Variant] = {}

    def of(values: Settings) -> Variant:
        changed = space.changed(values)
        network = changed.network.model_copy(update={"dropout": 0.0, "label_dropout": 0.0})
        key = network, changed.rung_sampling.num_steps, float(changed.sampling.guidance > 0)
        if key not in counted:
            plan = plan_trial(changed, image_size)
            counted[key] = Variant(plan=plan, parameters=count_parameters(changed, image_size))
        return counted[key]

    if not searched:
        own = (of(()),)
        return Variants(searched=(), likely=own, extremes=own)
    drawn, complete = _combinations(space, searched, ends=False)
    ends, all_ends = _combinations(space, searched, ends=True)
    return Variants(
        searched=searched,
        likely=tuple(map(of, drawn)),
        extremes=tuple(map(of, ends)),
        complete=complete and all_ends,
    )


def count_parameters(space: SearchSpace, image_size: int) -> int:
    """Parameters of the space's network without a condition."""
    with torch.device("meta"):
        return sum(p.numel() for p in UNet(space.network, image_size, 0, 0).parameters())


def _combinations(space: SearchSpace, searched: tuple[str, ...], *, ends: bool) -> tuple[list[Settings], bool]:
    """(Combinations of the values of these settings, whether these are all). ends: of ranges the ends."""
    also, own = space.candidates.also, space.own
    # What costs nothing has any of its values: guidance, for one, may need a label_dropout that is searched as well.
    fixed = {path: _values(values, is_whole(own[path]), ends=True)[-1] for path, values in also.items()}
    choices = [_values(also[path], is_whole(own[path]), ends=ends) for path in searched]
    count = math.prod(map(len, choices))
    if count <= MOST:
        found: list[tuple[Any, ...]] = list(itertools.product(*choices))
    else:
        dice = random.Random(space.seed)
        found = [tuple(dice.choice(values) for values in choices) for _ in range(MOST)]
    return [frozen(fixed | dict(zip(searched, values, strict=True))) for values in found], count <= MOST


def _values(values: Range | tuple[Any, ...], whole: bool, *, ends: bool) -> tuple[Any, ...]:
    if not isinstance(values, Range):
        return values
    if ends:
        return values.rounded(values.low, whole=whole), values.rounded(values.high, whole=whole)
    return tuple(values.at((index + 0.5) / _FIFTHS, whole=whole) for index in range(_FIFTHS))
