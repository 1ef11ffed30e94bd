"""One TEMI step at the paper's shape against a plain loop over heads: `python benchmarks/temi_step.py`.

Both train H = 50 heads (D = 768, hidden 512, bottleneck 256) on the same 512 pairs in float32 from the same weights;
the loop is that of temi_loop.py. The two take turns in one process; the first round is thrown away. `ratio` is the
loop's median CPU time over ours, to be read with one thread
(OMP_NUM_THREADS=1); the goals are 1.15 at C = 100 and 400, and 1.3 at C = 1600.
"""

import argparse
import json
import os
import platform
import statistics
import time

import torch
from temi_loop import Loop

from cedm_ray.clustering.recipe import TemiConfig
from cedm_ray.clustering.training import new_training

BATCH, IN_FEATURES = 512, 768


def compare(num_clusters, config, rounds):
    """Both sides in turns; what was measured."""
    ours = new_training(IN_FEATURES, num_clusters, config, batch=BATCH, seed=0, device="cpu")
    loop = Loop(ours.student, config)
    generator = torch.Generator().manual_seed(0)
    seconds = {"loop": [], "ours": []}
    difference = 0.0
    for round_ in range(1 + rounds):
        anchors, partners = torch.randn(2, BATCH, IN_FEATURES, generator=generator)
        rows = {"loop": torch.cat([anchors, partners]), "ours": torch.stack([anchors, partners], dim=1).flatten(0, 1)}
        losses = {}
        for name, training in (("loop", loop), ("ours", ours)):
            start = time.process_time()
            losses[name] = training.step(rows[name], 2e-4)
            seconds[name].append(time.process_time() - start)
        difference = max(difference, (losses["loop"] - losses["ours"]).abs().max().item())
        print(f"C = {num_clusters}, round {round_}: loop {seconds['loop'][-1]:.3f}, ours {seconds['ours'][-1]:.3f}")
    timed = {name: values[1:] for name, values in seconds.items()}
    return {
        "clusters": num_clusters,
        "head_group": ours.plan.head_group,
        "ratio": round(statistics.median(timed["loop"]) / statistics.median(timed["ours"]), 3),
        "best_ratio": round(min(timed["loop"]) / min(timed["ours"]), 3),
        "loop_s": [round(value, 3) for value in timed["loop"]],
        "ours_s": [round(value, 3) for value in timed["ours"]],
        "max_loss_difference": difference,
        "load_average": os.getloadavg()[0],
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clusters", type=int, nargs="+", default=[100, 400, 1600], help="C, one or more")
    parser.add_argument("--heads", type=int, default=50, help="H")
    parser.add_argument("--head-group", type=int, default=None, help="heads at once; default: as fit_temi chooses")
    parser.add_argument("--compile", action="store_true", help="compile our loss")
    parser.add_argument("--rounds", type=int, default=5, help="timed steps of each, after one that is thrown away")
    arguments = parser.parse_args()
    config = TemiConfig(num_heads=arguments.heads, head_group=arguments.head_group, compile=arguments.compile)
    print(f"one step, H = {arguments.heads}: plain loop against grouped heads, CPU seconds")
    results = [compare(num_clusters, config, arguments.rounds) for num_clusters in arguments.clusters]
    report = {
        "benchmark": "temi_step",
        "heads": arguments.heads,
        "compile": arguments.compile,
        "ratio": {str(result["clusters"]): result["ratio"] for result in results},
        "results": results,
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs, {torch.get_num_threads()} threads",
        "torch": torch.__version__,
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
