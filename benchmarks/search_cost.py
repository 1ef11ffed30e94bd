"""What a search trains against the paper's procedure, on recorded curves: `python benchmarks/search_cost.py`.

The paper trains every C of its grid to 100 million images. Here Agenda, Asha and the candidates, the very objects that
a driver follows, run searches against learning curves drawn from a seed: a simulated cluster with one clock, `slots`
trials at a time, whose speeds differ by 10 %, and pauses, stops and resumes as the driver does them. What is counted is
training images of conditional trials, the winner's 100 million included; the unconditional baseline and the clusterings
are the same in both procedures and left out (`with_baseline` counts 100 million on both sides).

The curves are those of search_curves.py, drawn from published points and not recordings of a GPU.

regret: FID of the chosen trial at 100 million, its own training noise included and without evaluation noise, over that
of the best C of all, without noise, minus 1. `p_5_percent`: the share of seeds in which it is at most 5 %, in the worst
scenario of displacement and width. `ratio`: images of the paper's grid over images of the search, in the family where
that is least, with the settings of search_spaces/cifar10.yaml, cifar100.yaml and ffhq64.yaml.
"""

import argparse
import heapq
import json
import os
import platform
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import yaml
from search_curves import BUDGET, CIFAR10_GRID, DISPLACEMENTS, FAMILIES, Curve, Family

from cedm_ray.clustering.bound import BoundConfig
from cedm_ray.clustering.lower_bound import LowerBoundConfig
from cedm_ray.search.agenda import Agenda
from cedm_ray.search.asha import Asha, AshaConfig
from cedm_ray.search.candidates import CandidatesConfig
from cedm_ray.search.contest import Contest
from cedm_ray.search.goals import FitTask, Goal, TrainTask
from cedm_ray.search.results import TrialReport, read_trial_name

NUM_IMAGES = 50_000
SPACES = Path(__file__).parents[1] / "search_spaces"


@dataclass(frozen=True)
class Policy:
    """A setting of a search space: `candidates`, `rungs` and evaluation.num_samples."""

    grid: CandidatesConfig
    rungs: AshaConfig
    samples: int

    @property
    def name(self) -> str:
        levels = "/".join(f"{level / 1000:g}" for level in self.rungs.rungs_kimg)
        more = f" +{self.grid.refine} refined" if self.grid.refine else ""
        return f"{self.rungs.rule:<8}{self.grid.count}{more}; {levels}; {self.rungs.reduction_factor:g}"


@dataclass(frozen=True)
class Outcome:
    """mimg: millions of images that conditional trials trained. chosen: C of the winner. clock: when it was over."""

    mimg: float
    chosen: int | None
    clock: float


def search(policy: Policy, curve: Curve, seed: int, slots: int) -> Outcome:
    """One search from the bound to the winner, as a driver goes through it."""
    c_max = curve.family.c_max
    agenda = Agenda(
        goal=Goal(kind="search"),
        bound=BoundConfig(c_start=c_max, c_limit=c_max),
        lower=LowerBoundConfig(),
        grid=policy.grid,
        seed=seed,
        num_images=NUM_IMAGES,
    )
    agenda.tell_fit(c_max, 0, c_max)
    contest = Contest(agenda, Asha(policy.rungs))
    levels = [level / 1000 for level in policy.rungs.rungs_kimg]
    speeds = np.random.default_rng([seed, 0]).uniform(0.9, 1.1, 64).tolist()
    trained: dict[str, int] = {}
    running: list[tuple[float, int, TrainTask, int]] = []
    clock, started = 0.0, 0
    while not agenda.finished:
        while (task := agenda.ask(free_fits=8, free_trials=slots - len(running))) is not None:
            if isinstance(task, FitTask):
                agenda.tell_fit(task.num_clusters, task.repeat, task.num_clusters)
                continue
            started += 1
            _begin(running, clock, started, task, trained.get(task.trial, 0), levels, speeds)
        clock, _, task, rung = heapq.heappop(running)
        trained[task.trial] = rung + 1
        decision, _ = contest.judge(_report(task, rung, levels[rung], curve, seed))
        if decision.status == "running":
            started += 1
            _begin(running, clock, started, task, rung + 1, levels, speeds)
        else:
            agenda.forget(task)
    mimg = sum(levels[count - 1] for name, count in trained.items() if read_trial_name(name)[0] is not None)
    return Outcome(mimg, None if agenda.winner is None else agenda.winner.num_clusters, clock)


def _begin(running, clock: float, order: int, task: TrainTask, rung: int, levels: list[float], speeds) -> None:
    """Train on to a rung from the checkpoint of the one before."""
    mimg = levels[rung] - (levels[rung - 1] if rung else 0)
    heapq.heappush(running, (clock + mimg / speeds[order % len(speeds)], order, task, rung))


def _report(task: TrainTask, rung: int, mimg: float, curve: Curve, seed: int) -> TrialReport:
    # Where the baseline stands matters to nobody: it is neither stopped nor counted.
    clusters = task.num_clusters
    return TrialReport.played(
        task.trial,
        rung,
        99.0 if clusters is None else curve.measured(seed, clusters, rung, mimg),
        images_seen=round(mimg * 1e6),
        num_samples=curve.samples,
    )


@dataclass(frozen=True)
class Row:
    """One policy on one family. Each figure is that of the scenario in which it is worst."""

    saving: float
    with_baseline: float
    p: float
    mean_regret: float
    clock: float


def measure(policy: Policy, family: Family, seeds: int, slots: int, noise: float = 1.0) -> Row:
    """All scenarios of a family."""
    costs, shares, regrets, clocks = [], [], [], []
    for width in family.widths:
        for displaced in DISPLACEMENTS:
            curve = Curve(family, width, displaced, noise, policy.samples)
            found = [search(policy, curve, seed, slots) for seed in range(seeds)]
            regret = np.array([curve.final(s, one.chosen) / family.level - 1 for s, one in enumerate(found)])
            costs.append(np.mean([one.mimg for one in found]))
            shares.append(np.mean(regret <= 0.05))
            regrets.append(regret.mean())
            clocks.append(np.mean([one.clock for one in found]))
    most = max(costs)
    return Row(
        saving=family.grid * BUDGET / most,
        with_baseline=(family.grid + 1) * BUDGET / (most + BUDGET),
        p=float(min(shares)),
        mean_regret=float(max(regrets)),
        clock=float(max(clocks)),
    )


def exhaustive(family: Family, grid: list[int], samples: int, seeds: int) -> tuple[float, float]:
    """(p, mean regret) of training every C of a grid to 100 million and taking the lowest, in the worst scenario."""
    found = []
    for width in family.widths:
        curve = Curve(family, width, 0.0, 1.0, samples)
        regret = []
        for seed in range(seeds):
            chosen = min(grid, key=lambda c: curve.measured(seed, c, 0, BUDGET))
            regret.append(curve.final(seed, chosen) / family.level - 1)
        found.append((float(np.mean(np.array(regret) <= 0.05)), float(np.mean(regret))))
    return min(p for p, _ in found), max(regret for _, regret in found)


def shipped(family: Family) -> Policy:
    """What the data set's search space says."""
    space = yaml.safe_load((SPACES / f"{family.space}.yaml").read_text())
    return Policy(
        CandidatesConfig.model_validate(space["candidates"]),
        AshaConfig.model_validate(space["rungs"]),
        space["evaluation"]["num_samples"],
    )


def variants(own: Policy) -> list[Policy]:
    """Settings around the shipped one, and the asynchronous rule."""
    found = []
    for count in (4, 5, 6, 8):
        for levels in ((10, 30, 100), (15, 40, 100), (20, 50, 100)):
            for factor in (2, 3):
                found.append(_with(own, "halving", count, levels, factor))
    for count, levels, factor in (
        (6, (15, 40, 100), 2),
        (6, (15, 40, 100), 3),
        (5, (20, 50, 100), 2),
        (5, (20, 50, 100), 3),
    ):
        found.append(_with(own, "asha", count, levels, factor))
    found.append(replace(own, grid=own.grid.model_copy(update={"refine": 1})))
    for samples in (5_000, 10_000, 50_000):
        found.append(replace(own, samples=samples))
    return [one for one in dict.fromkeys(found) if one != own]


def _with(own: Policy, rule: str, count: int, levels: tuple[int, ...], factor: float) -> Policy:
    rungs = AshaConfig(rungs_kimg=tuple(1000 * level for level in levels), reduction_factor=factor, rule=rule)
    return Policy(own.grid.model_copy(update={"count": count}), rungs, own.samples)


def draw(path: Path, points: dict[str, list[tuple[Policy, Row]]], own: dict[str, tuple[Policy, Row]]) -> None:
    """The frontier: saving against reliability, a panel for each family."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, len(points), figsize=(13, 4.6), sharey=True, layout="constrained")
    for axes, (name, found) in zip(panels, points.items(), strict=True):
        for rule, color, marker in (("halving", "#2166ac", "o"), ("asha", "#b2182b", "s")):
            rows = [row for policy, row in found if policy.rungs.rule == rule]
            axes.plot(
                [r.saving for r in rows], [100 * r.p for r in rows], marker, color=color, ms=4, alpha=0.65, label=rule
            )
        best, frontier = 0.0, []
        for _, row in sorted([*found, own[name]], key=lambda one: (-one[1].saving, -one[1].p)):
            if row.p > best:
                best = row.p
                frontier.append((row.saving, 100 * row.p))
        axes.plot(*zip(*frontier, strict=True), "-", color="#555555", lw=1, label="frontier")
        row = own[name][1]
        axes.plot(row.saving, 100 * row.p, "*", color="#e08214", ms=15, label="as shipped", zorder=5)
        axes.annotate(
            f"{row.saving:.1f}x, {row.p:.1%}",
            (row.saving, 100 * row.p),
            (6, -26),
            textcoords="offset points",
            fontsize=9,
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1},
        )
        axes.axhline(95, color="#999999", lw=0.8, ls="--")
        axes.axvline(4.5, color="#999999", lw=0.8, ls=":")
        axes.set_title(name)
        axes.set_xlabel("times fewer training images than the paper's grid")
        axes.set_ylim(40, 101)
    panels[0].set_ylabel("searches within 5 % of the best FID,\nworst scenario (%)")
    panels[0].legend(fontsize=8, loc="lower left")
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=1000, help="searches of each scenario at the shipped setting")
    parser.add_argument("--table-seeds", type=int, default=50, help="searches of each scenario at all other settings")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the frontier as a PNG")
    arguments = parser.parse_args()
    began = time.process_time()
    print(
        "saving in training images, P(FID within 5 % of the best) in the worst scenario; independent evaluation noise"
    )
    print(f"{'as shipped':<34}" + "".join(f"{name:>22}" for name in FAMILIES))
    own: dict[str, tuple[Policy, Row]] = {}
    parallel: dict[str, Row] = {}
    for name, family in FAMILIES.items():
        own[name] = (shipped(family), measure(shipped(family), family, arguments.seeds, 1))
        parallel[name] = measure(shipped(family), family, max(1, arguments.seeds // 4), 8)
    policies = {policy.name for policy, _ in own.values()}
    print(_line(" | ".join(sorted(policies)), [row for _, row in own.values()]))
    print(_line("  the same, 8 trials at a time", list(parallel.values())))
    print("  mean regret " + ", ".join(f"{name} {row.mean_regret:.2%}" for name, (_, row) in own.items()))
    print("  with the baseline's 100 M on both sides " + _list(own, lambda row: f"{row.with_baseline:.1f}x"))
    print("  time at 8 trials over time at 1 " + ", ".join(f"{parallel[n].clock / own[n][1].clock:.2f}" for n in own))
    few = arguments.table_seeds
    for name, family in FAMILIES.items():
        grids = {"CIFAR-10": list(CIFAR10_GRID)}
        grid = grids.get(name, [round(10 * 1000 ** (i / (family.grid - 1))) for i in range(family.grid)])
        p, regret = exhaustive(family, grid, own[name][0].samples, few)
        print(f"  every C of a grid of {family.grid} to 100 M, {name}: P {p:.1%}, mean regret {regret:.2%}")
    print(f"\nnoise x shipped setting ({few} seeds a scenario)")
    for noise in (0.0, 0.5, 2.0, 3.0):
        rows = [measure(own[name][0], family, few, 1, noise) for name, family in FAMILIES.items()]
        print(_line(f"noise x {noise:g}", rows))
    print(f"\nC_max x shipped setting ({few} seeds a scenario): where the C come to lie beside the best one")
    for c_max in (400, 700, 1000):
        rows = [measure(own[name][0], replace(family, c_max=c_max), few, 1) for name, family in FAMILIES.items()]
        print(_line(f"C_max {c_max}", rows))
    print(f"\nrule, number of C; rungs in millions; reduction factor ({few} seeds a scenario)")
    points: dict[str, list[tuple[Policy, Row]]] = {name: [] for name in FAMILIES}
    for policy in variants(own["CIFAR-10"][0]):
        rows = [measure(policy, family, few, 1) for family in FAMILIES.values()]
        for name, row in zip(FAMILIES, rows, strict=True):
            points[name].append((policy, row))
        print(_line(f"{policy.name}; {policy.samples // 1000}k", rows), flush=True)
    if arguments.plot:
        draw(arguments.plot, points, own)
    worst = min(own, key=lambda name: own[name][1].saving)
    report = {
        "benchmark": "search_cost",
        "ratio": round(own[worst][1].saving, 2),
        "worst_family": worst,
        "p_5_percent": min(row.p for _, row in own.values()),
        "saving": {name: round(row.saving, 2) for name, (_, row) in own.items()},
        "p": {name: row.p for name, (_, row) in own.items()},
        "p_8_trials": {name: row.p for name, row in parallel.items()},
        "saving_8_trials": {name: round(row.saving, 2) for name, row in parallel.items()},
        "with_baseline": {name: round(row.with_baseline, 2) for name, (_, row) in own.items()},
        "setting": sorted(policies),
        "num_samples": sorted({policy.samples for policy, _ in own.values()}),
        "seeds": arguments.seeds,
        "cpu_s": round(time.process_time() - began, 1),
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs, 1 thread",
    }
    print(json.dumps(report))


def _line(name: str, rows: list[Row]) -> str:
    return f"{name:<34}" + "".join(f"{row.saving:>13.1f}x {row.p:>7.1%}" for row in rows)


def _list(own, tell) -> str:
    return ", ".join(f"{name} {tell(row)}" for name, (_, row) in own.items())


if __name__ == "__main__":
    main()
