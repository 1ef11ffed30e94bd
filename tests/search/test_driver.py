"""The driver: it never hands out more than the cluster holds, and it tells what is fatal from what is data."""

import shutil
from collections import Counter

import numpy as np
import pytest

from cedm_ray import durable
from cedm_ray.data.image_set import open_image_set
from cedm_ray.errors import ConfigurationError, IntegrityError, LockedError, NoUsableResultError, StorageError
from cedm_ray.lock import exclusive_lock
from cedm_ray.search.driver import DOUBT_S, Driver
from cedm_ray.search.goals import FitTask, Goal, Proposal, TrainTask
from cedm_ray.search.packing import GIB, Node
from cedm_ray.search.packing import Cluster as Hardware
from cedm_ray.search.results import UNCONDITIONAL, Progress, TrialReport
from cedm_ray.search.study import Study


def test_a_fit_that_nothing_waits_for_any_more_is_needless_and_said_to_be(played, tmp_path):
    space = played.space_of(resources={"fit": {"at_once": 4}})
    cluster = played.Cluster(tmp_path, space, goal=Goal(kind="bound"))
    assert [task.num_clusters for task in cluster.start_all()] == [4, 8, 16, 32]
    cluster.end_fit(4, 4)
    assert not cluster.driver.needless("c00032-r0")
    cluster.end_fit(8, 3)
    assert cluster.driver.needless("c00016-r0")
    assert cluster.driver.needless("c00032-r0")
    cluster.driver.end("c00032-r0")
    assert cluster.notices[-1] == "c00032-r0 was not needed any more"
    assert "c00032-r0" not in cluster.driver.live


def test_a_fit_that_finds_no_memory_waits_and_a_trial_starts_all_the_same(tmp_path, prepared, tiny_space):
    shutil.copytree(prepared.path, tmp_path / "study")
    study = Study(tmp_path / "study")
    hardware = Hardware(nodes=(Node(name="one", cpus=8, memory_bytes=1.5 * GIB),))
    driver = Driver(
        study=study,
        space=tiny_space,
        goal=Goal(kind="search"),
        images=open_image_set(study.images),
        cluster=lambda: hardware,
        show=lambda event: None,
    )
    # One fit holds a GiB, and half of one is left.
    first, second, third = (driver.next_task() for _ in range(3))
    assert isinstance(first[0], FitTask)
    assert first[1].memory_bytes == GIB
    assert second[0] == TrainTask(num_clusters=None)
    assert third is None


def test_cores_and_gpu_shares_handed_out_never_exceed_the_cluster(played, tmp_path):
    resources = {"fit": {"cpus": 1, "gpus": 0.3, "at_once": 99}, "trial": {"cpus": 2, "gpus": 0.5}}
    cluster = played.Cluster(tmp_path, played.space_of(resources=resources), total=(6, 2))
    rng = np.random.default_rng(0)
    most = 0
    while not cluster.driver.finished:
        cluster.start_all()
        held = [held for _, held in cluster.driver.live.values()]
        assert sum(h.cpus for h in held) <= 6 + 1e-6
        assert sum(h.gpus for h in held) <= 2 + 1e-6
        most = max(most, len(held))
        names = sorted(cluster.driver.live)
        name = names[rng.integers(len(names))]
        task, _ = cluster.driver.live[name]
        if isinstance(task, FitTask):
            cluster.end_fit(task.num_clusters, min(task.num_clusters, 16))
        else:
            while cluster.report(name, 1.0, rung=len(cluster.study.reports(name))).status == "running":
                pass
            cluster.driver.end(name)
    assert most >= 5
    assert cluster.driver.next_task() is None


def test_no_more_fits_at_once_than_the_space_says(played, tmp_path):
    cluster = played.Cluster(tmp_path, played.space_of(resources={"fit": {"at_once": 2}}), total=(32, 0))
    kinds = Counter(type(task) for task in cluster.start_all())
    assert kinds == {FitTask: 2, TrainTask: 1}


@pytest.mark.parametrize(
    ("resources", "total", "message"),
    [
        ({"fit": {"cpus": 9}}, (8, 0), "one fit asks for 9 CPUs and 0 GPUs, and the cluster has 8 and 0"),
        ({"fit": {"gpus": 0.5}}, (8, 0), "one fit asks for 1 CPUs and 0.5 GPUs"),
        ({"trial": {"workers": 3, "gpus": 1}}, (8, 2), "one trial asks for 3 CPUs and 3 GPUs, and the cluster has 8"),
        ({}, (0.5, 0), "one fit asks for 1 CPUs"),
    ],
)
def test_more_than_the_cluster_holds_is_refused_at_once(played, tmp_path, resources, total, message):
    with pytest.raises(ConfigurationError, match=message) as caught:
        played.Cluster(tmp_path, played.space_of(resources=resources), total=total)
    assert "resources." in caught.value.mend


def test_a_failed_fit_that_the_bound_needs_is_fatal_and_stays_so(played, tmp_path):
    cluster = played.Cluster(tmp_path, played.space_of(), goal=Goal(kind="bound"), total=(1, 0))
    cluster.start_all()
    cluster.driver.fail("c00004-r0", "out of memory")
    assert isinstance(cluster.driver.fatal, NoUsableResultError)
    assert "without C = 4: out of memory" in str(cluster.driver.fatal)
    assert "c00004-r0.json" in cluster.driver.fatal.mend
    assert cluster.driver.finished
    assert cluster.driver.next_task() is None
    again = played.Cluster(tmp_path, played.space_of(), goal=Goal(kind="bound"))
    assert str(again.driver.fatal) == str(cluster.driver.fatal)
    assert again.driver.next_task() is None
    # Its mend works.
    (tmp_path / "failures" / "c00004-r0.json").unlink()
    assert (
        played.Cluster(tmp_path, played.space_of(), goal=Goal(kind="bound")).driver.next_task()[0].name == "c00004-r0"
    )


def test_a_failed_fit_that_was_asked_ahead_is_fatal_only_once_the_bound_needs_it(played, tmp_path):
    spared = played.Cluster(tmp_path / "spared", played.space_of(), goal=Goal(kind="bound"))
    assert [task.num_clusters for task in spared.start_all()] == [4, 8, 16, 32]
    spared.driver.fail("c00016-r0", "out of memory")
    assert spared.driver.fatal is None
    spared.end_fit(4, 4)
    spared.end_fit(8, 4)
    assert spared.driver.fatal is None
    needed = played.Cluster(tmp_path / "needed", played.space_of(), goal=Goal(kind="bound"))
    needed.start_all()
    needed.driver.fail("c00016-r0", "out of memory")
    needed.end_fit(8, 8)
    assert needed.driver.fatal is None
    needed.end_fit(4, 4)
    assert "without C = 16: out of memory" in str(needed.driver.fatal)


def test_a_failed_trial_is_data(played, tmp_path):
    cluster = played.Cluster(tmp_path, played.space_of())
    cluster.find_bound_of_4()
    live = [name for name, (task, _) in cluster.driver.live.items() if isinstance(task, TrainTask)]
    assert UNCONDITIONAL in live
    cluster.driver.fail(UNCONDITIONAL, "its process died")
    assert cluster.driver.fatal is None
    assert cluster.study.failures() == {UNCONDITIONAL: "its process died"}
    assert not cluster.driver.finished
    assert "unconditional failed: its process died" in cluster.notices
    assert UNCONDITIONAL not in [task.name for task in cluster.start_all()]


def test_a_candidate_whose_fit_failed_is_left_out_and_the_search_goes_on(played, tmp_path):
    cluster = played.Cluster(tmp_path, played.space_of(resources={"fit": {"at_once": 9}}), total=(32, 0))
    cluster.find_bound_of_4()
    assert {"c00002-r0", "c00003-r0"} <= set(cluster.driver.live)
    cluster.driver.fail("c00003-r0", "text")
    cluster.end_fit(2, 2)
    names = {task.name for task in cluster.start_all()} | set(cluster.driver.live)
    assert cluster.driver.fatal is None
    assert "c00002" in names
    assert "c00003" not in names


def test_a_storage_failure_is_fatal_whatever_the_task_and_writes_no_failure(played, tmp_path):
    cluster = played.Cluster(tmp_path, played.space_of())
    cluster.start_all()
    full = StorageError("the storage is full")
    cluster.driver.fail(UNCONDITIONAL, "the storage is full", fatal=full)
    cluster.driver.fail("c00064-r0" if "c00064-r0" in cluster.driver.live else "c00032-r0", "some other error")
    assert cluster.driver.fatal is full
    assert UNCONDITIONAL not in cluster.study.failures()
    assert cluster.driver.next_task() is None
    assert not cluster.driver.finished
    for name in list(cluster.driver.live):
        cluster.driver.end(name)
    assert cluster.driver.finished


def test_a_decision_is_on_record_before_it_is_acted_on(played, tmp_path):
    cluster = played.Cluster(tmp_path, played.space_of())
    cluster.start_all()
    decision = cluster.report(UNCONDITIONAL, 5.0)
    assert cluster.study.decisions() == [decision]
    assert cluster.driver.judge(cluster.study.reports(UNCONDITIONAL)[0]) == decision
    assert cluster.study.decisions() == [decision]
    # Told of once: a process that took over says its reports again, and people would take it to be back at that rung.
    assert cluster.notices == ["unconditional goes on at 1 kimg: 5, the baseline is never stopped"]


def test_a_trial_that_was_cut_short_is_asked_for_again_and_one_that_ended_is_not(played, tmp_path):
    cluster = played.Cluster(tmp_path, played.space_of())
    cluster.start_all()
    cluster.report(UNCONDITIONAL, 5.0)
    cluster.driver.end(UNCONDITIONAL)
    assert UNCONDITIONAL in [task.name for task in cluster.start_all()]
    cluster.report(UNCONDITIONAL, 4.0, rung=1)
    cluster.driver.end(UNCONDITIONAL)
    assert UNCONDITIONAL not in [task.name for task in cluster.start_all()]
    assert [e.task for e in cluster.shown if isinstance(e, Progress) and e.ended] == [UNCONDITIONAL] * 2


def test_candidates_are_on_record_as_soon_as_the_bound_is_known(played, tmp_path):
    cluster = played.Cluster(tmp_path, played.space_of())
    assert cluster.driver.bound_was_unknown
    cluster.find_bound_of_4()
    order = durable.read_record(tmp_path / "candidates.json")["order"]
    assert tuple(order) == cluster.driver.agenda.candidates
    assert sorted(order) == [2, 3, 4]
    assert cluster.driver.bound_found is not None
    # Also of a driver that is killed later.
    assert cluster.driver.study.stage_s() == {
        "bound": pytest.approx(cluster.driver.bound_found - cluster.driver.began, abs=0.001)
    }
    assert cluster.driver.agenda.bound.reason in cluster.notices
    again = played.Cluster(tmp_path, played.space_of())
    assert not again.driver.bound_was_unknown
    assert again.driver.bound_found is None
    assert again.driver.agenda.candidates == tuple(order)


def test_records_that_contradict_the_rule_are_an_integrity_error(played, tmp_path):
    cluster = played.Cluster(tmp_path, played.space_of())
    for c, distance in ((2, 5.0), (3, 6.0)):
        cluster.report(f"c0000{c}", distance)
    played.Cluster(tmp_path, played.space_of())
    path = tmp_path / "trials" / "c00003" / "reports" / "000.json"
    durable.replace_record(path, {**durable.read_record(path), "distance": 4.0})
    with pytest.raises(IntegrityError, match="decision 2 on c00003 at rung 0 was 'stopped' and is 'running'"):
        played.Cluster(tmp_path, played.space_of())


def test_a_trial_is_placed_whole_and_what_no_machine_holds_is_refused(played, tmp_path):
    space = played.space_of(resources={"trial": {"workers": 2, "gpus": 1}})
    cluster = played.Cluster(tmp_path / "fits", space, nodes={"a": (4, 1), "b": (4, 2)})
    cluster.start_all()
    assert cluster.driver.live[UNCONDITIONAL][1].nodes == ("b", "b")
    # Fits go where they cost no trial its place.
    assert {held.nodes for task, held in cluster.driver.live.values() if isinstance(task, FitTask)} == {("a",)}
    alone = played.space_of(resources={"trial": {"gpus": 4}})
    with pytest.raises(ConfigurationError, match=r"2 machines, the largest of which has 4 and 2: no process lies on"):
        played.Cluster(tmp_path / "not", alone, nodes={"a": (4, 2), "b": (4, 2)})
    spread = played.space_of(resources={"trial": {"workers": 4, "gpus": 1}})
    assert played.Cluster(tmp_path / "spread", spread, nodes={"a": (4, 2), "b": (4, 2)}).driver.fatal is None


def test_machines_that_come_are_used_and_where_all_are_gone_that_is_said_once(played, tmp_path):
    space = played.space_of(resources={"fit": {"at_once": 1}, "trial": {"cpus": 4}})
    cluster = played.Cluster(tmp_path, space, nodes={"a": (4, 0)})
    assert [task.name for task in cluster.start_all()] == ["c00004-r0"]
    cluster.nodes["b"] = (4, 0)
    assert [task.name for task in cluster.start_all()] == [UNCONDITIONAL]
    cluster.nodes = {"c": (1, 0)}
    assert cluster.driver.misplaced(UNCONDITIONAL)
    cluster.driver.end(UNCONDITIONAL)
    assert "unconditional lost its machine" in cluster.notices[-1]
    cluster.driver.end("c00004-r0")
    assert [task.name for task in cluster.start_all()] == ["c00004-r0"]
    cluster.nodes = {}
    cluster.driver.end("c00004-r0")
    before = len(cluster.notices)
    assert cluster.start_all() == []
    assert cluster.start_all() == []
    assert [text for text in cluster.notices[before:] if "waiting for machines" in text] == cluster.notices[-1:]
    cluster.nodes = {"d": (8, 0)}
    assert {task.name for task in cluster.start_all()} == {"c00004-r0", UNCONDITIONAL}


def test_a_dead_process_is_begun_again_once_and_after_every_rung(played, tmp_path):
    cluster = played.Cluster(tmp_path, played.space_of(rungs={"rungs_kimg": [1, 2, 3], "reduction_factor": 2}))
    cluster.start_all()
    for rung in range(2):
        cluster.driver.die(UNCONDITIONAL, "killed")
        assert cluster.study.failures() == {}
        assert UNCONDITIONAL in [task.name for task in cluster.start_all()]
        cluster.report(UNCONDITIONAL, 5.0, rung=rung)
    cluster.driver.die(UNCONDITIONAL, "killed")
    cluster.start_all()
    cluster.driver.die(UNCONDITIONAL, "killed again")
    assert cluster.study.failures() == {UNCONDITIONAL: "killed again"}
    assert UNCONDITIONAL not in [task.name for task in cluster.start_all()]


def test_lost_machines_are_no_attempts_however_many(played, tmp_path):
    cluster = played.Cluster(tmp_path, played.space_of(resources={"fit": {"at_once": 1}}), nodes={"n0": (8, 0)})
    cluster.start_all()
    for lost in range(4):
        assert cluster.driver.live[UNCONDITIONAL][1].nodes == (f"n{lost}",)
        # The process is known to be dead some seconds before the machine is.
        cluster.driver.die(UNCONDITIONAL, "its node has died")
        cluster.nodes = {f"n{lost + 1}": (8, 0)}
        cluster.start_all()
    assert cluster.study.failures() == {}
    assert UNCONDITIONAL in cluster.driver.live


def test_a_machine_whose_process_nobody_reaches_gets_no_task_for_a_while(played, tmp_path, monkeypatch):
    """Ray still counts it for some seconds. What lay on it begins elsewhere, and none of that is an attempt."""
    clock = [100.0]
    monkeypatch.setattr("cedm_ray.search.driver.time.monotonic", lambda: clock[0])
    space = played.space_of(resources={"fit": {"at_once": 1}, "trial": {"cpus": 8}})
    cluster = played.Cluster(tmp_path, space, nodes={"a": (8, 0), "b": (1, 0), "c": (8, 0)})
    cluster.start_all()
    held = cluster.driver.live[UNCONDITIONAL][1].nodes
    cluster.driver.die(UNCONDITIONAL, "killed")
    cluster.start_all()
    assert cluster.driver.live[UNCONDITIONAL][1].nodes == held
    cluster.driver.die(UNCONDITIONAL, "unavailable", unreachable=True)
    assert "lost its machine" in cluster.notices[-1]
    cluster.start_all()
    (other,) = {"a", "c"} - set(held)
    assert cluster.driver.live[UNCONDITIONAL][1].nodes == (other,)
    # So does the second, and nothing is left that is trusted.
    del cluster.nodes[held[0]]
    cluster.driver.die(UNCONDITIONAL, "unavailable", unreachable=True)
    assert UNCONDITIONAL not in [task.name for task in cluster.start_all()]
    assert cluster.study.failures() == {}
    # It was only slow to answer, so that the machine is used again, and what died there was an attempt all the same.
    clock[0] += DOUBT_S
    assert UNCONDITIONAL in [task.name for task in cluster.start_all()]
    cluster.driver.die(UNCONDITIONAL, "killed again")
    assert cluster.study.failures() == {UNCONDITIONAL: "killed again"}


def test_where_all_gpus_are_lost_trials_wait_for_others_and_do_not_go_to_the_heads_cores(played, tmp_path):
    cluster = played.Cluster(tmp_path, played.space_of(), nodes={"head": (8, 0), "a": (8, 2)})
    cluster.start_all()
    assert cluster.driver.live[UNCONDITIONAL][1].nodes == ("a",)
    del cluster.nodes["a"]
    for name in list(cluster.driver.live):
        cluster.driver.die(name, "unavailable", unreachable=True)
    assert cluster.start_all() == []
    assert "waiting for machines: one" in cluster.notices[-1]
    cluster.nodes["b"] = (8, 2)
    assert UNCONDITIONAL in [task.name for task in cluster.start_all()]
    assert cluster.driver.live[UNCONDITIONAL][1].nodes == ("b",)


def test_what_ran_out_of_memory_gets_half_the_microbatch_once_and_then_fails_as_oom(played, tmp_path):
    space = played.space_of(training={"batch_size": 64}, resources={"trial": {"workers": 2}})
    cluster = played.Cluster(tmp_path, space)
    cluster.start_all()
    trial, fit = TrainTask(num_clusters=None), FitTask(num_clusters=4, repeat=0)
    assert cluster.driver.space_for(trial) == space
    cluster.driver.die(UNCONDITIONAL, "CUDA out of memory", out_of_memory=True)
    cluster.driver.die(fit.name, "CUDA out of memory", out_of_memory=True)
    assert {UNCONDITIONAL, fit.name} <= {task.name for task in cluster.start_all()}
    assert cluster.driver.space_for(trial).training.microbatch == 16
    assert cluster.driver.space_for(trial).settled() == space.settled()
    assert cluster.driver.space_for(fit).clustering.head_group == 1
    assert cluster.driver.space_for(fit).settled() == space.settled()
    cluster.driver.die(UNCONDITIONAL, "CUDA out of memory", out_of_memory=True)
    assert cluster.study.failures() == {UNCONDITIONAL: "oom: CUDA out of memory"}


def test_an_overtaken_driver_writes_nothing_more(played, tmp_path):
    """Fault 13: it was paused, its lock was taken away and given to another, and it goes on."""
    cluster = played.Cluster(tmp_path / "study", played.space_of())
    study = cluster.study

    def files():
        return {path for path in study.path.rglob("*") if path.is_file() and path != study.lock}

    with exclusive_lock(study.lock):
        study.settle(played.space_of().settled())
        task, _ = cluster.driver.next_task()
        assert cluster.driver.needless(task.name) is False
        before = files()
        study.lock.unlink()
        study.lock.write_text('process 7 on elsewhere, started 2026-01-01T00:00:00+00:00\n{"mark": "x"}\n')
        report = TrialReport.played(UNCONDITIONAL, 0, 1.0, images_seen=1000, num_samples=8)
        for write in (
            cluster.driver.next_task,
            lambda: cluster.driver.judge(report),
            lambda: cluster.driver.needless(task.name),
            lambda: cluster.driver.fail(task.name, "it broke"),
            lambda: study.write_candidates([2]),
            lambda: study.write_proposal(Proposal(number=1, num_clusters=2, settings=(), changes=())),
            lambda: study.write_timing("bound", 1.0),
            lambda: study.write_exit(0, "done"),
        ):
            with pytest.raises(LockedError, match="is driven by process 7 on elsewhere") as caught:
                write()
            assert caught.value.exit_code == 6
        assert files() == before
