"""What a cluster of one machine says that it holds."""

import os

from cedm_ray.distributed.inventory import cluster_nodes, cluster_resources, gpu_bytes


def test_the_only_machine_holds_all_that_the_cluster_holds(cluster):
    found = cluster_resources()
    assert (found.cpus, found.gpus) == (4, 0)
    # Ray gives most of the machine's memory to tasks.
    assert 2**30 < found.memory_bytes < os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    (node,) = cluster_nodes().nodes
    assert node.name == cluster.get_runtime_context().get_node_id()
    assert (node.cpus, node.gpus, node.memory_bytes) == (4, 0, found.memory_bytes)
    assert gpu_bytes() is None
