"""Connecting: wrong addresses are answered within seconds, and an open connection is used and left."""

import os
import socket
import subprocess
import sys

import pytest

from cedm_ray.distributed.session import get, ray_cluster
from cedm_ray.errors import ConfigurationError, InputDataError


@pytest.fixture
def unconnected(monkeypatch):
    """As if the tests' own cluster were not there."""
    monkeypatch.setattr("ray.is_initialized", lambda: False)


@pytest.mark.usefixtures("unconnected")
def test_an_address_where_nothing_answers_is_named():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(ConfigurationError, match=f"nothing answers at {address}"), ray_cluster(address):
        pass


@pytest.mark.usefixtures("unconnected")
@pytest.mark.parametrize("address", ["nonsense", "host:", "host:port"])
def test_an_address_that_is_none_is_refused(address):
    with pytest.raises(ConfigurationError, match="host:port, auto or local"), ray_cluster(address):
        pass


def test_an_open_connection_is_used_and_left(cluster):
    with ray_cluster():
        assert cluster.is_initialized()
    assert cluster.is_initialized()


def test_an_error_of_ours_arrives_with_what_mends_it(cluster):
    @cluster.remote
    def fail():
        raise InputDataError("it is broken", mend="mend it so")

    with pytest.raises(InputDataError, match="it is broken") as caught:
        get(fail.remote())
    assert caught.value.mend == "mend it so"


def test_what_the_user_has_set_for_ray_stays():
    code = "import os, cedm_ray.distributed; print(os.environ['RAY_AUTH_MODE'], os.environ['RAY_USAGE_STATS_ENABLED'])"
    environment = {name: value for name, value in os.environ.items() if name != "RAY_USAGE_STATS_ENABLED"}
    ended = subprocess.run(
        [sys.executable, "-c", code],
        env={**environment, "RAY_AUTH_MODE": "disabled"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert ended.stdout.split() == ["disabled", "0"]


def test_a_cluster_of_one_command_runs_no_process_that_it_does_not_need():
    code = """
import subprocess, ray
from cedm_ray.distributed.session import ray_cluster
with ray_cluster("local"):
    assert ray.get(ray.remote(lambda: 42).remote()) == 42
    session = ray._private.worker._global_node.get_session_dir_path()
    lines = subprocess.run(["ps", "-ww", "-eo", "args"], capture_output=True, text=True, check=True).stdout.splitlines()
    names = ("gcs_server", "raylet", "dashboard.py", "monitor.py", "log_monitor.py")
    print(*(name for name in names if any(f"/{name} " in line and session in line for line in lines)))
"""
    ended = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.split() == ["gcs_server", "raylet"]
