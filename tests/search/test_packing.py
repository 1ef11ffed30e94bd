"""What tasks hold: shares of a GPU and of memory that grow with C, and never more than there is."""

import pytest

from cedm_ray.clustering.plan import peak_bytes
from cedm_ray.errors import ConfigurationError
from cedm_ray.search.agenda import FitTask, TrainTask
from cedm_ray.search.packing import GIB, Cluster, Resources, needs
from cedm_ray.search.space import SearchSpace


def space_of(**sections):
    return SearchSpace.model_validate({"name": "x", "images": {"source": "x"}, **sections})


def cluster(gpus=0, gpu_gib=None, memory_gib=64, node_gib=64):
    total = Resources(cpus=64, gpus=gpus, memory_bytes=memory_gib * GIB)
    gpu_bytes = None if gpu_gib is None else gpu_gib * GIB
    return Cluster(total=total, node_memory_bytes=node_gib * GIB, gpu_bytes=gpu_bytes)


def fit(num_clusters):
    return FitTask(num_clusters=num_clusters, repeat=0)


@pytest.mark.parametrize(
    ("have", "want", "count"),
    [
        ((8, 0), (1, 0), 8),
        ((8, 0), (3, 0), 2),
        ((8, 1), (1, 0.25), 4),
        ((2, 1), (1, 0.25), 2),
        ((8, 0), (1, 1), 0),
        ((0.5, 0), (1, 0), 0),
        ((-1, 0), (1, 0), 0),
        ((1, 0), (0.1, 0), 10),
    ],
)
def test_room_is_the_scarcer_of_cores_and_gpus(have, want, count):
    assert Resources(cpus=have[0], gpus=have[1]).room_for(Resources(cpus=want[0], gpus=want[1])) == count


@pytest.mark.parametrize("share", [0.05, 1 / 11, 1 / 9, 0.1, 0.25, 0.3, 1 / 3])
def test_a_gpu_is_shared_out_whole_whatever_the_rounding_of_shares(share):
    want, free, count = Resources(cpus=0.01, gpus=share), Resources(cpus=100, gpus=1), 0
    while free.room_for(want):
        free, count = free - want, count + 1
    assert count == int(1 / share + 1e-6)


def test_memory_counts_like_cores_and_gpus():
    free = Resources(cpus=8, gpus=0, memory_bytes=5.0 * GIB)
    want = Resources(cpus=1, gpus=0, memory_bytes=2.0 * GIB)
    assert free.room_for(want) == 2
    assert (free - want).memory_bytes == 3.0 * GIB


def test_what_tasks_hold_by_default_and_when_told():
    trial, space = TrainTask(num_clusters=2), space_of()
    assert needs(space, fit(2), cluster()) == Resources(cpus=1, gpus=0)
    assert needs(space, fit(2), cluster(gpus=2)) == Resources(cpus=1, gpus=0.25)
    assert needs(space, trial, cluster()) == Resources(cpus=1, gpus=0)
    assert needs(space, trial, cluster(gpus=2)) == Resources(cpus=1, gpus=1)
    space = space_of(resources={"fit": {"cpus": 2, "gpus": 0.5}, "trial": {"workers": 4, "cpus": 3, "gpus": 1}})
    assert needs(space, fit(2), cluster(gpus=8)) == Resources(cpus=2, gpus=0.5)
    assert needs(space, trial, cluster(gpus=8)) == Resources(cpus=12, gpus=4)
    # A zero that was asked for is not "the default".
    assert needs(space_of(resources={"trial": {"gpus": 0}}), trial, cluster(gpus=8)).gpus == 0


SHAPE = (50_000, 768)


@pytest.mark.parametrize("num_clusters", [100, 1600, 10_000])
def test_a_fit_on_a_cpu_holds_its_predicted_memory_in_few_sizes(num_clusters):
    space = space_of()
    held = needs(space, fit(num_clusters), cluster(), SHAPE)
    predicted = peak_bytes(*SHAPE, num_clusters, space.clustering, device_type="cpu")
    assert predicted < held.memory_bytes < 2 * predicted + 2 * GIB
    assert (held.memory_bytes / GIB).is_integer()
    assert int(held.memory_bytes / GIB).bit_count() == 1
    assert held.gpus == 0


def test_a_fit_that_needs_more_memory_than_there_is_takes_all_of_it():
    held = needs(space_of(), fit(10_000), cluster(memory_gib=3), SHAPE)
    assert held.memory_bytes == 3 * GIB
    # Of several machines, the largest: no task lies on two.
    held = needs(space_of(), fit(10_000), cluster(memory_gib=22, node_gib=3), SHAPE)
    assert held.memory_bytes == 3 * GIB


def test_a_memory_budget_that_is_too_small_is_the_spaces_fault():
    space = space_of(clustering={"memory_budget_gib": 1e-6})
    with pytest.raises(ConfigurationError, match="memory_budget_gib must be at least"):
        needs(space, fit(100), cluster(), SHAPE)


def test_the_share_of_a_gpu_grows_with_c_in_quarters_unless_the_space_says_it():
    space, wide = space_of(), (1_000_000, 768)
    predicted = peak_bytes(*wide, 100, space.clustering, device_type="cuda") / GIB
    assert needs(space, fit(100), cluster(gpus=1, gpu_gib=8 * predicted), wide).gpus == 0.25
    assert needs(space, fit(100), cluster(gpus=1, gpu_gib=2.5 * predicted), wide).gpus == 0.5
    assert needs(space, fit(100), cluster(gpus=1, gpu_gib=0.5 * predicted), wide).gpus == 1
    assert needs(space, fit(100), cluster(gpus=1), wide).gpus == 0.25
    told = space_of(resources={"fit": {"gpus": 0.1}})
    assert needs(told, fit(100), cluster(gpus=1, gpu_gib=0.5 * predicted), wide).gpus == 0.1
