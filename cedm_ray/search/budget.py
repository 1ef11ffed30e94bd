"""What a whole search will cost, before it starts: images, hours, storage, and what it saves.

How many trials pass a rung depends on what they measure and on who comes first, so the search is played many times on
the rungs' own rule: trials of random quality, the same order at every rung, on as many places as the cluster has. That
quality does not change sides between rungs is an assumption; which C is good is none. The fits of the bound come before
and are not counted: they are short beside trials, and how many there will be nobody knows.
"""

import heapq
import random
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from cedm_ray.search.asha import Asha
from cedm_ray.search.plan import Plan
from cedm_ray.search.rates import Rate
from cedm_ray.search.results import TrialReport, trial_name
from cedm_ray.search.space import SearchSpace

GAMES = 100
"""How often a search is played."""

# Numbers of C that the paper's authors published models' clusterings for, each of which their procedure trains
# (performance.md 5.1).
_PUBLISHED_GRIDS = {"cifar10": 17, "cifar100": 11, "ffhq64": 22}

# A checkpoint holds the network, its average and Adam's two moments, in float32.
_COPIES, _FLOAT_BYTES = 4, 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """A figure that depends on how the search goes: its mean, and the 5th and 95th percentile of the games."""

    low: float
    mean: float
    high: float

    def times(self, factor: float) -> "Span":
        return Span(low=self.low * factor, mean=self.mean * factor, high=self.high * factor)


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """The cost of a search.

    candidates: C that are trained, and the unconditional model beside them. survivors: how many of them go on from each
    rung but the last. images: trained by all candidates. baseline_images: by the unconditional model. exhaustive: the
    grid that is compared with, in words; exhaustive_images: of each of its C to the last rung. saving: the latter over
    images. slots: trials at once. gpus_each: GPUs that a trial holds, 0 on CPUs. rate: None where nothing is known of
    the hardware, and then the hours are None. trial_h: that trials hold their places, all together. gpu_h: that in
    GPU-hours, None on CPUs. wall_h: from the first trial's start to the last one's end. checkpoint_bytes: of one.
    storage_bytes: of all checkpoints that are kept.
    """

    candidates: int
    survivors: tuple[Span, ...]
    images: Span
    baseline_images: int
    exhaustive: str
    exhaustive_images: int
    saving: Span
    slots: int
    gpus_each: float
    rate: Rate | None
    trial_h: Span | None
    gpu_h: Span | None
    wall_h: Span | None
    checkpoint_bytes: int
    storage_bytes: int


@dataclass(frozen=True, slots=True)
class _Game:
    """One play. images: of the candidates. work, makespan: in training images, evaluations included."""

    images: int
    passed: tuple[int, ...]
    work: float
    makespan: float


def plan_search(
    space: SearchSpace, trial: Plan, *, slots: int, gpus_each: float, rate: Rate | None, parameters: int
) -> Budget:
    """Count a search. trial: `plan_trial` of the space. slots: trials that the cluster holds at once, at least 1.
    gpus_each: GPUs of each, 0 = CPUs. rate: of one GPU, or of one trial on CPUs. parameters: of the network."""
    if slots < 1:
        raise ValueError(f"slots must be at least 1, got {slots}")
    count = space.candidates.count if space.candidates.explicit is None else len(space.candidates.explicit)
    games = [_play(space, trial, count, slots, random.Random(game)) for game in range(GAMES)]
    each = sum(rung.images for rung in trial.rungs)
    published = _PUBLISHED_GRIDS.get(space.name)
    exhaustive = f"all {count} candidates" if published is None else f"the {published} C of the paper's own grid"
    images = _span([game.images for game in games])
    exhaustive_images = (published or count) * each
    pace = None if rate is None else rate.images_per_s * (gpus_each or 1.0) * 3600
    trial_h = None if pace is None else _span([game.work for game in games]).times(1 / pace)
    checkpoint = parameters * _COPIES * _FLOAT_BYTES
    return Budget(
        candidates=count,
        survivors=tuple(
            _span([game.passed[rung] for game in games]) for rung in range(len(space.rungs.rungs_kimg) - 1)
        ),
        images=images,
        baseline_images=each,
        exhaustive=f"{exhaustive} to the last rung",
        exhaustive_images=exhaustive_images,
        saving=_span([exhaustive_images / game.images for game in games]),
        slots=slots,
        gpus_each=gpus_each,
        rate=rate,
        trial_h=trial_h,
        gpu_h=trial_h.times(gpus_each) if trial_h is not None and gpus_each else None,
        wall_h=None if pace is None else _span([game.makespan for game in games]).times(1 / pace),
        checkpoint_bytes=checkpoint,
        storage_bytes=checkpoint * space.checkpoints.keep * (count + 1),
    )


def _play(space: SearchSpace, trial: Plan, count: int, slots: int, dice: random.Random) -> _Game:
    """The baseline and `count` trials of random quality, on `slots` places: whoever is next takes a free one."""
    quality = list(range(1, count + 1))
    dice.shuffle(quality)
    waiting: list[int | None] = [None, *quality]
    # What a rung costs in training images; an image generated or measured is counted by its operations.
    work = [rung.images * (1 + rung.share) for rung in trial.rungs]
    asha, now, done, images = Asha(space.rungs), 0.0, 0.0, 0
    passed = [0] * len(work)
    # By time, then by who began first.
    running: list[tuple[float, int, int, int | None]] = []
    begun = 0
    while waiting or running:
        while waiting and len(running) < slots:
            heapq.heappush(running, (now + work[0], begun, 0, waiting.pop(0)))
            begun += 1
        now, order, rung, place = heapq.heappop(running)
        done += work[rung]
        if place is not None:
            images += trial.rungs[rung].images
        if asha.decide(_report(place, rung)).status != "running":
            continue
        if place is not None:
            passed[rung] += 1
        heapq.heappush(running, (now + work[rung + 1], order, rung + 1, place))
    return _Game(images, tuple(passed), done, now)


def _report(place: int | None, rung: int) -> TrialReport:
    """What a trial of that place among all says at a rung: the better, the lower."""
    return TrialReport(
        trial=trial_name(None if place is None else place + 1),
        rung=rung,
        images_seen=0,
        distance=float(place or 0),
        num_samples=0,
        loss=None,
        train_s=0.0,
        evaluate_s=0.0,
        skipped_steps=0,
        collapsed=False,
    )


def _span(values: Sequence[float]) -> Span:
    ordered = sorted(values)
    last = len(ordered) - 1
    return Span(low=float(ordered[round(0.05 * last)]), mean=fmean(ordered), high=float(ordered[round(0.95 * last)]))
