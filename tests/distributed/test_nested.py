"""Trials of several workers: the same training as in one process, and no GPU lost whatever ends them.

The four faults are those of stock nesting in Ray 2.60 that nested.py answers. They guard the two private hooks.
"""

import os
import signal
import threading
from pathlib import Path

import numpy as np
import pytest

from cedm_ray import durable
from cedm_ray.distributed import nested, run
from cedm_ray.search.goals import Goal, TrainTask
from cedm_ray.search.packing import Resources
from cedm_ray.search.results import Decision, Progress, TrialReport
from cedm_ray.search.study import Study

BASELINE = Goal(kind="trial", num_clusters=None)
HELD = Resources(cpus=2, gpus=0, workers=2)


def with_workers(space, workers):
    trial = space.resources.trial.model_copy(update={"workers": workers, "nested": True})
    return space.model_copy(update={"resources": space.resources.model_copy(update={"trial": trial})})


def weights(study: Study) -> dict[str, np.ndarray]:
    checkpoint = durable.newest_checkpoint(study.checkpoints("unconditional"))
    return durable.unpack_tensors(checkpoint.files["ema.safetensors"], "ema")[0]


def wait_until(true, timeout_s=20.0):
    """Ray removes placement groups and processes in its own time."""
    pause = threading.Event()
    for _ in range(int(timeout_s / 0.1)):
        if true():
            return True
        pause.wait(0.1)
    return false_with_groups()


def false_with_groups():
    import ray

    raise AssertionError(f"placement groups left: {ray.util.placement_group_table()}")


def no_group_is_left(ray) -> bool:
    return all(group["state"] == "REMOVED" for group in ray.util.placement_group_table().values())


def test_nested_workers_train_what_one_process_trains(cluster, space, tmp_path, shown):
    own, one, two = (Study(tmp_path / name) for name in ("own", "one", "two"))
    run.run_study(own, space, BASELINE, address=None, show=shown.append)
    run.run_study(one, with_workers(space, 1), BASELINE, address=None, show=shown.append)
    run.run_study(two, with_workers(space, 2), BASELINE, address=None, show=shown.append)
    expected = weights(own)
    for name, value in weights(one).items():
        np.testing.assert_array_equal(value, expected[name])
    for name, value in weights(two).items():
        np.testing.assert_allclose(value, expected[name], rtol=0, atol=1e-4)
    distances = [[report.distance for report in study.reports("unconditional")] for study in (own, one, two)]
    # The same model; how many threads take part in the singular values moves the last digit.
    assert distances[0] == pytest.approx(distances[1], rel=1e-12)
    np.testing.assert_allclose(distances[2], distances[0], rtol=0.02)
    assert wait_until(lambda: no_group_is_left(cluster))


def test_a_stopped_nested_trial_frees_its_workers(cluster, space, study, shown, monkeypatch):
    def stop(self, report: TrialReport) -> Decision:
        decision = Decision(
            sequence=1,
            trial=report.trial,
            rung=report.rung,
            images_seen=report.images_seen,
            status="stopped",
            cutoff=None,
            reason="stopped by the test",
        )
        self.agenda.tell_end(report.trial)
        return decision

    monkeypatch.setattr("cedm_ray.search.driver.Driver.judge", stop)
    endless = with_workers(space, 2)
    endless = endless.model_copy(update={"rungs": endless.rungs.model_copy(update={"rungs_kimg": (0.1, 100_000)})})
    run.run_study(study, endless, BASELINE, address=None, show=shown.append)
    assert wait_until(lambda: no_group_is_left(cluster))
    assert wait_until(lambda: cluster.available_resources().get("CPU") == 4)


def test_a_backend_that_fails_to_start_leaves_no_placement_group(cluster, space, study, shown, monkeypatch):
    from ray.train.torch import TorchConfig

    two = with_workers(space, 2)
    run.run_features(study, two, address=None, show=shown.append)
    # NCCL needs GPUs, and there is none here.
    monkeypatch.setattr(nested, "TorchConfig", lambda backend: TorchConfig(backend="nccl"))
    registry = nested.start_registry()
    with pytest.raises(RuntimeError, match=r"(?s)NCCL|nccl"):
        list(nested.nested_trial(study, two, TrainTask(num_clusters=None), HELD, key="broken"))
    nested.reap(registry, "broken")
    assert wait_until(lambda: no_group_is_left(cluster))


def trial_process(ray) -> int:
    """The process of the one StudyTask of this cluster."""
    session = ray._private.worker._global_node.get_session_dir_path()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            if not (entry / "cmdline").read_text().startswith("ray::StudyTask"):
                continue
            parent = (entry / "stat").read_text().rpartition(")")[2].split()[1]
            if session in Path(f"/proc/{parent}/cmdline").read_text():
                return int(entry.name)
        except OSError:
            continue
    raise AssertionError("there is no process of a StudyTask")


def test_a_killed_nested_trial_is_run_again_and_a_slow_driver_loses_no_report(cluster, space, study):
    killed = []

    def show(event):
        if isinstance(event, Progress) and event.task == "unconditional" and not killed:
            killed.append(trial_process(cluster))
            os.kill(killed[0], signal.SIGKILL)
        elif killed:
            # Slower than the trial, which by then has ended and left its last report behind.
            threading.Event().wait(0.5)

    run.run_study(study, with_workers(space, 2), BASELINE, address=None, show=show)
    assert killed
    assert [report.images_seen for report in study.reports("unconditional")] == [500, 1000]
    assert [decision.status for decision in study.decisions()] == ["running", "completed"]
    assert wait_until(lambda: no_group_is_left(cluster))


def test_nested_trials_that_want_more_than_there_is_take_turns(cluster, space, study, shown):
    """Two trials of two workers fill the cluster; the third waits until a whole one fits, with nothing taken before."""
    three = with_workers(space, 2)
    changes = {
        "candidates": space.candidates.model_copy(update={"explicit": (2, 4)}),
        "bound": space.bound.model_copy(update={"c_start": 4, "c_limit": 4, "alpha": 0.5}),
        "rungs": space.rungs.model_copy(update={"rungs_kimg": (0.5,)}),
    }
    run.run_study(study, three.model_copy(update=changes), Goal(kind="search"), address=None, show=shown.append)
    assert {trial for trial in study.trials() if study.reports(trial)} == {"unconditional", "c00002", "c00004"}
    assert study.failures() == {}
    assert wait_until(lambda: no_group_is_left(cluster))
