"""Peak memory of TEMI steps at the paper's shape against a plain loop, and against what was predicted.

`python benchmarks/temi_memory.py` starts one process for each side, lets it make two steps (H = 50, D = 768, 512 pairs,
float32) and reads how far its peak resident size rose above what it was with torch and the features loaded. `ratio` is
our peak over that of the loop of temi_loop.py at C = 1600; the goal is one half. Then C = 10,000 under a memory budget
of 1 GiB for the work tensors: measured and predicted (`peak_bytes`, of which the features are taken off here).
"""

import argparse
import json
import os
import platform
import subprocess
import sys

import torch
from temi_loop import Loop

from cedm_ray.clustering.plan import assignment_rows, peak_bytes, plan_work
from cedm_ray.clustering.recipe import TemiConfig
from cedm_ray.clustering.training import new_training

IN_FEATURES, BATCH, STEPS = 768, 512, 2


def resident_bytes(name):
    """VmRSS or VmHWM (its highest value so far) of this process."""
    with open("/proc/self/status") as status:
        (line,) = [line for line in status if line.startswith(name)]
    return int(line.split()[1]) * 1024


def measure(side, num_clusters, budget):
    """Two steps of one side in this process; prints the rise of the peak in bytes."""
    config = TemiConfig(memory_budget_gib=budget)
    rows = torch.randn(2 * BATCH * STEPS, IN_FEATURES)
    # A first, tiny training loads libraries and modules, which are the process's and not the fit's.
    tiny = TemiConfig(num_heads=1, hidden=8, bottleneck=4)
    new_training(IN_FEATURES, 2, tiny, batch=2, seed=0, device="cpu").step(rows[:4], 1e-4)
    Loop.new(IN_FEATURES, 2, tiny, seed=0, device="cpu").step(rows[:4], 1e-4)
    before = resident_bytes("VmRSS")
    if side == "loop":
        training = Loop.new(IN_FEATURES, num_clusters, config, seed=0, device="cpu")
    else:
        training = new_training(IN_FEATURES, num_clusters, config, batch=BATCH, seed=0, device="cpu")
    for x in rows.chunk(STEPS):
        training.step(x, 1e-4)
    if side == "ours":
        with torch.no_grad():
            training.teacher(rows[: assignment_rows(num_clusters)], slice(0, 1))
    print(resident_bytes("VmHWM") - before)


def run(side, num_clusters, budget=None):
    """The same in a process of its own."""
    command = [sys.executable, __file__, "--side", side, "--clusters", str(num_clusters)]
    command += [] if budget is None else ["--budget", str(budget)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return int(done.stdout.split()[-1])


def predicted(num_clusters, budget=None):
    """`peak_bytes` without features, neighbors and pairs, of which this benchmark has none."""
    config = TemiConfig(memory_budget_gib=budget)
    size = peak_bytes(num_clusters, IN_FEATURES, num_clusters, config, device_type="cpu")
    return size - num_clusters * (4 * IN_FEATURES + 4 * config.num_neighbors + 8 * 5)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", choices=["loop", "ours"], help="measure one side in this process (used by itself)")
    parser.add_argument("--clusters", type=int, default=1600, help="C of the comparison")
    parser.add_argument("--budget", type=float, default=None, help="GiB for our work tensors")
    parser.add_argument("--many", type=int, default=10_000, help="C of the run under a budget; 0: none")
    arguments = parser.parse_args()
    if arguments.side is not None:
        measure(arguments.side, arguments.clusters, arguments.budget)
        return
    gib = 2**30
    loop, ours = run("loop", arguments.clusters), run("ours", arguments.clusters)
    report = {
        "benchmark": "temi_memory",
        "clusters": arguments.clusters,
        "ratio": round(ours / loop, 3),
        "loop_gib": round(loop / gib, 3),
        "ours_gib": round(ours / gib, 3),
        "predicted_gib": round(predicted(arguments.clusters) / gib, 3),
    }
    print(f"C = {arguments.clusters}: loop {loop / gib:.3f} GiB, ours {ours / gib:.3f} GiB")
    if arguments.many:
        budget = 1.0
        config = TemiConfig(memory_budget_gib=budget)
        plan = plan_work(BATCH, IN_FEATURES, arguments.many, config, device_type="cpu")
        many = run("ours", arguments.many, budget)
        report["under_budget"] = {
            "clusters": arguments.many,
            "budget_gib": budget,
            "work_gib": round(plan.work_bytes / gib, 3),
            "ours_gib": round(many / gib, 3),
            "predicted_gib": round(predicted(arguments.many, budget) / gib, 3),
        }
        print(f"C = {arguments.many}, budget {budget} GiB: {report['under_budget']}")
    report["machine"] = f"{platform.machine()}, {os.cpu_count()} CPUs, {torch.get_num_threads()} threads"
    report["torch"] = torch.__version__
    print(json.dumps(report))


if __name__ == "__main__":
    main()
