"""What the connected Ray cluster holds: cores, GPUs and memory, in all and on each machine."""

import ray
import torch

from cedm_ray.distributed.session import get
from cedm_ray.search.packing import Cluster, Node, Resources


def cluster_resources() -> Resources:
    """What the connected cluster holds in all."""
    found = ray.cluster_resources()
    return Resources(
        cpus=found.get("CPU", 0.0), gpus=found.get("GPU", 0.0), memory_bytes=found.get("memory", float("inf"))
    )


def cluster_nodes(gpu_bytes: int | None = None) -> Cluster:
    """The connected cluster's machines as they are now, in the order of their names. gpu_bytes: of one of its GPUs."""
    found = [
        Node(
            name=node["NodeID"],
            cpus=node["Resources"].get("CPU", 0.0),
            gpus=node["Resources"].get("GPU", 0.0),
            memory_bytes=node["Resources"].get("memory") or float("inf"),
        )
        for node in ray.nodes()
        if node["Alive"]
    ]
    return Cluster(nodes=tuple(sorted(found, key=lambda node: node.name)), gpu_bytes=gpu_bytes)


def gpu_bytes() -> int | None:
    """Memory of one of the cluster's GPUs; None where it has none, or none that torch can use."""
    if not cluster_resources().gpus:
        return None
    return get(ray.remote(num_cpus=0, num_gpus=1)(_own_gpu_bytes).remote())


def _own_gpu_bytes() -> int | None:
    return torch.cuda.get_device_properties(0).total_memory if torch.cuda.is_available() else None
