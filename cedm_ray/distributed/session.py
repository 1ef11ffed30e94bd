"""One connection to a Ray cluster: an existing one, or one started on this machine for the length of a command.

Nothing here needs torch, so that Ray can be started while that is being imported (`ahead.py`).
"""

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

import ray
from ray._private import services
from ray._private.node import Node
from ray.exceptions import RayError, RaySystemError, RayTaskError

from cedm_ray.distributed.spares import PRELOADED
from cedm_ray.errors import CedmError, ConfigurationError, TryAgainError

REPEATABLE = {"max_restarts": 2, "max_task_retries": 2}
"""Options of an actor whose answers are functions of what it is asked. One that is lost is started anew, on another
machine where its own is gone, and asked again; after more than two losses Ray gives up."""

_CONNECT_S = 5.0
_AGAIN = "run the same command again: it continues where it stopped"
_OBJECT_STORE_BYTES = 200_000_000
# What starts a process that is not needed, and what it answers where none was started: for the dashboard, no address.
_IDLERS = ((services, "start_api_server", ("", None)), (Node, "start_monitor", None), (Node, "start_log_monitor", None))


@contextlib.contextmanager
def ray_cluster(address: str | None = None) -> Iterator[None]:
    """Be connected to Ray inside the block.

    address: `host:port` of a running cluster, or `auto` for the one on this machine; None = $RAY_ADDRESS where it is
    set (as inside `ray job submit`), else a cluster of this machine's cores and GPUs, which ends with the block. A
    connection that exists already is used and left. Raises ConfigurationError where nothing answers at `address`,
    TryAgainError where the cluster goes away while it is used.
    """
    if ray.is_initialized():
        yield
        return
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    on_sigterm = signal.getsignal(signal.SIGTERM)
    if address == "local":
        try:
            start_ray()
        except OSError as error:
            raise ConfigurationError(
                f"Ray cannot be started on this machine: {error}",
                mend="Ray writes its token to the home folder: make that writable, or set RAY_AUTH_TOKEN_PATH",
            ) from error
    else:
        _check_reachable(address)
        try:
            ray.init(address=address, log_to_driver=False, logging_level="error")
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise ConfigurationError(
                f"cannot join the Ray cluster at {address} with Ray {version('ray')}: {error}",
                mend="use the cluster's Ray version and set RAY_AUTH_MODE and its token as the cluster has them",
            ) from error
    if threading.current_thread() is threading.main_thread():
        # Ray takes the signal for itself and would end the command with another exit code.
        signal.signal(signal.SIGTERM, on_sigterm)
    try:
        yield
    except RaySystemError as error:
        raise TryAgainError(f"the Ray cluster went away: {error}", mend=_AGAIN) from error
    finally:
        ray.shutdown()


def start_ray(**options: Any) -> None:
    """Start Ray on this machine and connect to it. options: more of `ray.init`, as tests and benchmarks need them."""
    with _without_idlers():
        ray.init(
            address="local",
            include_dashboard=False,
            log_to_driver=False,
            logging_level="error",
            # Ray would start a process for every core, most of them for nothing: see spares.py.
            _system_config={"preload_python_modules": list(PRELOADED), "prestart_worker_first_driver": False},
            **{"object_store_memory": _OBJECT_STORE_BYTES} | options,
        )


@contextlib.contextmanager
def _without_idlers() -> Iterator[None]:
    """Inside the block, Ray starts no process that does nothing in a cluster of one command: the dashboard's server,
    which it starts for usage statistics where no dashboard is wanted, the autoscaler, and who passes on logs to the
    driver. They would cost a command 2.5 s, and the machine three processes. Private hooks: a test guards them."""
    kept = [(owner, name, getattr(owner, name)) for owner, name, _ in _IDLERS]
    for owner, name, answer in _IDLERS:
        setattr(owner, name, lambda *arguments, answer=answer, **options: answer)
    try:
        yield
    finally:
        for owner, name, begin in kept:
            setattr(owner, name, begin)


def get(call: Any) -> Any:
    """ray.get, with an error of ours raised as it was raised there: Ray's wrapping of it loses how to mend it."""
    try:
        return ray.get(call)
    except RayTaskError as error:
        if isinstance(error.cause, CedmError):
            raise error.cause from error
        raise
    except RayError as error:
        raise TryAgainError(f"a process or a machine of the cluster was lost: {error}", mend=_AGAIN) from error


def _check_reachable(address: str) -> None:
    """Answer within seconds where Ray itself would retry for a long time."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon or not port.isdigit():
        if address != "auto":
            raise ConfigurationError(f"--address must be host:port, auto or local, got {address!r}")
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_S).close()
    except OSError as error:
        raise ConfigurationError(
            f"nothing answers at {address}: {error.strerror or error}",
            mend="start one with `ray start --head`, or leave --address away to use this machine",
        ) from error
