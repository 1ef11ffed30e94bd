"""What tasks hold, shares of a GPU and of memory that grow with C, and where they go: never more than there is."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cedm_ray.clustering.plan import peak_bytes
from cedm_ray.errors import ConfigurationError
from cedm_ray.search.goals import FitTask, TrainTask
from cedm_ray.search.packing import GIB, Cluster, Node, Resources, Room, needs
from cedm_ray.search.space import SearchSpace


def space_of(**sections):
    return SearchSpace.model_validate({"name": "x", "images": {"source": "x"}, **sections})


def cluster(gpus=0, gpu_gib=None, memory_gib=64, nodes=1):
    gpu_bytes = None if gpu_gib is None else gpu_gib * GIB
    each = {"cpus": 64, "gpus": gpus, "memory_bytes": memory_gib * GIB}
    return Cluster(nodes=tuple(Node(name=f"n{index}", **each) for index in range(nodes)), gpu_bytes=gpu_bytes)


def room(**nodes):
    """Room on empty machines: name=(cpus, gpus)."""
    return Room(Cluster(nodes=tuple(Node(name=name, cpus=held[0], gpus=held[1]) for name, held in nodes.items())))


def fit(num_clusters):
    return FitTask(num_clusters=num_clusters, repeat=0)


def filled(room, wanted, most=1000, beside=None):
    """The places that tasks get which come one after another, until none fits."""
    places = []
    while len(places) < most and (nodes := room.place(wanted, beside=beside)) is not None:
        room.take(wanted.on(nodes))
        places.append(nodes[0] if len(set(nodes)) == 1 else nodes)
    return places


@pytest.mark.parametrize(
    ("have", "want", "count"),
    [
        ((8, 0), (1, 0), 8),
        ((8, 0), (3, 0), 2),
        ((8, 1), (1, 0.25), 4),
        ((2, 1), (1, 0.25), 2),
        ((8, 0), (1, 1), 0),
        ((0.5, 0), (1, 0), 0),
        ((1, 0), (0.1, 0), 10),
        ((8, 2), (1, 0.4), 4),
        ((8, 2), (1, 0.6), 2),
        ((8, 3), (1, 2), 1),
    ],
)
def test_room_is_the_scarcer_of_cores_and_gpus_and_no_task_lies_on_two_gpus_that_asks_for_a_share(have, want, count):
    """The counts are Ray's (design/ray.md, section 9, and what the test on a real cluster finds)."""
    wanted = Resources(cpus=want[0], gpus=want[1])
    assert room(n=have).count(wanted) == count
    assert len(filled(room(n=have), wanted)) == count


@pytest.mark.parametrize("share", [0.05, 1 / 11, 1 / 9, 0.1, 0.25, 0.3, 1 / 3])
def test_a_gpu_is_shared_out_whole_whatever_the_rounding_of_shares(share):
    assert len(filled(room(n=(100, 1)), Resources(cpus=0.01, gpus=share))) == int(1 / share + 1e-6)


def test_memory_counts_like_cores_and_gpus():
    free = Room(Cluster(nodes=(Node(name="n", cpus=8, memory_bytes=5.0 * GIB),)))
    want = Resources(cpus=1, gpus=0, memory_bytes=2.0 * GIB)
    assert free.count(want) == 2
    assert len(filled(free, want)) == 2


def test_what_no_machine_holds_has_no_place_though_the_cluster_has_enough_of_all():
    assert room(a=(4, 0), b=(4, 0)).place(Resources(cpus=6, gpus=0)) is None
    assert room(a=(4, 1), b=(4, 1)).place(Resources(cpus=1, gpus=2)) is None


def test_a_trial_lies_whole_on_one_machine_and_waits_for_it():
    trial = Resources(cpus=2, gpus=2, workers=2)
    free = room(a=(8, 3), b=(8, 3))
    assert free.place(trial) == ("a", "a")
    assert filled(free, trial) == ["a", "b"]
    # A GPU is free on each, and the trial is not split over them.
    assert free.place(trial) is None
    assert free.place(Resources(cpus=1, gpus=1)) == ("a",)


def test_only_a_trial_that_no_machine_holds_is_spread_over_as_few_as_hold_it():
    trial = Resources(cpus=6, gpus=6, workers=6)
    assert room(a=(8, 2), b=(8, 4), c=(8, 4)).place(trial) == ("b", "b", "b", "b", "c", "c")
    assert room(a=(8, 2), b=(8, 2)).place(trial) is None
    busy = room(a=(8, 4), b=(8, 4))
    busy.take(Resources(cpus=1, gpus=3, nodes=("a",)))
    assert busy.place(trial) is None


def test_fits_fill_one_gpu_after_another_and_break_no_trials_place():
    """Where Ray puts them 3, 3 and 4 on three machines, and no trial of two GPUs fits any more (design/ray.md, 0.8)."""
    fit_, trial = Resources(cpus=0.1, gpus=0.25), Resources(cpus=2, gpus=2, workers=2)
    free = room(a=(8, 2), b=(8, 2), c=(8, 2))
    assert filled(free, fit_, most=10, beside=trial) == ["a"] * 8 + ["b"] * 2
    assert free.count(trial) == 1
    # On a machine with a GPU to spare they cost no trial its place.
    assert filled(room(a=(8, 2), b=(8, 3)), fit_, most=4, beside=trial) == ["b"] * 4


def test_a_machine_that_is_gone_takes_with_it_what_lay_there():
    free = room(a=(8, 1))
    free.take(Resources(cpus=8, gpus=1, nodes=("gone",)))
    assert free.place(Resources(cpus=8, gpus=1)) == ("a",)


@settings(max_examples=200, deadline=None)
@given(
    nodes=st.lists(st.tuples(st.integers(0, 8), st.integers(0, 4)), min_size=1, max_size=4),
    tasks=st.lists(
        st.tuples(st.sampled_from([0.25, 0.3, 0.4, 0.5, 1]), st.sampled_from([0, 0.25, 0.4, 1, 2]), st.integers(1, 4)),
        max_size=12,
    ),
)
def test_whatever_comes_no_machine_and_no_gpu_is_given_out_twice(nodes, tasks):
    """Against a ledger that knows nothing of best places: every worker on one machine, every share on one GPU."""
    machines = {f"n{index}": held for index, held in enumerate(nodes)}
    free, cpus, shares = room(**machines), Counter(), {name: [] for name in machines}
    for each_cpus, each_gpus, workers in tasks:
        if workers > 1:
            each_gpus = float(int(each_gpus))
        wanted = Resources(cpus=each_cpus * workers, gpus=each_gpus * workers, workers=workers)
        places = free.place(wanted)
        assert (places is not None) == (free.count(wanted, 1) == 1)
        if places is None:
            continue
        assert len(places) == workers
        free.take(wanted.on(places))
        for name in places:
            cpus[name] += each_cpus
            shares[name].append(each_gpus)
    for name, (have_cpus, have_gpus) in machines.items():
        assert cpus[name] <= have_cpus + 1e-9
        # What is left for whole GPUs holds the shares, packed as Ray does.
        bins = [1.0] * have_gpus
        for share in shares[name]:
            fitting = [index for index, left in enumerate(bins) if left >= min(share, 1) - 1e-9]
            assert len(fitting) >= max(1, share) or share == 0
            for _ in range(int(share) if share >= 1 else int(share > 0)):
                index = min((i for i, left in enumerate(bins) if left >= min(share, 1) - 1e-9), key=bins.__getitem__)
                bins[index] -= min(share, 1)


def test_what_tasks_hold_by_default_and_when_told():
    trial, space = TrainTask(num_clusters=2), space_of()
    assert needs(space, fit(2), cluster()) == Resources(cpus=1, gpus=0)
    assert needs(space, fit(2), cluster(gpus=2)) == Resources(cpus=1, gpus=0.25)
    assert needs(space, trial, cluster()) == Resources(cpus=1, gpus=0)
    assert needs(space, trial, cluster(gpus=2)) == Resources(cpus=1, gpus=1)
    space = space_of(resources={"fit": {"cpus": 2, "gpus": 0.5}, "trial": {"workers": 4, "cpus": 3, "gpus": 1}})
    assert needs(space, fit(2), cluster(gpus=8)) == Resources(cpus=2, gpus=0.5)
    assert needs(space, trial, cluster(gpus=8)) == Resources(cpus=12, gpus=4, workers=4)
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
    held = needs(space_of(), fit(10_000), cluster(memory_gib=3, nodes=7), SHAPE)
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
