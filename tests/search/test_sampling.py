"""What can be asked of a study's models, what is refused, and that an image is a function of the job and its seed."""

import dataclasses
import shutil

import numpy as np
import pytest

from cedm_ray import durable
from cedm_ray.errors import ConfigurationError
from cedm_ray.search.model import EMA_FILE, find_model
from cedm_ray.search.results import UNCONDITIONAL, TrialReport
from cedm_ray.search.sampling import Condition, open_sampler, settle_job
from cedm_ray.search.study import FitRecord, Study
from cedm_ray.search.trial import run_trial


def settle(study, space, **wanted):
    wanted = {"trial": None, "condition": Condition()} | wanted
    return settle_job(study, space, show=[].append, **wanted)


def generate(job, seeds, batch_size=32):
    config = job.config.model_copy(update={"batch_size": batch_size})
    parts = list(open_sampler(dataclasses.replace(job, config=config), "cpu").generate(seeds))
    assert all(part.images.dtype == np.uint8 and len(part.images) == len(part.seeds) for part in parts)
    clusters = None if parts[0].clusters is None else np.concatenate([part.clusters for part in parts])
    return np.concatenate([part.images for part in parts]).astype(int), clusters


@pytest.fixture(scope="module")
def with_null_label(prepared, tiny_space, tmp_path_factory):
    """A study whose trial of two used clusters of nine, 2 and 7, was trained with label dropout."""
    study = Study(tmp_path_factory.mktemp("null-label") / "study")
    shutil.copytree(prepared.path, study.path)
    record = FitRecord(num_clusters=9, repeat=0, num_used=2, loss=0.0, seconds=0.0)
    study.write_fit(record, "c00009-r0", {"labels": np.array([7, 2, 2] * 100, dtype=np.int32)}, {"method": "by hand"})
    space = tiny_space.model_copy(update={"network": tiny_space.network.model_copy(update={"label_dropout": 0.2})})
    for num_clusters in (9, None):
        next(e for e in run_trial(study, space, num_clusters, device="cpu") if isinstance(e, TrialReport))
    return study


def test_a_job_samples_what_the_model_itself_does(finished, tiny_space):
    model = find_model(finished, None, "cpu", [].append)
    images, clusters = generate(settle(finished, tiny_space), range(3, 40))
    assert np.array_equal(images, np.concatenate(list(model.sample(range(3, 40)))))
    assert set(clusters) <= set(model.meaning.class_ids)
    again = np.array([model.meaning.class_ids.index(cluster) for cluster in clusters])
    assert np.array_equal(images, np.concatenate(list(model.sample(range(3, 40), classes=again))))
    images, clusters = generate(settle(finished, tiny_space, trial=UNCONDITIONAL), range(3))
    assert clusters is None


def test_clusters_are_drawn_from_q_or_alike_or_as_listed(with_null_label, tiny_space):
    def clusters(text, seeds=range(300)):
        job = settle(with_null_label, tiny_space, trial="c00009", condition=Condition.read(text), steps=2)
        return generate(job, seeds)[1]

    # 200 of the 300 training images are in cluster 2.
    assert np.mean(clusters("q") == 2) == pytest.approx(2 / 3, abs=0.08)
    assert np.mean(clusters("uniform") == 2) == pytest.approx(1 / 2, abs=0.08)
    assert clusters("list:7", range(3)).tolist() == [7, 7, 7]
    # By the seed and not by the position.
    assert clusters("list:7,2,2", range(4, 9)).tolist() == [2, 2, 7, 2, 2]


@pytest.mark.parametrize("text", ["", "p", "list", "list:", "list:3,", "list:a", "list:-1", "uniform:3", "list:³"])
def test_conditions_that_are_none_are_refused(text):
    with pytest.raises(ConfigurationError, match="--condition must be q, uniform or list:3,5,7"):
        Condition.read(text)


@pytest.mark.parametrize("text", ["q", "uniform", "list:3,5,7"])
def test_a_condition_is_written_as_it_is_read(text):
    assert str(Condition.read(text)) == text


def test_an_image_is_the_same_whatever_the_batch_also_with_guidance_and_rejection(with_null_label, tiny_space):
    wanted = {"trial": "c00009", "guidance": 2.0}
    for more in ({}, {"guide": UNCONDITIONAL}):
        job = settle(with_null_label, tiny_space, **wanted, **more)
        together, clusters = generate(job, range(12))
        alone, same = generate(job, range(12), batch_size=5)
        assert clusters.tolist() == same.tolist()
        assert np.abs(together - alone).max() <= 1
        assert not np.array_equal(together, generate(dataclasses.replace(job, guide=None), range(12))[0]) or not more


def test_rejection_keeps_only_what_the_head_is_sure_of_under_the_seeds_own_condition(finished, tiny_space):
    plain = settle(finished, tiny_space)
    sampler = open_sampler(settle(finished, tiny_space, min_confidence=0.01), "cpu")
    everything, drawn_clusters = generate(plain, range(40))
    values = sampler.confidence(everything.astype(np.uint8))
    middle = float(np.sort(values)[19:21].mean())
    job = settle(finished, tiny_space, min_confidence=middle, max_tries=3)
    parts = list(open_sampler(job, "cpu").generate(range(40)))
    seeds = np.concatenate([part.seeds for part in parts])
    images = np.concatenate([part.images for part in parts])
    assert (sampler.confidence(images) >= middle - 1e-4).all()
    assert sum(part.decided for part in parts) == 40
    assert 40 + 20 <= sum(part.drawn for part in parts) <= 40 + 40
    assert np.concatenate([part.clusters for part in parts]).tolist() == drawn_clusters[seeds].tolist()
    # Whoever passed at once has the image that it has without rejection.
    sure = np.flatnonzero(values >= middle)
    assert set(sure) <= set(seeds)
    assert np.abs(images[np.isin(seeds, sure)].astype(int) - everything[sure]).max() <= 1
    # By itself, and in other company.
    one = int(np.setdiff1d(seeds, sure)[0])
    *_, again = open_sampler(job, "cpu").generate([one])
    assert np.abs(again.images[0].astype(int) - images[seeds == one][0].astype(int)).max() <= 1


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"trial": UNCONDITIONAL, "condition": Condition(kind="uniform")}, "--condition must be q, got uniform"),
        ({"condition": Condition.read("list:0,99")}, r"was not trained on a cluster 99: its \d+ used clusters lie"),
        ({"guidance": 1.0}, r"without a null label \(network\.label_dropout was 0\)"),
        ({"trial": UNCONDITIONAL, "guidance": 1.0}, "unconditional has no condition that could guide it"),
        ({"guide": UNCONDITIONAL}, "a guide has no effect without a weight"),
        ({"guide": "c00099", "guidance": 1.0}, "no trained model of 'c00099'"),
        ({"trial": UNCONDITIONAL, "guide": UNCONDITIONAL, "guidance": 1.0}, "a model cannot guide itself"),
        ({"trial": UNCONDITIONAL, "min_confidence": 0.5}, "not conditioned on clusters has no head"),
        ({"min_confidence": 1.5}, r"--min-confidence must lie in \(0, 1\], got 1\.5"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_sampled(finished, tiny_space, wanted, message):
    with pytest.raises(ConfigurationError, match=message):
        settle(finished, tiny_space, **wanted)


def test_a_guide_of_other_clusters_is_refused_and_one_of_the_same_in_another_study_is_not(done, finished, tiny_space):
    names = [name for name in finished.trials() if name != UNCONDITIONAL]
    with pytest.raises(ConfigurationError, match=f"{names[1]} cannot guide {names[0]}: its clusters are others"):
        settle(finished, tiny_space, trial=names[0], guide=names[1], guidance=1.0)
    oldest = min(path.name for path in done.checkpoints(names[0]).iterdir())
    earlier = f"{done.path}:{names[0]}@{int(oldest) / 1000:g}"
    job = settle(finished, tiny_space, trial=names[0], guide=earlier, guidance=1.0)
    assert job.about["guide"]["images_seen"] == int(oldest)
    path = done.fit(f"{names[0]}-r0")
    tensors, about = durable.read_tensors(path)
    durable.write_tensors(path, tensors | {"labels": np.roll(tensors["labels"], 1)}, about)
    with pytest.raises(ConfigurationError, match="its clusters are others"):
        settle(finished, tiny_space, trial=names[0], guide=earlier, guidance=1.0)


def test_about_says_all_that_the_images_follow_from(finished, tiny_space):
    about = settle(finished, tiny_space, steps=7).about
    manifest = durable.read_checkpoint(finished.best).manifest
    assert about["model"]["weights"] == manifest["files"][EMA_FILE]["sha256"]
    assert about["sampling"]["num_steps"] == 7
    assert "batch_size" not in about["sampling"]
    assert about == durable.json.loads(durable.canonical_json(about))
    assert about != settle(finished, tiny_space, steps=7, condition=Condition(kind="uniform")).about


def test_a_trial_is_measured_with_the_guidance_of_its_space(prepared, tiny_space, tmp_path):
    network = tiny_space.network.model_copy(update={"label_dropout": 0.2})
    distances = {}
    for guidance in (0.0, 3.0):
        study = Study(tmp_path / f"{guidance:g}")
        shutil.copytree(prepared.path, study.path)
        sampling = tiny_space.sampling.model_copy(update={"guidance": guidance})
        space = tiny_space.model_copy(update={"network": network, "sampling": sampling})
        for num_clusters in (4, None):
            report = next(e for e in run_trial(study, space, num_clusters, device="cpu") if isinstance(e, TrialReport))
            distances[num_clusters, guidance] = report.distance
        model = find_model(study, "c00004", "cpu", [].append)
        assert model.meaning.sampling.guidance == guidance
        job = settle(study, space, trial="c00004")
        assert np.array_equal(generate(job, range(8))[0], np.concatenate(list(model.sample(range(8)))))
    assert distances[4, 3.0] != distances[4, 0.0]
    # The baseline has no condition, and so nothing that could guide it.
    assert distances[None, 3.0] == distances[None, 0.0]
