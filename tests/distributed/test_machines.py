"""A search on a cluster of its own whose head is lost (fault 6)."""

import contextlib
import shutil
import signal
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
from cedm_ray.search.study import Study

ROOT = Path(__file__).parents[2]
# Whatever happens here takes seconds on a quiet machine, and minutes where a process gets a fraction of a core.
PATIENCE_S = 600.0

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
    """A Ray cluster of one machine, its head, with so many cores."""
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
