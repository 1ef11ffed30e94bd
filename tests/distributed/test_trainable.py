"""StudyTask, stepped by hand as Tune steps it; it needs no cluster for that."""

from pathlib import Path

import pytest
from ray._raylet import GcsClientOptions, GlobalStateAccessor
from ray.core.generated.gcs_pb2 import ActorTableData

from cedm_ray.data.image_set import open_image_set
from cedm_ray.distributed.tasks import process_title, task_config
from cedm_ray.distributed.trainable import StudyTask
from cedm_ray.features.extractors import open_extractor
from cedm_ray.features.store import extract_features, feature_key
from cedm_ray.search.goals import FitTask, TrainTask
from cedm_ray.search.packing import Resources
from cedm_ray.search.prepare import prepare_images, prepare_neighbors
from cedm_ray.watching.event_files import last_steps

HELD = Resources(cpus=1, gpus=0)


def results(task: StudyTask) -> list[dict]:
    found = []
    while not found or not found[-1].get("done"):
        found.append(task.step())
        assert len(found) < 100
    return found


@pytest.fixture
def prepared(space, study, shown):
    """A study with its images, features and neighbors."""
    prepare_images(study, space, shown.append)
    images = open_image_set(study.images)
    extractor = open_extractor("pixels", images)
    key = feature_key(images, extractor)
    for _ in extract_features(images, extractor, study.features(key), batch_size=100):
        pass
    from cedm_ray.features.store import open_features

    prepare_neighbors(study, space, open_features(study.features(key)), key, "cpu", shown.append)
    return study


def test_a_fit_and_then_a_trial_run_in_one_process(prepared, space):
    task = StudyTask(task_config(prepared, space, FitTask(num_clusters=4, repeat=0), HELD))
    assert results(task)[-1]["epoch"] == space.clustering.epochs
    assert prepared.fits()["c00004-r0"].num_clusters == 4
    assert task.reset_config(task_config(prepared, space, TrainTask(num_clusters=4), HELD))
    found = results(task)
    reports = [result for result in found if "rung" in result]
    assert [report["images_seen"] for report in reports] == [500, 1000]
    assert [report["distance"] for report in reports] == [report.distance for report in prepared.reports("c00004")]
    # TensorBoard's axis.
    assert all(result["timesteps_total"] == result["images_seen"] for result in found if "images_seen" in result)
    task.cleanup()
    # What TensorBoard reads of them; a report is told with the pace of the training before it.
    assert last_steps(prepared.tensorboard("c00004-r0"))["temi/loss"] == space.clustering.epochs
    assert last_steps(prepared.tensorboard("c00004"))["rung/distance"] == 1000
    assert all(report["images_per_s"] > 0 for report in reports)


@pytest.mark.parametrize(
    ("task", "said", "shared"),
    [
        (FitTask(num_clusters=50, repeat=0), "temi C=50", "temi"),
        (FitTask(num_clusters=50, repeat=2, lower=True), "temi C=50 lower r2", "temi"),
        (TrainTask(num_clusters=100), "cedm C=100", "cedm C=100"),
        (TrainTask(num_clusters=None), "cedm unconditional", "cedm unconditional"),
    ],
)
def test_an_actor_says_what_it_does(prepared, space, task, said, shared):
    config = task_config(prepared, space, task, HELD)
    assert (config["title"], process_title(config)) == (said, shared)
    actor = StudyTask(config)
    assert repr(actor) == shared
    actor.cleanup()


def test_ray_knows_an_actor_by_what_it_does_and_its_process_by_the_task_at_hand(cluster, prepared, space):
    class Peeking(StudyTask):
        def step(self):
            super().step()
            return Path("/proc/self/cmdline").read_text().strip("\0 ")

    actor = cluster.remote(Peeking).remote(task_config(prepared, space, TrainTask(num_clusters=None), HELD))
    assert cluster.get(actor.step.remote()) == "ray::StudyTask cedm unconditional"
    names = {known.class_name: known.repr_name for known in actors_known_to(cluster)}
    # Of a class that is pickled by value Ray knows the whole path.
    assert [repr_name for name, repr_name in names.items() if name.endswith("Peeking")] == ["cedm unconditional"]
    fit = task_config(prepared, space, FitTask(num_clusters=5, repeat=0), HELD)
    cluster.get(actor.reset_config.remote(fit))
    assert cluster.get(actor.step.remote()) == "ray::StudyTask temi C=5"
    cluster.kill(actor)


def actors_known_to(ray):
    """What the cluster knows of its actors, as the dashboard reads it."""
    options = GcsClientOptions.create(
        ray.get_runtime_context().gcs_address, None, allow_cluster_id_nil=True, fetch_cluster_id_if_nil=False
    )
    accessor = GlobalStateAccessor(options)
    accessor.connect()
    return [ActorTableData.FromString(data) for data in accessor.get_actor_table(None, None)]


def test_an_error_that_would_come_again_is_reported_and_not_raised(prepared, space):
    levels = space.network.model_copy(update={"channel_mult": (1, 1, 1, 1, 1)})
    task = StudyTask(
        task_config(prepared, space.model_copy(update={"network": levels}), TrainTask(num_clusters=None), HELD)
    )
    (result,) = results(task)
    assert "image_size must be" in result["failure"]
    assert result["failure_code"] == 1


def test_workers_that_say_nothing_do_not_keep_the_driver_waiting(prepared, space, monkeypatch):
    """A step ends in time, so that the driver can stop a trial whose workers are busy or gone."""
    monkeypatch.setattr("cedm_ray.distributed.trainable._STEP_S", 0.0)
    task = StudyTask(task_config(prepared, space, TrainTask(num_clusters=None), HELD))
    task._events = iter([None, None, None])
    assert task.step() == {}
