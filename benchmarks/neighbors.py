"""Exact nearest neighbors against scikit-learn's brute force: `python benchmarks/neighbors.py`.

N = 20,000 images, D = 768, k = 50, cosine, float32. The two take turns in one process; the first round is thrown away.
`ratio` is scikit-learn's median CPU time over ours, to be read with one thread (OMP_NUM_THREADS=1); the goal is 2.
With `--memory-images 70000`, a process of its own then finds the neighbors of so many images, and reads how far its
peak resident size rose above what it was with the features loaded; the goal is at most 0.5 GiB.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time

import numpy as np
import sklearn
import torch
from features import clustered_features
from sklearn.neighbors import NearestNeighbors
from temi_memory import resident_bytes

from cedm_ray.clustering.neighbors import nearest_neighbors


def by_scikit_learn(features, num_neighbors):
    index = NearestNeighbors(n_neighbors=num_neighbors, metric="cosine", algorithm="brute").fit(features)
    return index.kneighbors(return_distance=False)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=20_000, help="N; 0: no comparison")
    parser.add_argument("--width", type=int, default=768, help="D")
    parser.add_argument("--neighbors", type=int, default=50, help="k")
    parser.add_argument("--rounds", type=int, default=2, help="timed turns of each, after one that is thrown away")
    parser.add_argument("--memory-images", type=int, default=70_000, help="N of the memory measurement; 0: none")
    parser.add_argument("--measure", action="store_true", help="measure memory in this process (used by itself)")
    arguments = parser.parse_args()
    if arguments.measure:
        features = clustered_features(arguments.memory_images, arguments.width, 200)
        nearest_neighbors(features[:100], 10)
        before = resident_bytes("VmRSS")
        nearest_neighbors(features, arguments.neighbors)
        print(resident_bytes("VmHWM") - before)
        return
    report = {"benchmark": "neighbors", "images": arguments.images}
    if arguments.images:
        features = clustered_features(arguments.images, arguments.width, 200)
        sides = {"scikit_learn": by_scikit_learn, "ours": nearest_neighbors}
        seconds = {name: [] for name in sides}
        for round_ in range(1 + arguments.rounds):
            found = {}
            for name, side in sides.items():
                start = time.process_time()
                found[name] = side(features, arguments.neighbors)
                seconds[name].append(time.process_time() - start)
            print(f"round {round_}: scikit-learn {seconds['scikit_learn'][-1]:.2f} s, ours {seconds['ours'][-1]:.2f} s")
        same = np.mean([len(np.intersect1d(*rows)) for rows in zip(*found.values(), strict=True)])
        timed = {name: values[1:] for name, values in seconds.items()}
        report |= {
            "ratio": round(statistics.median(timed["scikit_learn"]) / statistics.median(timed["ours"]), 3),
            "scikit_learn_s": [round(value, 2) for value in timed["scikit_learn"]],
            "ours_s": [round(value, 2) for value in timed["ours"]],
            "same_neighbors": round(same / arguments.neighbors, 6),
        }
    if arguments.memory_images:
        shape = ["--memory-images", str(arguments.memory_images), "--width", str(arguments.width)]
        command = [sys.executable, __file__, "--measure", *shape, "--neighbors", str(arguments.neighbors)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        report["memory_images"] = arguments.memory_images
        report["extra_gib"] = round(int(done.stdout.split()[-1]) / 2**30, 3)
    report["machine"] = f"{platform.machine()}, {os.cpu_count()} CPUs, {torch.get_num_threads()} threads"
    report["load_average"] = os.getloadavg()[0]
    report["versions"] = {"torch": torch.__version__, "scikit-learn": sklearn.__version__}
    print(json.dumps(report))


if __name__ == "__main__":
    main()
