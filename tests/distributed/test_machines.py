"""A search on several machines, all of them on this one: what is found does not depend on how many there are, nor on
which of them die on the way (faults 5 and 6).

The search runs in a process of its own, because this one is connected to the tests' own cluster.
"""

import contextlib
import json
import queue
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from cedm_ray import durable
from cedm_ray.search.study import Study

ROOT = Path(__file__).parents[2]
# Whatever happens here takes seconds on a quiet machine, and minutes where a process gets a fraction of a core.
PATIENCE_S = 600.0

CHILD = """
import dataclasses, json, sys
from pathlib import Path
from cedm_ray.distributed.run import run_study
from cedm_ray.search.goals import Goal
from cedm_ray.search.space import SearchSpace
from cedm_ray.search.study import Study

def show(event):
    print(json.dumps({"kind": type(event).__name__} | dataclasses.asdict(event), default=str), flush=True)

space, study, goal, address = sys.argv[1:]
space = SearchSpace.model_validate_json(space)
run_study(Study(Path(study)), space, Goal(**json.loads(goal)), address=address, show=show)
"""


class Search:
    """A search in a process of its own; what it shows can be waited for."""

    def __init__(self, space, study, address, **goal):
        arguments = [space.model_dump_json(), str(study.path), json.dumps({"kind": "search"} | goal), address]
        self.errors = study.path.with_suffix(".log")
        with self.errors.open("w") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-c", CHILD, *arguments], stdout=subprocess.PIPE, stderr=errors, text=True, cwd=ROOT
            )
        self.seen, self._lines = [], queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.process.kill()
        self.process.wait()

    def _read(self):
        with self.process.stdout as lines:
            for line in lines:
                self._lines.put(line)
        self._lines.put(None)

    def _next(self, deadline):
        try:
            return self._lines.get(timeout=max(0.1, deadline - time.monotonic()))
        except queue.Empty:
            raise AssertionError(f"nothing was heard of the search: {self._tail()}") from None

    def until(self, wanted):
        """Read on to the first event of which `wanted` is true."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            line = self._next(deadline)
            assert line is not None, f"the search ended before that: {self._tail()}"
            if line.startswith("{"):
                self.seen.append(json.loads(line))
                if wanted(self.seen[-1]):
                    return self.seen[-1]

    def ends(self, code=0):
        while (line := self._next(time.monotonic() + PATIENCE_S)) is not None:
            if line.startswith("{"):
                self.seen.append(json.loads(line))
        assert self.process.wait(PATIENCE_S) == code, self._tail()

    def _tail(self):
        return self.errors.read_text()[-3000:] + json.dumps(self.seen[-5:])

    def images_seen(self, trial):
        """What a trial said of how far it was, with the places where it began again."""
        return [e["done"] for e in self.seen if e["kind"] == "Progress" and e["task"] == trial and not e["ended"]]


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
    """A Ray cluster of one head with so many cores; more machines are added to it."""
    from ray._private import services
    from ray._private.node import Node
    from ray.cluster_utils import Cluster

    folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")
    head = {"include_dashboard": False, "object_store_memory": 80_000_000, "temp_dir": folder, "_system_config": SLOW}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(services, "get_node", patient(services.get_node))
        patch.setattr(Node, "start_ray_processes", announced(Node.start_ray_processes))
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": cpus, **head, **ports()})
        try:
            yield cluster
        finally:
            cluster.shutdown()
            shutil.rmtree(folder, ignore_errors=True)


def add(cluster, cpus):
    return cluster.add_node(num_cpus=cpus, object_store_memory=80_000_000, **ports())


def trained(least, event):
    return event["kind"] == "Progress" and event["task"] == "unconditional" and event["done"] >= least


@pytest.fixture
def searched(space):
    """A trial takes two cores, which one machine has at a time, so that reports come in one order."""
    changes = {
        "candidates": {"explicit": [2, 3, 4]},
        "bound": {"alpha": 0.9, "c_start": 4, "c_limit": 8},
        "rungs": {"rungs_kimg": [0.5, 1, 1.5], "reduction_factor": 2},
        "checkpoints": {"every_kimg": 0.25},
        "resources": {"fit": {"at_once": 2}, "trial": {"cpus": 2}},
    }
    return type(space).model_validate(space.model_dump() | changes)


def test_a_search_finds_on_three_machines_two_of_which_die_what_it_finds_on_one(searched, tmp_path):
    """Fault 5, twice for one trial: it fails for neither, repeats at most an interval, and nothing else changes."""
    one, three = Study(tmp_path / "one"), Study(tmp_path / "three")
    with machines(2) as cluster, Search(searched, one, cluster.address) as search:
        search.ends()
    with machines(0) as cluster:
        add(cluster, 1)
        busy = add(cluster, 2)
        with Search(searched, three, cluster.address) as search:
            for least in (250, 750):
                search.until(partial(trained, least))
                cluster.remove_node(busy, allow_graceful=False)
                search.until(lambda event: event["kind"] == "Notice" and "lost its" in event["text"])
                # One that came before would go to a trial that waits, and reports would come in another order.
                search.until(lambda event: event["kind"] == "Notice" and "waiting for machines" in event["text"])
                busy = add(cluster, 2)
            search.ends()
    assert three.failures() == {}
    assert three.decisions() == one.decisions()
    assert set(three.fits()) >= {f"c{c:05d}-r0" for c in (2, 3, 4)}
    assert len(one.decisions()) >= 3 + 3
    # 250 images between checkpoints; one that was being written when the machine died does not count.
    seen = search.images_seen("unconditional")
    again = [(before, after) for before, after in pairwise(seen) if after < before]
    assert len(again) <= 2
    assert all(before - after <= 2 * 250 for before, after in again)


def test_a_lost_head_ends_the_command_with_75_and_the_same_command_goes_on(searched, tmp_path):
    """Fault 6."""
    study = Study(tmp_path / "study")
    source = tmp_path / "space.yaml"
    plain = searched.model_dump(mode="json")
    source.write_text(yaml.safe_dump(plain | {"rungs": plain["rungs"] | {"rungs_kimg": [0.5, 1, 100]}}))

    def command(address):
        verb = [sys.executable, "-m", "cedm_ray", "train", str(source), "--study", str(study.path)]
        return [*verb, "--address", address]

    with machines(2) as cluster:
        driver = subprocess.Popen(command(cluster.address), stderr=subprocess.PIPE, text=True, cwd=ROOT)
        assert any("goes on at 0.5 kimg" in line for line in driver.stderr)
        cluster.head_node.kill_gcs_server()
        cluster.head_node.kill_raylet()
        driver.communicate(timeout=PATIENCE_S)
    assert driver.returncode == 75
    assert durable.read_record(study.path / "exit.json")["code"] == 75
    decided = study.decisions()
    with machines(2) as cluster:
        driver = subprocess.Popen(command(cluster.address), stderr=subprocess.PIPE, text=True, cwd=ROOT)
        assert any("goes on at 1 kimg" in line for line in driver.stderr)
        driver.send_signal(signal.SIGTERM)
        driver.communicate(timeout=PATIENCE_S)
    assert study.decisions()[: len(decided)] == decided
    assert study.failures() == {}
