"""What dies, runs out of memory or is stopped: begun again or given up as the contract says, and nothing stays held.

Real Ray, real driver and records; where the work does not matter, a task's generator is replaced by one that waits.
"""

import logging
import os
import signal
import threading
import time

import numpy as np
import pytest
import torch

from cedm_ray import durable
from cedm_ray.distributed import run, trainable
from cedm_ray.distributed.trainable import StudyTask
from cedm_ray.search.driver import Driver
from cedm_ray.search.goals import FitTask, Goal
from cedm_ray.search.results import UNCONDITIONAL, Decision, Notice, TrialReport
from cedm_ray.search.study import FitRecord

BASELINE = Goal(kind="trial", num_clusters=None)


def notices(shown):
    return [event.text for event in shown if isinstance(event, Notice)]


def test_a_killed_trial_goes_on_from_its_newest_checkpoint_to_the_same_model(
    cluster, space, baseline, ready, shown, tmp_path, monkeypatch, caplog
):
    """Fault 3. The process is gone between two checkpoints, as soon as one is there and before the first rung."""
    logging.getLogger("ray").addHandler(caplog.handler)
    space = space.model_copy(update={"checkpoints": space.checkpoints.model_copy(update={"every_kimg": 0.2})})
    lives = tmp_path / "lives"
    lives.mkdir()

    class Killed(StudyTask):
        def _open(self, study, space, held):
            first = not any(lives.iterdir())
            with (lives / f"{time.monotonic_ns()}").open("w", buffering=1) as said:
                for event in super()._open(study, space, held):
                    if not isinstance(event, Notice):
                        said.write(f"{event.images_seen}\n")
                    whole = durable.newest_checkpoint(study.checkpoints(UNCONDITIONAL))
                    if first and whole is not None:
                        said.write(f"{whole.manifest['images_seen']}\n")
                        os.kill(os.getpid(), signal.SIGKILL)
                    yield event

    monkeypatch.setattr(trainable, "StudyTask", Killed)
    run.run_study(ready, space, BASELINE, address=None, show=shown.append)
    before, after = ([int(line) for line in life.read_text().split()] for life in sorted(lives.iterdir()))
    checkpoint = before.pop()
    assert 0 < checkpoint <= before[-1] < 500
    assert checkpoint <= after[0]
    assert any("goes on from its checkpoint" in text for text in notices(shown))
    # That is all that is said of it: nothing of Tune's, which knows a traceback of Ray's and that a trial did not end.
    logging.getLogger("ray").removeHandler(caplog.handler)
    assert [record.getMessage() for record in caplog.records if record.name.startswith("ray.tune")] == []
    assert ready.failures() == {}
    again, expected = ready.reports(UNCONDITIONAL), baseline.reports(UNCONDITIONAL)
    assert [report.images_seen for report in again] == [report.images_seen for report in expected] == [500, 1000]
    assert [report.distance for report in again] == pytest.approx([report.distance for report in expected], rel=1e-9)


def starved(enough):
    """A StudyTask that has memory for a microbatch of `enough` images."""

    class Starved(StudyTask):
        def _open(self, study, space, held):
            share = space.training.microbatch or space.training.batch_size
            if share > enough:
                raise torch.OutOfMemoryError(f"CUDA out of memory with {share} images")
            return super()._open(study, space, held)

    return Starved


def test_a_trial_that_runs_out_of_memory_trains_on_with_half_the_microbatch(cluster, space, ready, shown, monkeypatch):
    """Fault 4; its gradients are added up, so that it is the same batch."""
    monkeypatch.setattr(trainable, "StudyTask", starved(25))
    run.run_study(ready, space, BASELINE, address=None, show=shown.append)
    assert [report.images_seen for report in ready.reports(UNCONDITIONAL)] == [500, 1000]
    assert sum("ran out of memory" in text for text in notices(shown)) == 1
    assert ready.failures() == {}


def test_a_trial_that_runs_out_of_memory_twice_has_failed_as_oom(cluster, space, ready, shown, monkeypatch):
    monkeypatch.setattr(trainable, "StudyTask", starved(24))
    run.run_study(ready, space, BASELINE, address=None, show=shown.append)
    assert ready.failures()[UNCONDITIONAL].startswith("oom: ")
    assert "out of memory with 25 images" in ready.failures()[UNCONDITIONAL]


def test_a_stopped_trial_frees_what_it_held_though_others_go_on(cluster, space, ready, monkeypatch, record_property):
    """Tune would keep its process, and what that holds, for a task that may never come."""

    said = report("c00002")

    class Waiting(StudyTask):
        def _open(self, study, space, held):
            if isinstance(self._task, FitTask):
                record = FitRecord(num_clusters=self._task.num_clusters, repeat=0, num_used=2, loss=0, seconds=0)
                study.write_fit(
                    record, self._task.name, {"labels": (np.arange(300) % 2).astype(np.int32)}, {"method": "temi"}
                )
            elif self._task.num_clusters is None:
                while True:
                    threading.Event().wait(0.2)
                    yield None
            else:
                yield said

    def judge(self, told):
        decision = Decision(
            sequence=1, trial=told.trial, rung=0, images_seen=500, status="stopped", cutoff=None, reason="by the test"
        )
        self.agenda.tell_end(told.trial)
        threading.Thread(target=watch, args=(self, time.monotonic()), daemon=True).start()
        return decision

    freed = []

    def watch(driver, stopped):
        for _ in range(600):
            # The baseline holds one of the four.
            if cluster.available_resources().get("CPU") == 3:
                freed.append(time.monotonic() - stopped)
                break
            threading.Event().wait(0.1)
        driver.agenda.tell_end(UNCONDITIONAL)

    monkeypatch.setattr(trainable, "StudyTask", Waiting)
    monkeypatch.setattr(run, "_keep_best", lambda *arguments: None)
    monkeypatch.setattr(Driver, "judge", judge)
    changes = {"bound": {"alpha": 0.4, "c_start": 4, "c_limit": 4}, "candidates": {"explicit": [2]}}
    space = type(space).model_validate(space.model_dump() | changes)
    run.run_study(ready, space, Goal(kind="search"), address=None, show=lambda event: None)
    (seconds,) = freed
    record_property("freed_s", seconds)
    print(f"free again after {seconds:.1f} s")


def report(name):
    return TrialReport.played(name, 0, 1.0, images_seen=500, num_samples=8)
