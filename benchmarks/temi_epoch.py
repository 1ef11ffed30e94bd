"""A whole TEMI epoch with its data where calls dominate, against a plain loop: `python benchmarks/temi_epoch.py`.

N = 5,120 images, D = 64, hidden 64, bottleneck 32, C = 20, 128 pairs a step, H = 50: 40 steps on small tensors. The
loop is that of temi_loop.py and takes its pairs from a torch DataLoader; ours is `fit_temi` as it is, with its loss
check and the assignment of all images at the end of each epoch. The two take turns in one process, epoch by epoch; the
first round is thrown away. `ratio` is the loop's median CPU time over ours, to be read with one thread
(OMP_NUM_THREADS=1); the goal is 4.
"""

import argparse
import json
import os
import platform
import statistics
import time

import numpy as np
import torch
from temi_loop import Loop, Pairs

from cedm_ray.clustering.neighbors import nearest_neighbors
from cedm_ray.clustering.pairs import load_temi_data
from cedm_ray.clustering.recipe import TemiConfig
from cedm_ray.clustering.temi import fit_temi


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=5120, help="N")
    parser.add_argument("--rounds", type=int, default=4, help="timed epochs of each, after one that is thrown away")
    parser.add_argument("--compile", action="store_true", help="compile our loss")
    arguments = parser.parse_args()
    config = TemiConfig(
        num_heads=50,
        hidden=64,
        bottleneck=32,
        batch_size=128,
        epochs=1 + arguments.rounds,
        freeze_last_layer_epochs=0,
        compile=arguments.compile,
    )
    features = np.random.default_rng(0).normal(size=(arguments.images, 64)).astype(np.float32)
    neighbors = nearest_neighbors(features, config.num_neighbors)
    data = load_temi_data(features, neighbors, config)
    fit = fit_temi(data, 20, config, seed=0)
    loop = Loop.new(64, 20, config, seed=0, device="cpu")
    torch.manual_seed(0)
    pairs = Pairs(data.rows, data.partners.long())
    loader = torch.utils.data.DataLoader(pairs, batch_size=128, shuffle=True, drop_last=True)
    seconds = {"loop": [], "ours": []}
    for round_ in range(1 + arguments.rounds):
        start = time.process_time()
        losses = [loop.step(torch.cat([anchors, partners]), 5e-5) for anchors, partners in loader]
        seconds["loop"].append(time.process_time() - start)
        start = time.process_time()
        progress = next(fit)
        seconds["ours"].append(time.process_time() - start)
        print(
            f"epoch {round_}: loop {seconds['loop'][-1]:.3f} s (loss {torch.stack(losses).mean().item():.4f}),"
            f" ours {seconds['ours'][-1]:.3f} s (loss {progress.loss:.4f})"
        )
    timed = {name: values[1:] for name, values in seconds.items()}
    report = {
        "benchmark": "temi_epoch",
        "images": arguments.images,
        "compile": arguments.compile,
        "ratio": round(statistics.median(timed["loop"]) / statistics.median(timed["ours"]), 3),
        "best_ratio": round(min(timed["loop"]) / min(timed["ours"]), 3),
        "loop_s": [round(value, 3) for value in timed["loop"]],
        "ours_s": [round(value, 3) for value in timed["ours"]],
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs, {torch.get_num_threads()} threads",
        "load_average": os.getloadavg()[0],
        "torch": torch.__version__,
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
