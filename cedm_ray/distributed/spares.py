"""Processes that wait for a task: started before one needs them, so that no GPU waits for Python, Ray and torch.

Ray starts a process when a task is to begin, which takes seconds, and gives those that never had a task to whichever
comes next. Its machines can be asked which processes they have, and to start some ahead, by calls that it has no Python
functions for: private hooks. Ray's minor version is pinned, and a test guards them. Where a call fails, nothing is lost
but those seconds.
"""

import contextlib
import threading
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
_LOOK_S, _ANSWER_S = 1.0, 5.0


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
        machines: dict[str, Any] = {}
        while True:
            for node, count in self.wanted.items():
                with contextlib.suppress(LookupError, grpc.RpcError):
                    if node not in machines:
                        machines[node] = machine_of(node)
                    # One that was started a second ago is known by now.
                    missing = min(count, MOST) - len(spare_pids(machines[node], job))
                    if missing > 0:
                        _start(machines[node], job, environment, missing)
            if end.wait(_LOOK_S):
                return


def machine_of(node: str) -> Any:
    """Where to ask the machine of that id. Raises LookupError where it is gone."""
    found = {one["NodeID"]: one for one in ray.nodes() if one["Alive"]}[node]
    return NodeManagerServiceStub(init_grpc_channel(f"{found['NodeManagerAddress']}:{found['NodeManagerPort']}"))


def spare_pids(machine: Any, job: bytes) -> set[int]:
    """The processes of a machine that wait for a task of the job. Raises grpc.RpcError where it does not answer."""
    found = machine.GetNodeStats(GetNodeStatsRequest(), timeout=_ANSWER_S).core_workers_stats
    waiting = (one for one in found if one.worker_type == WORKER and one.job_id == job and not one.num_running_tasks)
    # An id of ones alone is none.
    return {one.pid for one in waiting if not one.actor_id.strip(b"\xff")}


def _start(machine: Any, job: bytes, environment: str, count: int) -> None:
    """Have a machine start processes for the job's tasks; answered before they have started."""
    request = PrestartWorkersRequest(language=PYTHON, job_id=job, keep_alive_duration_secs=_KEEP_S, num_workers=count)
    # Only a process that was started in the same environment is given to the driver's tasks.
    request.runtime_env_info.serialized_runtime_env = environment
    machine.PrestartWorkers(request, timeout=_ANSWER_S)
