"""What Ray costs a search for the bound: `python benchmarks/bound_overhead.py`.

A search of 8 fits (C = 2, 4, ... 256 on scikit-learn's digits, all of which pass), one at a time on one core, by
`cedm-ray bound`, against the same 8 fits in a plain loop. The digits come without their labels, which the loop would
not compare with either. Both are whole processes that begin with images, features and neighbors on disk, and both
write the same records and draw the same page of what they found.

The two take turns of `--slice` seconds, all processes of the other standing still meanwhile: one after the other they
differ by a tenth from run to run, because the machine does. A side's time is that of its turns. `extra_s` is the time
by which the search is longer; it should stay within `allowed_s`, 5 % of the loop's time plus 3 s. `ratio` is the
search's time over the loop's. Needs /proc.
"""

import argparse
import contextlib
import json
import os
import platform
import shutil
import signal
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
COMMAND = ("-m", "cedm_ray")


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


def take_turns(commands: dict[str, list[object]], slice_s: float) -> dict[str, float]:
    """Run commands, each on one thread, of which only one runs at any time. Returns the seconds that each ran."""
    running, seconds = {}, dict.fromkeys(commands, 0.0)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    left = list(commands)
    try:
        while left:
            side = left.pop(0)
            started = time.monotonic()
            if side in running:
                send(signal.SIGCONT, family(running[side].pid))
            else:
                command = [sys.executable, *map(str, commands[side])]
                running[side] = subprocess.Popen(command, env=environment, stdout=sys.stderr)
            try:
                status = running[side].wait(slice_s if left else None)
            except subprocess.TimeoutExpired:
                stand_still(running[side].pid)
                left.append(side)
            else:
                assert status == 0, f"{side} ended with {status}"
            seconds[side] += time.monotonic() - started
    finally:
        for process in running.values():
            # One that stands still would not hear that it is to end.
            if process.poll() is None:
                process.terminate()
                send(signal.SIGCONT, family(process.pid))
    return seconds


def stand_still(pid: int) -> None:
    """Stop a process and all that it has started, also what is started meanwhile."""
    stopped: set[int] = set()
    while new := family(pid) - stopped:
        send(signal.SIGSTOP, new)
        stopped |= new


def send(number: signal.Signals, pids: set[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def family(pid: int) -> set[int]:
    """A process and all that it, and what it has started, has started."""
    found = {pid}
    with contextlib.suppress(OSError):
        for told in Path(f"/proc/{pid}/task").glob("*/children"):
            for child in told.read_text().split():
                found |= family(int(child))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=150, help="of each fit; more make the fixed cost count less")
    parser.add_argument("--slice", type=float, default=2.0, help="seconds of a turn")
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
        begin = [*COMMAND, "features", space, "--study", folder / "loop", "-q"]
        take_turns({"features": begin}, arguments.slice)
        shutil.copytree(folder / "loop", folder / "search")
        print(f"fits of C = {SIZES} one after the other: a plain loop against cedm-ray bound, wall seconds")
        sides = {
            "loop": [__file__, "--plain-loop", space, folder / "loop"],
            "search": [*COMMAND, "bound", space, "--study", folder / "search", "-q"],
        }
        seconds = take_turns(sides, arguments.slice)
        used = [sorted(Study(folder / side).fits().items()) for side in sides]
    same = [[record.num_used for name, record in side if record.num_clusters in SIZES] for side in used]
    assert same[0] == same[1], f"the two sides found different clusters: {same}"
    loop_s, search_s = seconds["loop"], seconds["search"]
    extra, allowed = search_s - loop_s, 0.05 * loop_s + 3
    print(f"loop {loop_s:.1f} s, search {search_s:.1f} s, extra {extra:.1f} s, allowed {allowed:.1f} s")
    report = {
        "benchmark": "bound_overhead",
        "ratio": round(search_s / loop_s, 3),
        "loop_s": round(loop_s, 2),
        "search_s": round(search_s, 2),
        "extra_s": round(extra, 2),
        "allowed_s": round(allowed, 2),
        "fits": len(SIZES),
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs, 1 thread",
        "load_average": os.getloadavg()[0],
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
