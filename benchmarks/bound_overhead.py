"""What Ray costs a search for the bound: `python benchmarks/bound_overhead.py`.

A search of 8 fits (C = 2, 4, ... 256 on scikit-learn's digits, all of which pass), one at a time on one core, by
`cedm-ray bound`, against the same 8 fits in a plain loop. The digits come without their labels, which the loop would
not compare with either. Both are whole processes that begin with images, features and neighbors on disk, and both
write the same records and draw the same page of what they found. Each side runs twice, in the order loop, search,
search, loop, so that a machine that slows down slows both. `extra_s` is the wall time by which the mean search is
longer; it should stay within `allowed_s`, 5 % of the loop's time plus 3 s. `beside_fits_s` is the time that neither
spends in fits: starts and the page. `ratio` is the search's time over the loop's.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from cedm_ray.search.study import Study

SPACE = """
name: bound-overhead
images: {source: "%s"}
clustering: {num_heads: 8, hidden: 128, bottleneck: 64, num_neighbors: 25, batch_size: 256, epochs: %d}
bound: {alpha: 0.0001, c_start: 2, c_limit: 256}
resources: {fit: {cpus: 1, at_once: 1}}
"""
SIZES = tuple(2**power for power in range(1, 9))
ORDER = ("loop", "search", "search", "loop")


def plain_loop(space_file: Path, folder: Path) -> None:
    """The fits one after the other in this process, and the page that shows them."""
    from cedm_ray.data.image_set import open_image_set
    from cedm_ray.report.publish import publish_bound
    from cedm_ray.search.findings import bound_findings
    from cedm_ray.search.fit import run_fit
    from cedm_ray.search.goals import FitTask
    from cedm_ray.search.space import read_space

    study, space = Study(folder), read_space(space_file)
    for num_clusters in SIZES:
        for _ in run_fit(study, space, FitTask(num_clusters=num_clusters, repeat=0), device="cpu"):
            pass
    images = open_image_set(study.images)
    publish_bound(study, images, bound_findings(study, space, images, None))


def run(*command: object) -> float:
    """Wall seconds of a command, on one thread."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    started = time.monotonic()
    subprocess.run([sys.executable, *map(str, command)], check=True, env=environment, stdout=sys.stderr)
    return time.monotonic() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=150, help="of each fit; more make the fixed cost count less")
    parser.add_argument(
        "--plain-loop", nargs=2, type=Path, metavar=("SPACE", "STUDY"), help="what the loop's process does"
    )
    arguments = parser.parse_args()
    if arguments.plain_loop:
        plain_loop(*arguments.plain_loop)
        return
    # Not above: the loop's process would import it too, for nothing.
    from sklearn.datasets import load_digits

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        space = folder / "space.yaml"
        np.save(folder / "digits.npy", (load_digits().images * (255 / 16)).astype(np.uint8))
        space.write_text(SPACE % (folder / "digits.npy", arguments.epochs))
        run("-m", "cedm_ray", "features", space, "--study", folder / "begun", "-q")
        print(f"fits of C = {SIZES} one after the other: a plain loop against cedm-ray bound, wall seconds")
        walls, fitting, used = {"loop": [], "search": []}, {"loop": [], "search": []}, []
        for number, side in enumerate(ORDER):
            study = Study(shutil.copytree(folder / "begun", folder / f"{number}"))
            if side == "loop":
                walls[side].append(run(__file__, "--plain-loop", space, study.path))
            else:
                walls[side].append(run("-m", "cedm_ray", "bound", space, "--study", study.path, "-q"))
            fits = [record for _, record in sorted(study.fits().items()) if record.num_clusters in SIZES]
            fitting[side].append(sum(record.seconds for record in fits))
            used.append([record.num_used for record in fits])
            print(f"{side} {walls[side][-1]:.1f} s, of which fits {fitting[side][-1]:.1f} s", flush=True)
    assert used.count(used[0]) == len(used), f"the two sides found different clusters: {used}"
    loop_s, search_s = (statistics.mean(walls[side]) for side in ("loop", "search"))
    beside = {side: round(statistics.mean(walls[side]) - statistics.mean(fitting[side]), 2) for side in walls}
    extra, allowed = search_s - loop_s, 0.05 * loop_s + 3
    print(f"loop {loop_s:.1f} s, search {search_s:.1f} s, extra {extra:.1f} s, allowed {allowed:.1f} s")
    report = {
        "benchmark": "bound_overhead",
        "ratio": round(search_s / loop_s, 3),
        "loop_s": round(loop_s, 2),
        "search_s": round(search_s, 2),
        "extra_s": round(extra, 2),
        "allowed_s": round(allowed, 2),
        "walls_s": {side: [round(wall, 2) for wall in both] for side, both in walls.items()},
        "beside_fits_s": beside,
        "fits": len(SIZES),
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs, 1 thread",
        "load_average": os.getloadavg()[0],
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
