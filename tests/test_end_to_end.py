"""A whole study through the command line, on Ray: once undisturbed, once ended again and again and run again."""

import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from sklearn.datasets import load_digits

from cedm_ray import durable
from cedm_ray.lock import exclusive_lock
from cedm_ray.search.study import Study

ROOT = Path(__file__).parents[1]

SPACE = {
    "name": "end-to-end",
    "seed": 3,
    "images": {"source": None},
    "clustering": {
        "num_heads": 2,
        "hidden": 32,
        "bottleneck": 16,
        "num_neighbors": 10,
        "batch_size": 100,
        "epochs": 10,
        "warmup_epochs": 1,
        "learning_rate": 1e-3,
        "feature_norm": "standardize",
    },
    "bound": {"c_start": 4},
    "candidates": {"count": 4},
    "rungs": {"rungs_kimg": [0.5, 1, 1.5], "reduction_factor": 2},
    "network": {"model_channels": 16, "channel_mult": [1], "num_blocks": 1, "attention_resolutions": [], "dropout": 0},
    "augmentation": {"probability": 0},
    "training": {"batch_size": 50, "learning_rate": 2e-3, "lr_rampup_kimg": 0.2, "ema_halflife_kimg": 0.2},
    "sampling": {"num_steps": 4},
    "evaluation": {"detector": "pixels", "num_samples": 64},
    # A trial leaves no whole core to another, so that reports come in one order and two runs can be compared. Of two
    # cores it has one thread: two would wait for each other wherever the machine has more to do.
    "resources": {"fit": {"at_once": 2}, "trial": {"cpus": os.cpu_count() - 0.5}},
}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> tuple[Path, Path]:
    """(search space, folder of 300 images)"""
    folder = tmp_path_factory.mktemp("inputs")
    images = folder / "images"
    images.mkdir()
    for index, digit in enumerate(load_digits().images[:300]):
        Image.fromarray((digit * 255 / 16).round().astype(np.uint8)).save(images / f"{index:03d}.png")
    space = folder / "space.yaml"
    space.write_text(yaml.safe_dump(SPACE))
    return space, images


def command(inputs, study: Path) -> list[str]:
    space, images = inputs
    verb = [sys.executable, "-m", "cedm_ray", "search", str(space), "--images", str(images)]
    return [*verb, "--study", str(study), "--json"]


def start(inputs, study: Path, variables: dict[str, str] | None = None) -> subprocess.Popen:
    """A search in the background, whose lines for the user can be read as they come. variables: of its environment."""
    pipes = {"stderr": subprocess.PIPE, "stdout": subprocess.DEVNULL}
    environment = {**os.environ, **(variables or {})}
    # A shell that runs the tests in the background has them ignore this one, and so would what they start.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return subprocess.Popen(command(inputs, study), text=True, cwd=ROOT, env=environment, **pipes)
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="module")
def undisturbed(inputs, tmp_path_factory) -> tuple[Path, dict]:
    """A finished study and what the command printed."""
    study = tmp_path_factory.mktemp("undisturbed") / "study"
    ended = subprocess.run(command(inputs, study), capture_output=True, text=True, cwd=ROOT, timeout=300, check=False)
    assert ended.returncode == 0, ended.stderr
    return study, json.loads(ended.stdout)


def what_counts(result: dict) -> dict:
    """A result without the seconds that it took."""
    plain = json.loads(json.dumps(result))
    del plain["stage_s"]
    for trial in plain["trials"]:
        for report in trial["reports"]:
            # Where a process took over in between, these are of the time since.
            del report["train_s"], report["evaluate_s"], report["loss"], report["trained_images"]
    return plain


def test_a_search_ends_with_its_answer_its_model_and_its_page(undisturbed):
    path, result = undisturbed
    study = Study(path)
    points = {point["num_clusters"]: point for point in result["bound"]["points"]}
    c_max = result["bound"]["c_max"]
    assert points[c_max]["num_used"] * 100 > 96 * c_max
    assert all(point["num_used"] * 100 <= 96 * c for c, point in points.items() if c > c_max)
    trials = {trial["trial"]: trial for trial in result["trials"]}
    assert trials["unconditional"]["status"] == "completed"
    assert all(2 <= trial["num_clusters"] <= c_max for name, trial in trials.items() if name != "unconditional")
    completed = [t for t in result["trials"] if t["status"] == "completed" and t["num_clusters"] is not None]
    best = min(completed, key=lambda trial: trial["reports"][-1]["distance"])
    assert result["best"] == best["trial"]
    assert result["best_num_clusters"] == best["num_clusters"]
    baseline = trials["unconditional"]["reports"][-1]["distance"]
    assert result["gain"] == pytest.approx(1 - best["reports"][-1]["distance"] / baseline)
    assert {report["num_samples"] for trial in result["trials"] for report in trial["reports"]} == {64}
    assert durable.read_checkpoint(study.best).manifest["num_clusters"] == result["best_num_clusters"]
    assert (study.table, study.report, study.sample_grid) == tuple(
        p for p in (study.table, study.report, study.sample_grid) if p.stat().st_size > 0
    )
    assert durable.read_record(path / "exit.json") == {"code": 0, "text": "done"}


def test_a_finished_study_prints_its_result_again_without_ray(undisturbed, inputs):
    path, result = undisturbed
    before = {p: p.stat().st_mtime_ns for p in path.rglob("*.safetensors")}
    runs = sorted((path / "ray").glob("run-*"))
    ended = subprocess.run(command(inputs, path), capture_output=True, text=True, cwd=ROOT, timeout=60, check=False)
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout) == result
    assert {p: p.stat().st_mtime_ns for p in path.rglob("*.safetensors")} == before
    assert sorted((path / "ray").glob("run-*")) == runs


def test_a_search_that_is_ended_again_and_again_decides_as_if_it_had_not_been(undisturbed, inputs, tmp_path):
    """Faults 1, 2, 13 and 21, one after another on one study: in its fits, after them, and at its rungs."""
    path, result = undisturbed
    study = Study(tmp_path / "study")
    kept = acknowledged_when(killed, inputs, study, "C = ")
    kept |= acknowledged_when(ended_by, inputs, study, "C = ", [signal.SIGTERM], 143)
    kept |= acknowledged_when(overtaken, inputs, study, "C = ")
    kept |= acknowledged_when(ended_by, inputs, study, "C_max = ", [signal.SIGINT], 130)
    kept |= acknowledged_when(ended_by, inputs, study, "at 0.5 kimg", [signal.SIGINT, signal.SIGINT], 130)
    kept |= acknowledged_when(killed, inputs, study, "at 1 kimg")
    assert {name.parts[0] for name in kept} == {"fits", "trials"}
    again = subprocess.run(
        command(inputs, study.path), capture_output=True, text=True, cwd=ROOT, timeout=300, check=False
    )
    assert again.returncode == 0, again.stderr
    assert what_counts(json.loads(again.stdout)) == what_counts(result)
    assert study.decisions() == Study(path).decisions()
    assert {name: (study.path / name).read_bytes() for name in kept} == kept


def acknowledged_when(end, inputs, study: Study, moment: str, *how) -> dict[Path, bytes]:
    """Start the search and end it as it first shows a line with `moment` in it; the records that there are then."""
    end(inputs, study, moment, *how)
    found = (*study.path.rglob("fits/*"), *study.path.rglob("reports/*"))
    return {p.relative_to(study.path): p.read_bytes() for p in found if not durable.is_temporary(p)}


def shows(driver: subprocess.Popen, moment: str) -> None:
    """Wait until the search shows a line with this in it."""
    assert any(moment in line for line in driver.stderr), f"the search ended before it showed {moment!r}"


def killed(inputs, study: Study, moment: str) -> None:
    """Fault 1: the driver has no time to do anything."""
    driver = start(inputs, study.path)
    try:
        shows(driver, moment)
    finally:
        driver.send_signal(signal.SIGKILL)
        driver.communicate()


def ended_by(inputs, study: Study, moment: str, signals: list[signal.Signals], code: int) -> None:
    """Faults 2 and 21: it ends within seconds, says so and leaves no process."""
    mark = f"CEDM_RAY_TEST_MARK={secrets.token_hex(8)}"
    driver = start(inputs, study.path, dict([mark.split("=")]))
    try:
        shows(driver, moment)
        for one in signals:
            driver.send_signal(one)
        driver.communicate(timeout=60)
    finally:
        driver.kill()
        driver.communicate()
    assert driver.returncode == code
    assert durable.read_record(study.path / "exit.json")["code"] == code
    give_up = time.monotonic() + 60
    while left := marked(mark):
        assert time.monotonic() < give_up, left
        time.sleep(0.1)


def marked(mark: str) -> list[str]:
    """The command lines of all processes that have the mark in their environment."""
    found = []
    for folder in Path("/proc").iterdir():
        # A process may end while it is looked at, and those of other users cannot be.
        with contextlib.suppress(OSError):
            if folder.name.isdigit() and mark.encode() in (folder / "environ").read_bytes():
                found.append((folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"))
    return found


def overtaken(inputs, study: Study, moment: str) -> None:
    """Fault 13, with two real drivers: while it is paused it keeps its study, and once overtaken it writes nothing."""
    first, ended = start(inputs, study.path), study.read_exit()
    try:
        shows(first, moment)
        first.send_signal(signal.SIGSTOP)
        refused = subprocess.run(command(inputs, study.path), capture_output=True, text=True, cwd=ROOT, check=False)
        assert refused.returncode == 6
        assert f"process {first.pid} on " in refused.stderr
        # As of a machine that hangs: its lock is given to another.
        study.lock.unlink()
        with exclusive_lock(study.lock):
            decided, timed = study.decisions(), study.stage_s()
            first.send_signal(signal.SIGCONT)
            _, told = first.communicate(timeout=300)
            assert first.returncode == 6
            assert f"is driven by process {os.getpid()} on " in told
            assert (study.decisions(), study.stage_s()) == (decided, timed)
        assert study.read_exit() == ended
    finally:
        first.send_signal(signal.SIGCONT)
        first.kill()
        first.communicate()
