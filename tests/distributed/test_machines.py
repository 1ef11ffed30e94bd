"""A search on several machines, all of them on this one: what is found does not depend on how many there are, nor on
which of them die on the way (faults 5 and 6).

The search runs in a process of its own, because this one is connected to the tests' own cluster.
"""

import contextlib
import json
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest
import yaml

from cedm_ray import durable
from cedm_ray.data.image_set import open_image_set
from cedm_ray.distributed.run import run_study
from cedm_ray.search.goals import Goal
from cedm_ray.search.outcome import study_result
from cedm_ray.search.results import UNCONDITIONAL
from cedm_ray.search.study import Study

ROOT = Path(__file__).parents[2]
# Whatever happens here takes seconds on a quiet machine, and minutes where a process gets a fraction of a core.
PATIENCE_S = 600.0

CHILD = """
import json, os, sys, threading
from pathlib import Path

import ray

from cedm_ray.diffusion.train import TrainProgress
from cedm_ray.distributed import decoding, trainable
from cedm_ray.distributed.run import run_study
from cedm_ray.search.goals import Goal
from cedm_ray.search.results import UNCONDITIONAL
from cedm_ray.search.space import SearchSpace
from cedm_ray.search.study import Study

space, study, address, holds, levels = sys.argv[1:]


class Held(trainable.StudyTask):
    # The baseline stands still at every level, once: its process goes no further while it lives.
    def _open(self, study, space, held):
        events = super()._open(study, space, held)
        if self._task.name == UNCONDITIONAL:
            return self._held(events, study.images_saved(UNCONDITIONAL))
        return events

    def _held(self, events, began):
        for event in events:
            for level in json.loads(levels):
                place = Path(holds, f"{level}.json")
                if isinstance(event, TrainProgress) and event.images_seen >= level and not place.exists():
                    told = {"pid": os.getpid(), "node": ray.get_runtime_context().get_node_id(), "began": began}
                    part = place.with_suffix(".part")
                    part.write_text(json.dumps(told | {"seen": event.images_seen}))
                    part.rename(place)
                    threading.Event().wait()
            yield event


trainable.StudyTask = Held
# As if they were many: all machines decode them.
decoding.LARGE_IMAGES, decoding.GROUP_IMAGES = 1, 16
next_group, ask = decoding._Run._next, decoding._Run._ask
answered = {}


def next_of_several(run):
    # Nobody is given images before two machines are there to take some: one alone could be done with all of them. The
    # third may find no place, where one core of a machine with two was taken.
    return None if len(run.cores) - len(run._opening) < 2 else next_group(run)


def ask_and_tell(run, call, actor):
    decodes = call in run._calls
    answer = ask(run, call, actor)
    if decodes:
        node = ray.get(actor.__ray_call__.remote(lambda _: ray.get_runtime_context().get_node_id()))
        answered[node] = answered.get(node, 0) + len(answer[0])
        Path(holds, "decoded.json").write_text(json.dumps(answered))
    return answer


decoding._Run._next, decoding._Run._ask = next_of_several, ask_and_tell
space = SearchSpace.model_validate_json(space)
run_study(Study(Path(study)), space, Goal(kind="search"), address=address, show=lambda event: print(event, flush=True))
"""


class Search:
    """A search in a process of its own, whose baseline stands still at every level of images seen, once, until its
    process dies: whoever is to lose a machine in the middle of an interval cannot be over before."""

    def __init__(self, space, study, address, levels):
        self.study, self.holds, self.log = study, study.path.with_suffix(".holds"), study.path.with_suffix(".log")
        self.holds.mkdir()
        arguments = [space.model_dump_json(), str(study.path), address, str(self.holds), json.dumps(levels)]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", CHILD, *arguments], stdout=log, stderr=subprocess.STDOUT, cwd=ROOT
            )

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.process.kill()
        self.process.wait()

    def held_at(self, level, checkpoint):
        """Who stands still there, once the checkpoint before it is whole."""
        place = self.holds / f"{level}.json"
        self._until(lambda: place.exists() and self.study.images_saved(UNCONDITIONAL) == checkpoint)
        return json.loads(place.read_text())

    def ends(self):
        assert self.process.wait(PATIENCE_S) == 0, self._tail()

    def _until(self, true):
        give_up = time.monotonic() + PATIENCE_S
        while not true():
            assert self.process.poll() is None, f"the search ended before that: {self._tail()}"
            assert time.monotonic() < give_up, f"nothing was heard of the search: {self._tail()}"
            threading.Event().wait(0.05)

    def _tail(self):
        return self.log.read_text()[-3000:]


SLOW = {"worker_register_timeout_seconds": 600, "agent_register_timeout_ms": 600_000}
"""Ray gives up a process that takes a minute to start, and starts another: on a busy machine that never ends."""


def ports() -> dict[str, int]:
    """Free ports for the processes that a machine's raylet waits for.

    Without them it reads the ports from files that the processes write, and dies where that takes 15 seconds.
    """
    names = ("metrics_agent_port", "runtime_env_agent_port", "metrics_export_port", "dashboard_agent_listen_port")
    with contextlib.ExitStack() as stack:
        found = [stack.enter_context(socket.socket()) for _ in names]
        for free in found:
            free.bind(("127.0.0.1", 0))
        return dict(zip(names, (free.getsockname()[1] for free in found), strict=True))


def patient(get_node):
    """Ray gives a raylet half a minute to appear."""

    def asked(*arguments):
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                return get_node(*arguments)
            except RuntimeError:
                if time.monotonic() > deadline:
                    raise
                threading.Event().wait(0.5)

    return asked


def announced(start):
    """The raylet reads this one port from a file even where it was told it."""

    def started(node):
        file = Path(node.get_session_dir_path(), f"dashboard_agent_listen_port_{node._node_id}")
        file.write_text(str(node._ray_params.dashboard_agent_listen_port))
        return start(node)

    return started


@contextlib.contextmanager
def machines(cpus):
    """A Ray cluster of one machine, its head, with so many cores; more are added to it."""
    from ray._private import services
    from ray._private.node import Node
    from ray.cluster_utils import Cluster

    folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")
    head = {"include_dashboard": False, "object_store_memory": 80_000_000, "temp_dir": folder, "_system_config": SLOW}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(services, "get_node", patient(services.get_node))
        patch.setattr(Node, "start_ray_processes", announced(Node.start_ray_processes))
        wait = Cluster._wait_for_node
        patch.setattr(Cluster, "_wait_for_node", lambda self, node, timeout=0: wait(self, node, PATIENCE_S))
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": cpus, **head, **ports()})
        try:
            yield cluster
        finally:
            cluster.shutdown()
            shutil.rmtree(folder, ignore_errors=True)


def add(cluster, cpus):
    """One more machine, and its id."""
    node = cluster.add_node(num_cpus=cpus, object_store_memory=80_000_000, **ports())
    return node.node_id, node


CHECKPOINT = 250
"""Images between checkpoints, the most that a lost machine may cost."""


@pytest.fixture(scope="module")
def source(images, tmp_path_factory):
    """300 digits, one file that is refused by its name, and one by its content."""
    folder = shutil.copytree(images, tmp_path_factory.mktemp("source") / "files")
    (folder / "a.gif").write_bytes(b"")
    (folder / "077b.png").write_bytes(b"<html>")
    return folder


@pytest.fixture(scope="module")
def searched(space, source):
    """Trials that need more than one core, and run side by side where there are more, under a rule that does not ask
    who is first. One thread each: several wait for each other for most of the time where the machine has no core to
    itself."""
    changes = {
        "images": {"source": str(source)},
        "candidates": {"explicit": [2, 4]},
        "bound": {"alpha": 0.9, "c_start": 4, "c_limit": 8},
        "rungs": {"rungs_kimg": [0.5, 1], "reduction_factor": 2, "rule": "halving"},
        "checkpoints": {"every_kimg": CHECKPOINT / 1000},
        "resources": {"fit": {"at_once": 2}, "trial": {"cpus": 1.5}},
    }
    return type(space).model_validate(space.model_dump() | changes)


@pytest.fixture(scope="module")
def one(cluster, searched, tmp_path_factory):
    """The study of the same search on one machine."""
    study = Study(tmp_path_factory.mktemp("one") / "study")
    run_study(study, searched, Goal(kind="search"), address=None, show=lambda event: None)
    return study


def decided(study):
    """What was decided on every trial at every rung in the end, and at how many images. Who waited for whom, and the
    order, is a matter of who was quick."""
    return {(one.trial, one.rung): (one.status, one.images_seen) for one in study.decisions()}


def is_running(pid):
    """Whether there is such a process; one that ended and that nobody waited for is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def measured(study):
    return {trial: [report.distance for report in study.reports(trial)] for trial in study.trials()}


def found(study, space):
    return study_result(study, space, open_image_set(study.images))


def test_lost_machines_cost_an_interval_at_most_and_change_nothing(one, searched, tmp_path):
    """Fault 5. The head has room for fits alone. Two machines die in one interval, the second when no other has room
    for a trial: once a third goes on, once another comes."""
    levels = [650, 900]
    study = Study(tmp_path / "study")
    with machines(1) as several:
        alive = dict(add(several, cpus) for cpus in (2, 2))
        there = {several.head_node.node_id, *alive}
        with Search(searched, study, several.address, levels) as search:
            lives = []
            for level in levels:
                lives.append(search.held_at(level, checkpoint=level // CHECKPOINT * CHECKPOINT))
                several.remove_node(alive.pop(lives[-1]["node"]), allow_graceful=False)
                if not alive:
                    alive = dict([add(several, 2)])
            search.ends()
            assert not any(is_running(life["pid"]) for life in lives)
    assert len({life["node"] for life in lives}) == len(levels)
    # Of each life, where it began; the last one is told by its report.
    last = study.reports(UNCONDITIONAL)[1]
    began = [life["began"] for life in lives[1:]] + [last.images_seen - last.trained_images]
    again = [life["seen"] - taken_over for life, taken_over in zip(lives, began, strict=True)]
    assert all(0 < repeated <= CHECKPOINT for repeated in again)
    # It begins elsewhere at once: not after it was given to the same machine again, as long as Ray still counts that.
    assert search.log.read_text().count(f"{UNCONDITIONAL} lost its machine and goes on from") == len(levels)
    assert f"{UNCONDITIONAL} lost its machine and goes on elsewhere" not in search.log.read_text()
    assert_decoded_together(study, one, json.loads((search.holds / "decoded.json").read_text()), there)
    assert "302 images are decoded on 3 machines" in search.log.read_text()
    assert study.failures() == {}
    assert study.fits().keys() >= {"c00002-r0", "c00004-r0"}
    assert decided(study) == decided(one)
    assert {trial for trial, _ in decided(one)} == {UNCONDITIONAL, "c00002", "c00004"}
    for trial, distances in measured(one).items():
        assert measured(study)[trial] == pytest.approx(distances, rel=1e-9)
    assert (found(study, searched).bound, found(study, searched).best) == (
        found(one, searched).bound,
        found(one, searched).best,
    )


def assert_decoded_together(study, alone, decoded, machines):
    """Several of the machines took their share of the images, and the set has the bytes that one process gives it.

    decoded: how many each of them answered.
    """
    assert decoded.keys() <= machines
    # All but the one that was refused by its name; two groups lie with each of two before any is answered.
    assert sum(decoded.values()) == 301
    assert sorted(decoded.values())[-2] >= 16
    for file in ("pixels.npy", "index.parquet"):
        assert (study.images / file).read_bytes() == (alone.images / file).read_bytes()
    manifests = [durable.read_record(one.images / durable.MANIFEST) for one in (study, alone)]
    assert manifests[0] == manifests[1]


# Twenty seconds are what a busy machine may take; here nothing listens any more.
HURRIED = "from cedm_ray.distributed import head; head._LOST_S = 5.0; from cedm_ray.cli import main; main()"


def test_a_lost_head_ends_the_command_with_75_and_the_same_command_goes_on(cluster, searched, tmp_path, run):
    """Fault 6. It goes on with another cluster, which the tests' own is."""
    study = Study(tmp_path / "study")
    source = tmp_path / "space.yaml"
    plain = searched.model_dump(mode="json")
    # Long enough after the first level to be in the middle when the head is lost.
    source.write_text(yaml.safe_dump(plain | {"rungs": plain["rungs"] | {"rungs_kimg": [0.5, 3]}}))
    verb = ["train", str(source), "--study", str(study.path)]
    with machines(2) as lost:
        command = [sys.executable, "-c", HURRIED, *verb, "--address", lost.address]
        driver = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT)
        assert any("goes on at 0.5 kimg" in line for line in driver.stderr)
        lost.head_node.kill_gcs_server()
        lost.head_node.kill_raylet()
        driver.communicate(timeout=PATIENCE_S)
    assert driver.returncode == 75
    assert durable.read_record(study.path / "exit.json")["code"] == 75
    decided = study.decisions()
    assert [decision.status for decision in decided] == ["running"]
    code, _, told = run(*verb)
    assert code == 0, told
    assert study.decisions()[:1] == decided
    assert [decision.status for decision in study.decisions()] == ["running", "completed"]
    assert study.failures() == {}
