"""What a whole search will cost, before it starts: images, hours, storage, and what it saves.

How many trials pass a rung depends on what they measure and on who comes first, so the search is played many times on
the rungs' own rule: trials of random quality, the same order at every rung, on as many places as the cluster has. That
quality does not change sides between rungs is an assumption, and so is that a refinement's C are as good as any other;
which C is good is none. Under the rule halving how many go on is certain, and only the hours depend on the order. Where
networks or samplers are searched, every trial of a game has one of those that may be proposed, whatever its quality;
TPE may come to like dear ones or cheap ones, which nobody knows before. The fits of the bound come before and are not
counted: they are short beside trials, and how many there will be nobody knows.
"""

import heapq
import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from cedm_ray.search.asha import Asha
from cedm_ray.search.plan import TRAINING_FORWARDS, Plan
from cedm_ray.search.proposals import number_of_trials
from cedm_ray.search.rates import Rate
from cedm_ray.search.results import UNCONDITIONAL, TrialReport, read_trial_name, trial_name
from cedm_ray.search.space import SearchSpace
from cedm_ray.search.variants import Variants

GAMES = 100
"""How often a search is played."""

# Sets of images that the kept model is measured on, where finals.evaluate says so (evaluation/requests.py).
_SETS = 3

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

    candidates: C that are trained at first, and the unconditional model beside them; or proposals, then searched: the
    settings that these are made of besides C, and proposed: grid, random or tpe, and drawn: how many of them tpe draws
    before it knows enough. refined: at most so many more by
    refinements. survivors: how many of both go on from each rung but the last. images: trained by them.
    baseline_images: by the unconditional model. seed_images: by the finalists' further seeds. stretch_images: by the
    winner beyond the last rung. measured_images: generated for the kept model's measurement at the end. exhaustive: the
    grid that is compared with, in words; exhaustive_images: of each of its C to the last rung. saving: the latter over
    images. slots: trials at once. gpus_each: GPUs that a trial holds, 0 on CPUs. rate: None where nothing is known of
    the hardware, and then the hours are None. trial_h: that trials hold their places, all together, and the measurement
    one; final_h: of that, after the candidates. gpu_h: trial_h in GPU-hours, None on CPUs. wall_h: from the first
    trial's start to the end of all. checkpoint_bytes: of one. storage_bytes: of all checkpoints that are kept, where
    networks are searched at the most. costly: the searched settings that trials differ in cost by; relative_cost: of a
    proposed trial in those with the space's own settings, at its least, on average and at its most; cost_drawn: whether
    that is of some combinations that were drawn, since there are too many.
    """

    candidates: int
    refined: int
    survivors: tuple[Span, ...]
    images: Span
    baseline_images: int
    seed_images: Span
    stretch_images: int
    measured_images: int
    exhaustive: str
    exhaustive_images: int
    saving: Span
    slots: int
    gpus_each: float
    rate: Rate | None
    trial_h: Span | None
    final_h: Span | None
    gpu_h: Span | None
    wall_h: Span | None
    checkpoint_bytes: int
    storage_bytes: int
    searched: tuple[str, ...] = ()
    proposed: str | None = None
    drawn: int = 0
    costly: tuple[str, ...] = ()
    relative_cost: Span | None = None
    cost_drawn: bool = False


@dataclass(frozen=True, slots=True)
class _Game:
    """One play. images: of the candidates. seed_images: of the finalists' further seeds. work (final_work of it after
    the candidates), makespan: in training images, evaluations included."""

    images: int
    passed: tuple[int, ...]
    seed_images: int
    work: float
    final_work: float
    makespan: float


@dataclass(frozen=True, slots=True, order=True)
class _Step:
    """What holds a place for `work`: a trial on its way to a rung, or what comes after all C and is not judged, then
    without a name. order: of who began, one for each trial."""

    order: int
    name: str | None
    rung: int
    work: float


def plan_search(
    space: SearchSpace,
    trial: Plan,
    *,
    slots: int,
    gpus_each: float,
    rate: Rate | None,
    parameters: int,
    variants: Variants | None = None,
) -> Budget:
    """Count a search. trial: `plan_trial` of the space. slots: trials that the cluster holds at once, at least 1.
    gpus_each: GPUs of each, 0 = CPUs. rate: of one GPU, or of one trial on CPUs; of another network it is taken to be
    as many operations. parameters: of the network. variants: `plan_variants` of the space; None = all trials cost the
    same."""
    if slots < 1:
        raise ValueError(f"slots must be at least 1, got {slots}")
    count = _candidates(space)
    varied = variants is not None and bool(variants.searched)
    likely = tuple(variant.plan for variant in variants.likely) if varied else ()
    games = [_play(space, trial, count, slots, random.Random(game), likely) for game in range(GAMES)]
    each = sum(rung.images for rung in trial.rungs)
    # The paper's authors searched C alone.
    published = None if space.candidates.proposes else _PUBLISHED_GRIDS.get(space.name)
    exhaustive = f"all {count} candidates" if published is None else f"the {published} C of the paper's own grid"
    images = _span([game.images for game in games])
    exhaustive_images = (published or count) * each
    pace = None if rate is None else rate.images_per_s * (gpus_each or 1.0) * 3600
    trial_h = None if pace is None else _span([game.work for game in games]).times(1 / pace)
    checkpoint = parameters * _COPIES * _FLOAT_BYTES
    finals, refined = space.finals, sum(_waves(space, count)) - count
    folders = count + refined + min(finals.finalists, count + refined) * (finals.seeds - 1)
    largest = checkpoint
    if varied:
        everyone = (*variants.likely, *variants.extremes)
        largest = max(variant.parameters for variant in everyone) * _COPIES * _FLOAT_BYTES
    return Budget(
        candidates=count,
        refined=refined,
        survivors=tuple(
            _span([game.passed[rung] for game in games]) for rung in range(len(space.rungs.rungs_kimg) - 1)
        ),
        images=images,
        baseline_images=each,
        seed_images=_span([game.seed_images for game in games]),
        stretch_images=_stretch_images(space),
        measured_images=_measured_images(space),
        exhaustive=f"{exhaustive} to the last rung",
        exhaustive_images=exhaustive_images,
        saving=_span([exhaustive_images / game.images for game in games]),
        slots=slots,
        gpus_each=gpus_each,
        rate=rate,
        trial_h=trial_h,
        final_h=None if pace is None else _span([game.final_work for game in games]).times(1 / pace),
        gpu_h=trial_h.times(gpus_each) if trial_h is not None and gpus_each else None,
        wall_h=None if pace is None else _span([game.makespan for game in games]).times(1 / pace),
        checkpoint_bytes=checkpoint,
        storage_bytes=space.checkpoints.keep * (checkpoint + largest * folders),
        searched=tuple(space.candidates.also),
        proposed=space.candidates.proposals if space.candidates.proposes else None,
        drawn=min(count, space.candidates.drawn),
        costly=variants.searched if varied else (),
        relative_cost=_relative_cost(variants, trial) if varied else None,
        cost_drawn=varied and not variants.complete,
    )


def _relative_cost(variants: Variants, trial: Plan) -> Span:
    """Of a trial through all rungs, in trials with the space's own settings."""
    own = sum(_work(trial, trial))
    likely, extremes = (
        [sum(_work(variant.plan, trial)) / own for variant in some] for some in (variants.likely, variants.extremes)
    )
    return Span(low=min(*likely, *extremes), mean=fmean(likely), high=max(*likely, *extremes))


def _work(plan: Plan, own: Plan) -> list[float]:
    """What each rung costs in training images of the space's own network; what else is computed is counted by its
    operations."""
    image = TRAINING_FORWARDS * own.forward_flops
    return [(rung.training_flops + rung.evaluation_flops) / image for rung in plan.rungs]


def _play(
    space: SearchSpace, trial: Plan, count: int, slots: int, dice: random.Random, variants: Sequence[Plan] = ()
) -> _Game:
    """The baseline and `count` trials of random quality, and what follows them, on `slots` places. variants: what a
    trial may cost, all as likely; none = what `trial` does, as the baseline.

    Who is next takes a free place; who waits for others leaves its own, and goes on before those that have not begun.
    A stage begins when all before it are over but the baseline: refinements, the finalists' further seeds, the winner's
    last stretch. The measurement of the kept model comes when nothing runs any more, and takes all places.
    """
    waves = _waves(space, count)
    quality = list(range(1, sum(waves) + 1))
    dice.shuffle(quality)
    names = [[trial_name(quality.pop(0) + 1) for _ in range(wave)] for wave in waves]
    asha = Asha(space.rungs, space.finals)
    plans = {UNCONDITIONAL: trial}
    for name in itertools.chain(*names):
        plans[name] = dice.choice(variants) if variants else trial
    costs = {id(plan): _work(plan, trial) for plan in plans.values()}
    work = {name: costs[id(plan)] for name, plan in plans.items()}
    ready = [_Step(0, UNCONDITIONAL, 0, work[UNCONDITIONAL][0])]
    running: list[tuple[float, _Step]] = []
    began = {UNCONDITIONAL: 0}
    stages = [*range(len(waves)), "seeds", "stretch"]
    passed, images, seed_images = [0] * len(trial.rungs), 0, 0
    completed: list[str] = []
    # pending: steps and candidates of the stage that are not over.
    now, done, final_work, begun, told, pending = 0.0, 0.0, 0.0, 1, 0, 0
    while True:
        while not pending and stages:
            stage = stages.pop(0)
            steps: list[tuple[str | None, float]] = []
            if isinstance(stage, int):
                asha.expect(names[: stage + 1])
                steps = [(name, work[name][0]) for name in names[stage]]
            elif stage == "seeds":
                # The smaller its C, the better a trial is, and its name says it.
                best = sorted(completed)[: space.finals.finalists]
                steps = [(None, sum(work[name])) for name in best] * (space.finals.seeds - 1)
                seed_images = len(steps) * sum(rung.images for rung in trial.rungs)
            elif stretch := _stretch_images(space):
                steps = [(None, _last_work(stretch, plans[min(completed, default=UNCONDITIONAL)], trial))]
            for name, cost in steps:
                heapq.heappush(ready, _Step(begun, name, 0, cost))
                if name is None:
                    final_work += cost
                else:
                    began[name] = begun
                begun += 1
            pending = len(steps)
        while ready and len(running) < slots:
            step = heapq.heappop(ready)
            heapq.heappush(running, (now + step.work, step))
        if not running:
            break
        now, step = heapq.heappop(running)
        done += step.work
        if step.name is None:
            pending -= 1
            continue
        if step.name != UNCONDITIONAL:
            images += trial.rungs[step.rung].images
        asha.decide(_report(step.name, step.rung))
        asha.settle()
        for decision in asha.decisions[told:]:
            counts = decision.trial != UNCONDITIONAL
            if decision.status == "running":
                passed[decision.rung] += counts
                rung = decision.rung + 1
                further = _Step(began[decision.trial], decision.trial, rung, work[decision.trial][rung])
                if decision.trial == step.name:
                    # It never left its place.
                    heapq.heappush(running, (now + further.work, further))
                else:
                    heapq.heappush(ready, further)
            elif decision.status != "waiting" and counts:
                pending -= 1
                completed += [decision.trial] if decision.status == "completed" else []
        told = len(asha.decisions)
    measuring = _measurement(space, plans[min(completed, default=UNCONDITIONAL)], trial)
    return _Game(images, tuple(passed), seed_images, done + measuring, final_work + measuring, now + measuring / slots)


def _candidates(space: SearchSpace) -> int:
    """How many are trained, refinements apart: C of the grid, or proposals."""
    config = space.candidates
    grid = config.count if config.explicit is None else len(config.explicit)
    return number_of_trials(config, grid, space.own) if config.proposes else grid


def _waves(space: SearchSpace, count: int) -> list[int]:
    """How many C are trained at first, and in every refinement: at the most one on each side of the best. Proposals
    that come by what others measured are a wave each under the rule halving; under asha all are one, whose waiting for
    each other is not counted."""
    if space.candidates.proposals == "tpe" and space.rungs.rule == "halving":
        first = min(count, space.candidates.ahead)
        return [first, *[1] * (count - first)]
    waves = [count]
    for _ in range(space.candidates.refine):
        waves.append(min(2, sum(waves) - 1))
    return [wave for wave in waves if wave]


def _stretch_images(space: SearchSpace) -> int:
    """What the winner trains beyond the last rung."""
    last = space.finals.budget_kimg
    return 0 if last is None else round((last - space.rungs.rungs_kimg[-1]) * 1000)


def _measured_images(space: SearchSpace) -> int:
    """What is generated of the kept model to measure it."""
    return _SETS * space.evaluation.final_samples if space.finals.evaluate else 0


def _last_work(images: int, plan: Plan, own: Plan) -> float:
    """What it costs to train on a trial that costs `plan`, and to measure it once, as `_work` counts."""
    flops = TRAINING_FORWARDS * plan.forward_flops * images + plan.rungs[-1].evaluation_flops
    return flops / (TRAINING_FORWARDS * own.forward_flops)


def _measurement(space: SearchSpace, plan: Plan, own: Plan) -> float:
    """What that costs of a trial that costs `plan`, as `_work` counts."""
    rung = plan.rungs[-1]
    flops = plan.image_calls * plan.forward_flops + (rung.detector_flops or 0) / rung.num_samples
    return _measured_images(space) * flops / (TRAINING_FORWARDS * own.forward_flops)


def _report(name: str, rung: int) -> TrialReport:
    """What a trial says at a rung: the smaller its C, the better."""
    return TrialReport.played(name, rung, float(read_trial_name(name)[0] or 0), images_seen=0)


def _span(values: Sequence[float]) -> Span:
    ordered = sorted(values)
    last = len(ordered) - 1
    return Span(low=float(ordered[round(0.05 * last)]), mean=fmean(ordered), high=float(ordered[round(0.95 * last)]))
