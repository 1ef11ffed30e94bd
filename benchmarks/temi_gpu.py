"""TEMI at the paper's settings on one GPU against a plain loop on the same GPU: `python benchmarks/temi_gpu.py`.

50,000 images, D = 768, the `paper` preset, C = 400, wall time, each measured alone and printed as soon as it is known,
so that a command that is cut short loses nothing of it:

1. the loop of temi_loop.py makes some hundred steps, from which its time for a whole fit is extrapolated (19,400 steps;
   pairs come from the device, so it pays for no loader);
2. what compiling our step takes, and then a whole fit by `fit_temi` as it is, at the first precision;
3. what compiling takes for each other C of a bound search of eight fits, and then those fits side by side in this
   process on one copy of the features, one epoch of each in turn;
4. the second again at each further precision.

`ratio` is the loop's extrapolated time over that of our fit at the first precision, compiling left out; the goals are
20, 45 seconds a fit, and 240 for the eight with all that they compile. `predicted_gib` is what `peak_bytes` said
before, `peak_gib` what the device's allocator reached. Needs torch, numpy, pydantic and PyYAML, about 8 GiB of the
device, and at most 9 minutes (`--limit`): a fit that time does not allow is stopped early, its time for all epochs is
extrapolated, and `epochs_done` says so. The first precision is bfloat16, whose loss is in float32.

`--small` is the same on a CPU with a hundredth of everything, to see that it runs; with `--compile` too.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np
import torch

# Also without an installed package: the folder above this one is the repository.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from features import clustered_features
from temi_loop import Loop

from cedm_ray.clustering import fused
from cedm_ray.clustering.neighbors import nearest_neighbors
from cedm_ray.clustering.pairs import draw_pairs, load_temi_data
from cedm_ray.clustering.plan import data_bytes, peak_bytes
from cedm_ray.clustering.recipe import TemiConfig
from cedm_ray.clustering.temi import fit_temi
from cedm_ray.clustering.training import new_training

BOUND_SEARCH = (50, 100, 200, 400, 800, 500, 600, 700)
SMALL = {"num_heads": 4, "hidden": 32, "bottleneck": 16, "batch_size": 64, "epochs": 2, "num_neighbors": 10}


def now(device):
    """The clock once the device has done everything asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def seconds_a_step_of_the_loop(data, num_clusters, config, steps):
    """Of the plain loop: the median, and how many steps it is of."""
    loop = Loop.new(data.rows.shape[1], num_clusters, config, seed=0, device=data.device)
    pairs = draw_pairs(data.partners, stream=0)
    taken = []
    for step in range(steps + 10):
        start = now(data.device)
        first = step * config.batch_size % (len(pairs) - config.batch_size)
        batch = pairs[first : first + config.batch_size]
        loop.step(data.rows[batch.T.flatten()], 1e-4)
        taken.append(now(data.device) - start)
    return float(np.median(taken[10:]))


def seconds_of_compiling(data, num_clusters, config):
    """By how much the first step is longer than the second, 0 where nothing is compiled. Whatever fits this C next in
    this process has its step compiled already."""
    training = new_training(
        data.rows.shape[1], num_clusters, config, batch=config.batch_size, seed=0, device=data.device
    )
    if not isinstance(training, fused.FusedTraining):
        return 0.0
    rows, taken = data.rows[: 2 * config.batch_size], []
    for _ in range(2):
        start = now(data.device)
        training.step(rows, 1e-4)
        taken.append(now(data.device) - start)
    if training.note is not None:
        say(training.note)
    return taken[0] - taken[1]


def whole_fit(data, num_clusters, config, until):
    """(seconds, epochs done, clusters in use, loss) of one fit, which ends early where the time is up."""
    start = now(data.device)
    for progress in fit_temi(data, num_clusters, config, seed=0):
        last = progress
        if time.perf_counter() > until:
            break
    return now(data.device) - start, last.epoch, last.num_used, last.loss


def side_by_side(data, config, clusters, epochs, until):
    """(seconds, epochs done of each) of several fits that take turns."""
    start = now(data.device)
    fits = [fit_temi(data, num_clusters, config, seed=0) for num_clusters in clusters]
    for done in range(1, epochs + 1):
        for fit in fits:
            next(fit)
        if done % max(1, epochs // 10) == 0:
            say(f"eight fits: {done} of {epochs} epochs after {now(data.device) - start:.1f} s")
        if time.perf_counter() > until:
            break
    return now(data.device) - start, done


def say(text):
    """At once: what is still in a buffer when the time is up is lost."""
    print(text, flush=True)


def from_here(device):
    """The peak of the device's memory is counted from here on."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def memory(device, predicted):
    """Predicted and, on a GPU, reached since `from_here`."""
    measured = {"peak_gib": gib(torch.cuda.max_memory_allocated())} if device.type == "cuda" else {}
    return {"predicted_gib": gib(predicted), **measured}


def gib(size):
    return round(size / 2**30, 3)


def eight_fits(data, config, clusters, epochs, until):
    """What is reported of the fits of a bound search. epochs: None for all."""
    epochs, (num_images, width) = min(epochs or config.epochs, config.epochs), data.rows.shape
    from_here(data.device)
    compile_s = []
    for num_clusters in clusters:
        compile_s.append(seconds_of_compiling(data, num_clusters, config))
        say(f"eight fits: the step of C = {num_clusters} compiled in {compile_s[-1]:.1f} s")
    seconds, done = side_by_side(data, config, clusters, epochs, until - 30)
    all_epochs_s = seconds * config.epochs / done
    each = [peak_bytes(num_images, width, c, config, device_type=data.device.type) for c in clusters]
    return {
        "clusters": clusters,
        "seconds": round(seconds, 1),
        "epochs_done": done,
        "all_epochs_s": round(all_epochs_s, 1),
        "compile_s": [round(one, 1) for one in compile_s],
        "with_compiling_s": round(all_epochs_s + sum(compile_s), 1),
        # One copy of the data, and each fit at its peak, which they do not reach all at once.
        **memory(data.device, sum(each) - (len(each) - 1) * data_bytes(num_images, width, config)),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--clusters", type=int, default=400, help="C")
    parser.add_argument("--precision", nargs="+", default=["bfloat16", "float32"])
    parser.add_argument(
        "--compile",
        action=argparse.BooleanOptionalAction,
        help="whether our step is compiled; default: as fit_temi chooses, which is on a GPU",
    )
    parser.add_argument("--any-c", action="store_true", help="one compiled step for every C (`fused.ANY_C`)")
    parser.add_argument("--search-epochs", type=int, help="of the eight fits; the rest is extrapolated; default: all")
    parser.add_argument("--loop-steps", type=int, default=200)
    parser.add_argument("--limit", type=float, default=530, help="seconds that all of it may take")
    parser.add_argument("--small", action="store_true")
    arguments = parser.parse_args()
    started = time.perf_counter()
    fused.ANY_C = arguments.any_c
    device = torch.device("cpu" if arguments.small else arguments.device)
    num_images, width = (1000, 32) if arguments.small else (50_000, 768)
    num_clusters = 20 if arguments.small else arguments.clusters
    search = tuple(c // 10 for c in BOUND_SEARCH) if arguments.small else BOUND_SEARCH
    loop_steps = 5 if arguments.small else arguments.loop_steps
    base = TemiConfig(**SMALL) if arguments.small else TemiConfig(preset="paper")
    configs = {
        name: TemiConfig.model_validate({**base.model_dump(), "precision": name, "compile": arguments.compile})
        for name in arguments.precision
    }
    steps = num_images // base.batch_size * base.epochs
    until = started + arguments.limit
    features = clustered_features(num_images, width, 400)
    start = now(device)
    neighbors = nearest_neighbors(features, base.num_neighbors, device=device)
    report = {
        "benchmark": "temi_gpu",
        "clusters": num_clusters,
        "any_c": arguments.any_c,
        "neighbors_s": round(now(device) - start, 2),
    }
    data = load_temi_data(features, neighbors, base, device=device)
    step_s = seconds_a_step_of_the_loop(data, num_clusters, base, loop_steps)
    report |= {"loop_step_s": step_s, "loop_fit_s_extrapolated": round(step_s * steps, 1), "loop_steps": loop_steps}
    say(f"loop: {step_s * 1e3:.1f} ms a step, {step_s * steps:.0f} s for {steps:,} steps (extrapolated)")
    report["fits"] = {}
    for name, config in configs.items():
        from_here(device)
        compile_s = seconds_of_compiling(data, num_clusters, config)
        say(f"{name}: the step of C = {num_clusters} compiled in {compile_s:.1f} s")
        seconds, epochs, num_used, loss = whole_fit(data, num_clusters, config, until - 30)
        fit_s = seconds * config.epochs / epochs
        report["fits"][name] = {
            "fit_s": round(fit_s, 2),
            "compile_s": round(compile_s, 2),
            "epochs_done": epochs,
            "ratio": round(step_s * steps / fit_s, 2),
            "num_used": num_used,
            "loss": loss,
            **memory(device, peak_bytes(num_images, width, num_clusters, config, device_type=device.type)),
        }
        say(f"{name}: {json.dumps(report['fits'][name])}")
        if name == arguments.precision[0]:
            report["ratio"] = report["fits"][name]["ratio"]
            report["eight_fits"] = eight_fits(data, config, search, arguments.search_epochs, until)
            say(f"eight fits side by side: {json.dumps(report['eight_fits'])}")
    report["seconds"] = round(time.perf_counter() - started, 1)
    report["machine"] = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    report["torch"] = torch.__version__
    print(json.dumps(report))


if __name__ == "__main__":
    main()
