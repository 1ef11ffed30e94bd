"""Several machines, all of them on this one, or one that is lost (fault 6)."""

import contextlib
import json
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
from cedm_ray.data.images_config import ImagesConfig
from cedm_ray.data.importing import import_images
from cedm_ray.search.study import Study

ROOT = Path(__file__).parents[2]
# Whatever happens here takes seconds on a quiet machine, and minutes where a process gets a fraction of a core.
PATIENCE_S = 600.0

IMPORT = """
import json, sys
from pathlib import Path

import ray

from cedm_ray.cli import cli
from cedm_ray.distributed import decoding

source, out, address, told = sys.argv[1:]
decoding.LARGE_IMAGES, decoding.GROUP_IMAGES = 300, 16
next_group, ask = decoding._Run._next, decoding._Run._ask
answered = {}


def next_of_all(run):
    # Nobody is given images before every machine is there to take some: one alone could be done with all of them.
    return None if run._opening else next_group(run)


def ask_and_tell(run, call, actor):
    decodes = call in run._calls
    answer = ask(run, call, actor)
    if decodes:
        node = ray.get(actor.__ray_call__.remote(lambda _: ray.get_runtime_context().get_node_id()))
        answered[node] = answered.get(node, 0) + len(answer[0])
    return answer


decoding._Run._next, decoding._Run._ask = next_of_all, ask_and_tell
cli.main(["images", "import", source, "--size", "8", "--out", out, "--address", address], standalone_mode=False, obj={})
Path(told).write_text(json.dumps(answered))
"""

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


def test_two_machines_decode_a_source_into_the_set_that_one_process_makes(images, tmp_path):
    source = tmp_path / "files"
    shutil.copytree(images, source)
    (source / "a.gif").write_bytes(b"")
    (source / "077b.png").write_bytes(b"<html>")
    with machines(1) as cluster:
        added = cluster.add_node(num_cpus=1, object_store_memory=80_000_000, **ports())
        arguments = [str(source), str(tmp_path / "together"), cluster.address, str(tmp_path / "told.json")]
        command = [sys.executable, "-c", IMPORT, *arguments]
        ended = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=PATIENCE_S)
        nodes = {cluster.head_node.node_id, added.node_id}
    assert ended.returncode == 0, ended.stderr
    assert "302 images are decoded on 2 machines" in ended.stderr
    decoded = json.loads((tmp_path / "told.json").read_text())
    assert decoded.keys() == nodes
    # All but the one that was refused by its name; two groups lie with each machine before any is answered.
    assert sum(decoded.values()) == 301
    assert min(decoded.values()) >= 16
    for _ in import_images(ImagesConfig(source=str(source), size=8), tmp_path / "alone", workers=0):
        pass
    for file in ("pixels.npy", "index.parquet"):
        assert (tmp_path / "alone" / file).read_bytes() == (tmp_path / "together" / file).read_bytes()
    manifests = [durable.read_record(tmp_path / name / durable.MANIFEST) for name in ("alone", "together")]
    assert manifests[0] == manifests[1]
