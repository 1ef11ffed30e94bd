"""Tasks travel as plain values."""

import json
from pathlib import Path

import pytest
import torch

from cedm_ray.distributed.tasks import choose_device, is_nested, read_held, read_task, task_config
from cedm_ray.search.goals import FitTask, TrainTask
from cedm_ray.search.packing import Resources
from cedm_ray.search.space import SearchSpace


@pytest.mark.parametrize(
    "task",
    [
        FitTask(num_clusters=40, repeat=2),
        TrainTask(num_clusters=40),
        TrainTask(num_clusters=None),
        TrainTask(num_clusters=40, seed=2, final=True),
        TrainTask(num_clusters=None, features=True),
        TrainTask(num_clusters=40, proposal=3, changes=(("network.channel_mult", (1, 2)), ("sampling.guidance", 1))),
        FitTask(num_clusters=40, repeat=0, changes=(("clustering.gamma", 0.8),)),
    ],
)
def test_a_task_arrives_as_it_was_sent(space, study, task):
    held = Resources(cpus=4, gpus=2, memory_bytes=2.0**31, workers=2, nodes=("a", "b"))
    sent = json.loads(json.dumps(task_config(study, space, task, held)))
    found_study, found_space, found_task = read_task(sent)
    assert (found_space, found_task, read_held(sent)) == (space, task, held)
    assert found_study.path == study.path.absolute()


def test_a_relative_path_of_weights_arrives_absolute(space, study, tmp_path, monkeypatch):
    """A task does not run in the folder where the command was given."""
    monkeypatch.chdir(tmp_path)
    evaluation = space.evaluation.model_copy(update={"detector": "./detector.pt", "weights": Path("w.pth")})
    changed = space.model_copy(update={"evaluation": evaluation})
    sent = task_config(study, changed, TrainTask(num_clusters=None), Resources(cpus=1, gpus=0))
    assert sent["space"]["evaluation"]["detector"] == str(tmp_path / "detector.pt")
    assert sent["space"]["evaluation"]["weights"] == str(tmp_path / "w.pth")
    assert sent["space"]["features"]["extractor"] == "pixels"
    assert sent["space"]["features"]["weights"] is None


def test_without_a_gpu_everything_runs_on_the_cpu_on_the_cores_that_are_held():
    for cpus, threads in ((3.0, 3), (0.5, 1)):
        assert choose_device(0.0, cpus) == "cpu"
        assert torch.get_num_threads() == threads


def test_several_workers_are_nested_and_one_is_if_the_space_says_so(space):
    def nested(**trial):
        return is_nested(SearchSpace.model_validate(space.model_dump() | {"resources": {"trial": trial}}))

    assert [nested(), nested(workers=2), nested(nested=True)] == [False, True, True]
