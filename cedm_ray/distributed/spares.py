"""Processes that wait for a task: started before one needs them, so that no GPU waits for Python, Ray and torch.

Ray starts a process when a task is to begin, which takes seconds, and gives those that never had a task to whichever
comes next. Its machines can be asked which processes they have, and to start some ahead, by calls that it has no Python
functions for: private hooks. Ray's minor version is pinned, and a test guards them. Where a call fails, nothing is lost
but those seconds.
"""

import contextlib
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

import grpc
import ray
from ray._private.grpc_utils import init_grpc_channel
from ray.core.generated.common_pb2 import PYTHON, WORKER
from ray.core.generated.node_manager_pb2 import GetNodeStatsRequest, PrestartWorkersRequest
from ray.core.generated.node_manager_pb2_grpc import NodeManagerServiceStub

PRELOADED = ("cedm_ray.distributed.trainable",)
"""What every process of a cluster that we start imports before it has a task, and torch with it."""
MOST = 8
"""Spare processes on one machine at the most: each holds some 0.4 GB of memory once torch is imported."""
# A trial of hours may be what they wait for. They end with the driver in any case.
_KEEP_S = 7 * 86_400
_LOOK_S, _ANSWER_S, _START_S = 1.0, 5.0, 30.0


class Spares:
    """Keeps as many spare processes on each machine as are wanted there.

    wanted: how many, by the machine's id; it is looked at once a second.
    """

    def __init__(self, wanted: Mapping[str, int]) -> None:
        self.wanted = wanted

    @contextlib.contextmanager
    def kept(self) -> Iterator["Spares"]:
        """Inside the block they are kept, by a thread: a machine that does not answer holds up nothing."""
        context = ray.get_runtime_context()
        job, environment = bytes.fromhex(context.get_job_id()), context.get_runtime_env_string()
        end = threading.Event()
        thread = threading.Thread(target=self._keep, args=(job, environment, end), name="spares", daemon=True)
        thread.start()
        try:
            yield self
        finally:
            end.set()
            thread.join(_ANSWER_S)

    def _keep(self, job: bytes, environment: str, end: threading.Event) -> None:
        machines: dict[str, _Machine] = {}
        while True:
            for node, count in self.wanted.items():
                with contextlib.suppress(LookupError, grpc.RpcError):
                    if node not in machines:
                        machines[node] = _Machine(node, job)
                    machines[node].keep(min(count, MOST), environment)
            if end.wait(_LOOK_S):
                return


class _Machine:
    """One machine, and how many processes it was asked for that it has not told of yet: on a slow one it takes seconds
    until a process says that it is there. Raises LookupError where the machine is gone."""

    def __init__(self, node: str, job: bytes) -> None:
        self._machine, self._job = machine_of(node), job
        self._known: set[int] = set()
        self._coming, self._until = 0, 0.0

    def keep(self, count: int, environment: str) -> None:
        """Have it start what is missing to `count` spare processes. Raises grpc.RpcError where it does not answer."""
        found = processes(self._machine, self._job)
        arrived = len(found.keys() - self._known)
        self._known.update(found)
        # One that never says so has failed to start.
        self._coming = max(0, self._coming - arrived) if time.monotonic() < self._until else 0
        missing = count - sum(found.values()) - self._coming
        if missing > 0:
            _start(self._machine, self._job, environment, missing)
            self._coming, self._until = self._coming + missing, time.monotonic() + _START_S


def machine_of(node: str) -> Any:
    """Where to ask the machine of that id. Raises LookupError where it is gone."""
    found = {one["NodeID"]: one for one in ray.nodes() if one["Alive"]}[node]
    return NodeManagerServiceStub(init_grpc_channel(f"{found['NodeManagerAddress']}:{found['NodeManagerPort']}"))


def processes(machine: Any, job: bytes) -> dict[int, bool]:
    """The processes of a machine for tasks of the job, by their pid, and whether each waits for one. Raises
    grpc.RpcError where the machine does not answer."""
    found = machine.GetNodeStats(GetNodeStatsRequest(), timeout=_ANSWER_S).core_workers_stats
    # An id of ones alone is none.
    return {
        one.pid: not one.num_running_tasks and not one.actor_id.strip(b"\xff")
        for one in found
        if one.worker_type == WORKER and one.job_id == job
    }


def _start(machine: Any, job: bytes, environment: str, count: int) -> None:
    """Have a machine start processes for the job's tasks; answered before they have started."""
    request = PrestartWorkersRequest(language=PYTHON, job_id=job, keep_alive_duration_secs=_KEEP_S, num_workers=count)
    # Only a process that was started in the same environment is given to the driver's tasks.
    request.runtime_env_info.serialized_runtime_env = environment
    machine.PrestartWorkers(request, timeout=_ANSWER_S)
