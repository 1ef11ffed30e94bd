"""A dry run against the trial that it is a rehearsal of, and against what it must leave alone."""

import dataclasses

import pytest
import torch

from cedm_ray import durable
from cedm_ray.errors import ConfigurationError
from cedm_ray.search import rehearsal
from cedm_ray.search.rehearsal import STEPS, Rehearsal, rehearse
from cedm_ray.search.results import Progress
from cedm_ray.search.space import SearchSpace
from cedm_ray.search.study import Study
from cedm_ray.search.trial import run_trial


def _files(study):
    return {path: path.stat().st_mtime_ns for path in study.path.rglob("*")}


def _changed(space, **sections):
    plain = space.model_dump(mode="json")
    for name, values in sections.items():
        plain[name] |= values
    return SearchSpace.model_validate(plain)


def test_it_tells_what_the_trial_will_be_and_writes_nothing(fresh, tiny_space, monkeypatch):
    monkeypatch.setattr(rehearsal, "CPU_S", 0.5)
    before = _files(fresh)
    *progress, found = rehearse(fresh, tiny_space, 4, device="cpu")
    assert _files(fresh) == before
    assert [step.done for step in progress if isinstance(step, Progress)] == list(range(STEPS + 1))
    assert isinstance(found, Rehearsal)
    assert (found.images, found.image_size, found.device, found.precision) == ("study", 8, "cpu", "float32")
    # The trial's own network, from its first checkpoint.
    condition = found.conditions[0]
    for _ in run_trial(fresh, tiny_space, 4, device="cpu"):
        pass
    checkpoint = durable.newest_checkpoint(fresh.checkpoints("c00004"))
    tensors, _ = durable.unpack_tensors(checkpoint.files["ema.safetensors"], "ema")
    assert condition.parameters == sum(array.size for array in tensors.values())
    assert condition.num_classes == len(checkpoint.manifest["class_ids"])
    assert found.memory_bytes > 4 * 4 * condition.parameters
    assert 1 <= found.measured_batch <= 64
    assert found.hours == pytest.approx(found.budget_kimg * 1000 / found.images_per_s / 3600)


def test_a_study_that_is_not_there_is_rehearsed_on_random_images(tiny_space, tmp_path, monkeypatch):
    monkeypatch.setattr(rehearsal, "CPU_S", 0.5)
    space = _changed(tiny_space, images={"size": 8}, resources={"trial": {"workers": 2}})
    study = Study(tmp_path / "nothing")
    *_, found = rehearse(study, space, 7, device="cpu")
    assert not study.path.exists()
    assert (found.images, found.workers) == ("random", 2)
    # How many of the 7 clusters will be used is not known; the network is counted with all of them.
    (condition,) = found.conditions
    assert (condition.trial, condition.num_classes) == ("c00007", None)
    *_, alone = rehearse(study, space, None, device="cpu")
    assert alone.conditions[0].num_classes == 0
    base = space.network.model_channels
    assert condition.parameters - alone.conditions[0].parameters == base * 7 + base
    assert found.hours == pytest.approx(found.budget_kimg * 1000 / (2 * found.images_per_s) / 3600)


def test_what_cannot_be_rehearsed_says_why(tiny_space, tmp_path):
    study = Study(tmp_path / "nothing")
    with pytest.raises(ConfigurationError, match="size of the images is not known") as caught:
        next(rehearse(study, tiny_space, None, device="cpu"))
    assert "cedm-ray features" in caught.value.mend
    odd = _changed(tiny_space, images={"size": 9}, network={"channel_mult": [1, 2]})
    with pytest.raises(ConfigurationError, match="network: image_size must be a positive multiple of 2"):
        next(rehearse(study, odd, None, device="cpu"))
    split = _changed(tiny_space, images={"size": 8}, resources={"trial": {"workers": 3}})
    with pytest.raises(ConfigurationError, match=r"batch_size 64 is not divisible by resources\.trial\.workers 3"):
        next(rehearse(study, split, None, device="cpu"))


@pytest.mark.parametrize(
    ("step_s", "image_s", "batch", "speed"),
    # A small network, whose steps all take alike; a large one; one that has time for a few images.
    [(0.5, 0.001, 64, 64 / 0.564), (0.0, 3.0, 1, 1 / 3), (0.0, 0.2, 4, 5.0), (0.01, 0.0, 64, 6400.0)],
)
def test_the_speed_told_is_that_of_a_batch_as_far_as_there_is_time_for_one(
    fresh, tiny_space, monkeypatch, step_s, image_s, batch, speed
):
    def timed(space, pixels, condition, size, device, batch_size, steps):
        return ((step * (step_s + image_s * batch_size), None) for step in range(1, steps + 1))

    monkeypatch.setattr(rehearsal, "_timed", timed)
    *_, found = rehearse(fresh, tiny_space, 4, device="cpu")
    assert found.measured_batch == batch
    assert found.images_per_s == pytest.approx(speed)


def test_one_step_that_is_held_up_does_not_make_the_batch_small(fresh, tiny_space, monkeypatch):
    def timed(space, pixels, condition, size, device, batch_size, steps):
        # The second step of every try waits ten seconds for something else.
        return ((0.01 * step + 10 * (step > 1), None) for step in range(1, steps + 1))

    monkeypatch.setattr(rehearsal, "_timed", timed)
    *_, found = rehearse(fresh, tiny_space, 4, device="cpu")
    assert found.measured_batch == 64


@pytest.mark.parametrize(("cpus", "threads"), [(1, 1), (3, 3), (0.5, 1)])
def test_it_computes_on_the_cores_of_a_trial_and_puts_them_back(fresh, tiny_space, monkeypatch, cpus, threads):
    seen = set()

    def timed(space, pixels, condition, size, device, batch_size, steps):
        seen.add(torch.get_num_threads())
        return ((float(step), None) for step in range(1, steps + 1))

    monkeypatch.setattr(rehearsal, "_timed", timed)
    before = torch.get_num_threads()
    try:
        # A number of its own, which the machine's cores do not happen to be.
        torch.set_num_threads(2)
        list(rehearse(fresh, _changed(tiny_space, resources={"trial": {"cpus": cpus}}), 4, device="cpu"))
        assert seen == {threads}
        assert torch.get_num_threads() == 2
        begun = rehearse(fresh, tiny_space, 4, device="cpu")
        next(begun)
        begun.close()
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_a_rehearsal_is_plain_values(fresh, tiny_space, monkeypatch):
    monkeypatch.setattr(rehearsal, "CPU_S", 0.1)
    *_, found = rehearse(fresh, tiny_space, None, device="cpu")
    # The conditions that the study has fitted are listed behind the one that was asked for.
    assert [condition.trial for condition in found.conditions] == ["unconditional", "c00004"]
    assert dataclasses.asdict(found)["conditions"][1]["num_clusters"] == 4
