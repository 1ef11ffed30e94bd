"""What the driver and Ray cost a search: `python benchmarks/driver_overhead.py`.

12 trials (11 C and the baseline) of 5 rungs each, through `run_study` as `cedm-ray search` calls it, on Ray started
with as many cores as this machine has, or `--cores`. Each trial's process takes some seconds of a core to start, with
torch: cores that the machine does not have take none of that over. Everything is real but the work itself: images,
features, neighbors, Ray Tune, processes, placement, records, the rung rule and the driver's decisions. Only the
generator of a task is replaced, by one that sleeps for an interval between two rungs and writes the report or the fit
that the real one would write; a fit takes no time. All distances are alike, so that no trial is stopped. The best
model is not kept at the end, since none was trained.

`wall_s` is the time of run_study on a connected cluster, `ideal_s` that of the intervals on so many cores, and
`allowed_s` 10 % more than that plus 20 s. `ratio` is wall over ideal.
"""

import argparse
import json
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cedm_ray.distributed import run, trainable
from cedm_ray.distributed.session import start_ray
from cedm_ray.distributed.trainable import StudyTask
from cedm_ray.search.goals import FitTask, Goal
from cedm_ray.search.packing import Resources
from cedm_ray.search.results import Notice, TrialReport
from cedm_ray.search.space import SearchSpace
from cedm_ray.search.study import FitRecord, Study

TRIALS, RUNGS, INTERVAL_S = 12, 5, 2.0


def pretended(
    fit_s: Callable[[int], float], used: Callable[[int], int], rung: Callable[[int | None, int], tuple[float, float]]
) -> type[StudyTask]:
    """A StudyTask whose work is sleep.

    fit_s: seconds of the fit of C. used: clusters it uses. rung: of (C, rung), the seconds of training up to it and the
    distance there. What it did when is written to `intervals` in the study, GPUs, beginning and end of each by the
    machine's monotonic clock, and to `fitted` the beginning of each fit.
    """

    class PretendedTask(StudyTask):
        def _open(self, study: Study, space: SearchSpace, held: Resources) -> Iterator[Any]:
            return self._fit(study) if isinstance(self._task, FitTask) else self._trial(study, space, held)

        def _fit(self, study: Study) -> Iterator[Any]:
            c, started = self._task.num_clusters, time.monotonic()
            (study.path / "fitted").mkdir(exist_ok=True)
            (study.path / "fitted" / f"{self._task.name}.json").write_text(json.dumps(started))
            time.sleep(fit_s(c))
            labels = np.resize(np.arange(used(c), dtype=np.int32), 64)
            record = FitRecord(
                num_clusters=c,
                repeat=self._task.repeat,
                num_used=used(c),
                loss=0.0,
                seconds=round(time.monotonic() - started, 3),
            )
            study.write_fit(record, self._task.name, {"labels": labels}, {"method": "temi"})
            return
            yield

        def _trial(self, study: Study, space: SearchSpace, held: Resources) -> Iterator[Any]:
            recorded = {report.rung: report for report in study.reports(self._task.name)}
            for index, kimg in enumerate(space.rungs.rungs_kimg):
                if index not in recorded:
                    seconds, distance = rung(self._task.num_clusters, index)
                    started = time.monotonic()
                    time.sleep(seconds)
                    ended = time.monotonic()
                    name = f"{self._task.name}-{index}.json"
                    (study.path / "intervals").mkdir(exist_ok=True)
                    (study.path / "intervals" / name).write_text(json.dumps([held.gpus, started, ended]))
                    recorded[index] = TrialReport(
                        trial=self._task.name,
                        rung=index,
                        images_seen=round(kimg * 1000),
                        distance=distance,
                        num_samples=8,
                        loss=None,
                        train_s=round(ended - started, 3),
                        evaluate_s=0.0,
                        skipped_steps=0,
                        collapsed=False,
                    )
                    study.write_report(recorded[index])
                yield recorded[index]

    return PretendedTask


def search(study: Study, space: SearchSpace, task: type[StudyTask]) -> float:
    """Wall seconds of a search on the connected cluster whose tasks are of this class."""

    def show(event: Any) -> None:
        if isinstance(event, Notice):
            print(f"  {event.text}", file=sys.stderr, flush=True)

    trainable.StudyTask, run._keep_best = task, lambda *arguments: None
    started = time.monotonic()
    run.run_study(study, space, Goal(kind="search"), address=None, show=show)
    return time.monotonic() - started


def space_of(images: Path, **sections: Any) -> SearchSpace:
    """A space whose real stages (images, features, neighbors, reference) are as small as they can be."""
    rng = np.random.default_rng(0)
    images.mkdir()
    for index in range(64):
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(images / f"{index}.png")
    plain = {
        "name": "pretended",
        "images": {"source": str(images)},
        "features": {"extractor": "pixels"},
        "evaluation": {"detector": "pixels", "num_samples": 8},
        "clustering": {"num_neighbors": 5, "batch_size": 32},
    }
    return SearchSpace.model_validate(plain | sections)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--cores",
        type=int,
        default=min(os.cpu_count() or 1, TRIALS),
        help="how many trials run side by side, one on each; default: as many as the machine has",
    )
    cores = parser.parse_args().cores
    import ray

    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))
    space = space_of(
        folder / "images",
        bound={"alpha": 0.9, "c_start": 40, "c_limit": 40},
        candidates={"explicit": list(range(2, 1 + TRIALS))},
        rungs={"rungs_kimg": [1, 2, 3, 4, 5]},
    )
    load = os.getloadavg()[0]
    print(f"{TRIALS} trials of {RUNGS} rungs of {INTERVAL_S:g} s on {cores} cores; load {load:.1f}", file=sys.stderr)
    try:
        start_ray(num_cpus=cores, num_gpus=0, object_store_memory=100_000_000, _temp_dir=str(folder / "ray"))
        study = Study(folder / "study")
        wall = search(study, space, pretended(lambda c: 0.0, lambda c: c, lambda c, rung: (INTERVAL_S, 1.0)))
        ends = [json.loads(path.read_text()) for path in (study.path / "intervals").iterdir()]
        statuses = {decision.status for decision in study.decisions()}
        stages = study.stage_s()
        ray.shutdown()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    assert len(ends) == TRIALS * RUNGS, "not every interval was run"
    assert statuses == {"running", "completed"}, "a trial was stopped"
    ideal = -(-TRIALS // cores) * RUNGS * INTERVAL_S
    allowed = 1.1 * ideal + 20
    print(f"wall {wall:.1f} s, ideal {ideal:.1f} s, allowed {allowed:.1f} s; stages {stages}", file=sys.stderr)
    print(
        json.dumps(
            {
                "ratio": round(wall / ideal, 3),
                "wall_s": round(wall, 2),
                "ideal_s": ideal,
                "allowed_s": round(allowed, 2),
                "within": wall <= allowed,
                "stage_s": stages,
                "cores": cores,
                "load": [round(load, 2), round(os.getloadavg()[0], 2)],
                "machine": platform.machine(),
                "cpus": os.cpu_count(),
            }
        )
    )


if __name__ == "__main__":
    main()
