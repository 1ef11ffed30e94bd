"""A trial on features against its definition: rows of unit length, one drawn by each image's seed, never the best."""

import shutil

import numpy as np
import pytest

from cedm_ray import durable
from cedm_ray.data.image_set import open_image_set
from cedm_ray.diffusion.sample import draw_latents_and_conditions, sample
from cedm_ray.errors import ConfigurationError, InputDataError
from cedm_ray.features.store import open_features
from cedm_ray.search.clusterings import neighbors_features
from cedm_ray.search.feature_bank import unit_features
from cedm_ray.search.goals import FitTask, Goal, TrainTask
from cedm_ray.search.model import find_model
from cedm_ray.search.outcome import study_result
from cedm_ray.search.rehearsal import rehearse
from cedm_ray.search.results import FEATURES, UNCONDITIONAL
from cedm_ray.search.sampling import Condition, open_sampler, settle_job
from cedm_ray.search.study import Study
from cedm_ray.search.trial import run_trial


@pytest.fixture(scope="module")
def trained(finished, tiny_space, study_tools, tmp_path_factory):
    """A finished study with a trial on features."""
    study = Study(tmp_path_factory.mktemp("features") / "study")
    shutil.copytree(finished.path, study.path)
    study_tools.drive(study, tiny_space, Goal(kind="trial", features=True))
    return study


def settle(study, space, **wanted):
    return settle_job(study, space, condition=Condition(), show=[].append, **wanted)


def test_rows_have_unit_length_and_a_row_of_zeros_stays_one(prepared, monkeypatch):
    key = neighbors_features(prepared)
    raw = np.array(open_features(prepared.features(key)))
    raw[5] = 0
    monkeypatch.setattr("cedm_ray.search.feature_bank.open_features", lambda folder: raw)
    rows = unit_features(prepared, key)
    assert (rows.dtype, rows.shape) == (np.float32, raw.shape)
    for row in (0, 1, 299):
        length = sum(float(value) ** 2 for value in raw[row]) ** 0.5
        np.testing.assert_allclose(rows[row], raw[row] / length, rtol=1e-6)
    assert not rows[5].any()


def test_features_that_are_gone_are_missed(fresh):
    with pytest.raises(InputDataError, match="are not finished"):
        unit_features(fresh, "0" * 64)


def test_a_trial_trains_on_them_and_its_checkpoint_says_where_they_lie(trained, tiny_space):
    reports = trained.reports(FEATURES)
    assert [report.rung for report in reports] == [0, 1]
    manifest = durable.newest_checkpoint(trained.checkpoints(FEATURES)).manifest
    assert manifest["features_key"] == neighbors_features(trained)
    assert manifest["feature_dim"] == 16
    assert (manifest["num_clusters"], manifest["class_ids"]) == (None, [])
    # The distance of a rung is that of the images which the checkpoint gives again.
    model = find_model(trained, FEATURES, "cpu", [].append)
    assert model.denoiser.feature_dim == 16
    assert FEATURES in trained.trials()
    other = durable.newest_checkpoint(trained.checkpoints(UNCONDITIONAL)).manifest
    assert "features_key" not in other


def test_each_image_draws_its_row_by_its_own_seed(trained):
    model = find_model(trained, FEATURES, "cpu", [].append)
    seeds = [7, 3, 400, 8]
    images = np.concatenate(list(model.sample(seeds)))
    bank = unit_features(trained, neighbors_features(trained))
    # A uniform number of the seed's generator, after the latent, chooses among the training images.
    _, rows = draw_latents_and_conditions(seeds, 8, np.ones(len(bank), dtype=np.int64))
    assert len(set(rows.tolist())) > 1
    settings = {"config": model.meaning.sampling, "image_size": 8, "device": "cpu"}
    (expected,) = sample(model.denoiser, seeds, features=bank[rows.numpy()], **settings)
    assert np.array_equal(images, expected)
    (shifted,) = sample(model.denoiser, seeds, features=bank[(rows.numpy() + 1) % len(bank)], **settings)
    assert not np.array_equal(images, shifted)
    assert np.array_equal(np.concatenate(list(model.sample(seeds[2:]))), images[2:])


def test_a_trial_begun_again_repeats_nothing(trained, tiny_space):
    events = list(run_trial(trained, tiny_space, None, features=True, device="cpu"))
    assert events == trained.reports(FEATURES)


def test_it_is_shown_and_never_the_best(trained, tiny_space, tmp_path):
    study = Study(tmp_path / "study")
    shutil.copytree(trained.path, study.path)
    images = open_image_set(study.images)
    before = study_result(study, tiny_space, images)
    (own,) = [trial for trial in before.trials if trial.is_comparison]
    assert (own.trial, own.num_clusters, own.utilization, own.status) == (FEATURES, None, None, "completed")
    assert before.trials[-1] is own
    assert before.trials[0].is_baseline
    # As if it had been far better than all others.
    path = study.path / "trials" / FEATURES / "reports" / "001.json"
    record = durable.read_record(path)
    path.unlink()
    durable.write_record(path, {**record, "distance": 1e-9})
    decided = next(d for d in study.decisions() if d.trial == FEATURES and d.rung == 1)
    place = study.path / "decisions" / f"{decided.sequence:06d}.json"
    told = durable.read_record(place)
    place.unlink()
    durable.write_record(place, {**told, "reason": "trained to 0.512 kimg: 1e-09"})
    after = study_result(study, tiny_space, images)
    assert after.trial(FEATURES).final.distance == 1e-9
    assert (after.best, after.gain) == (before.best, before.gain)


def test_a_job_samples_it_and_is_refused_what_needs_clusters(trained, tiny_space):
    job = settle(trained, tiny_space, trial=FEATURES)
    (part,) = open_sampler(job, "cpu").generate(range(4))
    assert part.clusters is None
    model = find_model(trained, FEATURES, "cpu", [].append)
    assert np.array_equal(part.images, np.concatenate(list(model.sample(range(4)))))
    best = study_result(trained, tiny_space, open_image_set(trained.images)).best
    for wanted, message in (
        ({"trial": best, "guide": FEATURES, "guidance": 1.0}, "features cannot guide c0"),
        ({"trial": FEATURES, "guide": best, "guidance": 1.0}, "cannot guide features"),
        ({"trial": FEATURES, "guidance": 1.0}, "features was trained without a null label"),
        ({"trial": FEATURES, "min_confidence": 0.5}, "not conditioned on clusters has no head"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            settle(trained, tiny_space, **wanted)


@pytest.mark.parametrize("guide", [UNCONDITIONAL, f"{FEATURES}@0.384"])
def test_it_is_guided_by_a_model_without_condition_or_by_an_earlier_one_of_its_own(trained, tiny_space, guide):
    plain, guided = (
        next(open_sampler(settle(trained, tiny_space, trial=FEATURES, **more), "cpu").generate(range(4))).images
        for more in ({}, {"guide": guide, "guidance": 2.0})
    )
    assert not np.array_equal(plain, guided)


def test_its_rehearsal_is_of_the_same_network(trained, tiny_space, tmp_path, monkeypatch):
    monkeypatch.setattr("cedm_ray.search.rehearsal.CPU_S", 0.1)
    *_, found = rehearse(trained, tiny_space, None, features=True, device="cpu")
    first = found.conditions[0]
    tensors, _ = durable.unpack_tensors(
        durable.newest_checkpoint(trained.checkpoints(FEATURES)).files["ema.safetensors"], "ema"
    )
    assert (first.trial, first.feature_dim, first.num_classes) == (FEATURES, 16, 0)
    assert first.parameters == sum(array.size for array in tensors.values())
    with_size = tiny_space.model_copy(update={"images": tiny_space.images.model_copy(update={"size": 8})})
    with pytest.raises(ConfigurationError, match="has no features yet"):
        next(rehearse(Study(tmp_path / "nothing"), with_size, None, features=True, device="cpu"))


def test_a_study_without_features_is_told_so(fresh, tiny_space):
    fresh.neighbors.unlink()
    with pytest.raises(InputDataError, match="has no features yet"):
        next(run_trial(fresh, tiny_space, None, features=True, device="cpu"))


def test_the_goal_asks_for_the_trial_alone(trained):
    assert Goal(kind="trial", features=True).trial == TrainTask(num_clusters=None, features=True)
    assert TrainTask(num_clusters=None, features=True).name == FEATURES
    assert not (trained.path / "fits" / f"{FEATURES}-r0.json").exists()
    assert FitTask(num_clusters=4, repeat=0).name == "c00004-r0"
    with pytest.raises(ValueError, match="num_clusters must be None for a trial on features, got 4"):
        TrainTask(num_clusters=4, features=True)
