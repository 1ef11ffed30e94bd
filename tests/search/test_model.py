"""A model on disk: what it makes later is what was measured when it was trained."""

import numpy as np
import pytest

from cedm_ray import durable
from cedm_ray.diffusion.edm import EDMConfig
from cedm_ray.diffusion.sample import SampleConfig
from cedm_ray.diffusion.unet import UNetConfig
from cedm_ray.errors import ConfigurationError, IntegrityError
from cedm_ray.search import trial as trial_module
from cedm_ray.search.model import EMA_FILE, Meaning, find_model, keep_model, open_model
from cedm_ray.search.results import TrialReport
from cedm_ray.search.trial import run_trial


@pytest.mark.parametrize("num_clusters", [None, 4])
def test_image_of_a_seed_is_the_image_that_was_evaluated_at_the_rung(fresh, tiny_space, monkeypatch, num_clusters):
    evaluated = []
    image_statistics = trial_module.image_statistics

    def keep(batches, detector):
        images = list(batches)
        evaluated.append(np.concatenate(images))
        return image_statistics(images, detector)

    monkeypatch.setattr(trial_module, "image_statistics", keep)
    reports = [e for e in run_trial(fresh, tiny_space, num_clusters, device="cpu") if isinstance(e, TrialReport)]
    assert evaluated[0].shape == (32, 3, 8, 8)
    model = find_model(fresh, reports[-1].trial, "cpu", [].append)
    assert model.images_seen == 512
    assert np.array_equal(np.concatenate(list(model.sample(range(32)))), evaluated[-1])
    # A rung has another model than the one before it, and another seed another image.
    assert not np.array_equal(evaluated[0], evaluated[1])
    assert len(np.unique(evaluated[-1].reshape(32, -1), axis=0)) == 32
    keep_model(durable.newest_checkpoint(fresh.checkpoints(reports[-1].trial)), fresh.best)
    kept = find_model(fresh, None, "cpu", [].append)
    assert kept.meaning == model.meaning
    assert np.array_equal(np.concatenate(list(kept.sample(range(32)))), evaluated[-1])
    # Any seed for itself: the same image up to the rounding of another batch size.
    (one,) = kept.sample([11])
    assert np.abs(one[0].astype(int) - evaluated[-1][11].astype(int)).max() <= 1


def test_a_kept_model_has_the_weights_and_not_the_training_state(finished):
    kept = durable.read_checkpoint(finished.best)
    assert list(kept.files) == [EMA_FILE]
    trial = kept.manifest["trial"]
    assert kept.files[EMA_FILE] == durable.newest_checkpoint(finished.checkpoints(trial)).files[EMA_FILE]
    assert kept.manifest["images_seen"] == 512


def test_classes_given_are_the_conditions_and_drawn_ones_follow_the_counts(finished):
    name = next(name for name in finished.trials() if name != "unconditional")
    model = find_model(finished, name, "cpu", [].append)
    low, high = (np.concatenate(list(model.sample(range(8), classes=[k] * 8))) for k in (0, 1))
    assert not np.array_equal(low, high)
    with pytest.raises(ValueError, match="classes must lie in"):
        list(model.sample([0], classes=[len(model.meaning.class_ids)]))


def test_a_sampler_given_replaces_the_models_own(finished):
    model = find_model(finished, None, "cpu", [].append)
    more = model.meaning.sampling.model_copy(update={"num_steps": 9})
    (own,), (other,) = model.sample([1]), model.sample([1], config=more)
    assert not np.array_equal(own, other)


def test_no_best_model_and_an_unknown_trial_are_configuration_errors(fresh, done):
    with pytest.raises(ConfigurationError, match="has no best model yet") as caught:
        find_model(fresh, None, "cpu", [].append)
    assert caught.value.mend == "let the search finish"
    fresh.begin_trial("c00004")
    with pytest.raises(ConfigurationError, match="has no best model yet") as caught:
        find_model(fresh, None, "cpu", [].append)
    assert caught.value.mend.endswith("name a trial: --trial c00004")
    with pytest.raises(ConfigurationError, match=r"no trained model of 'c00099'; its trials are: .*unconditional"):
        find_model(done, "c00099", "cpu", [].append)


def test_an_earlier_checkpoint_is_named_by_its_thousands_of_images(finished):
    (earlier, newest) = sorted(path.name for path in finished.checkpoints("unconditional").iterdir())
    assert (earlier, newest) == ("000000000384", "000000000512")
    assert find_model(finished, "unconditional@0.384", "cpu", [].append).images_seen == 384
    assert find_model(finished, "unconditional@0.512", "cpu", [].append).images_seen == 512
    with pytest.raises(ConfigurationError, match=r"has checkpoints at 0\.384, 0\.512 kimg and none at 0\.3$"):
        find_model(finished, "unconditional@0.3", "cpu", [].append)
    with pytest.raises(ConfigurationError, match="no trained model of 'c00099'"):
        find_model(finished, "c00099@1", "cpu", [].append)


def test_a_damaged_kept_model_is_an_integrity_error(done):
    path = done.best / EMA_FILE
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(IntegrityError, match=EMA_FILE):
        find_model(done, None, "cpu", [].append)


def test_meaning_goes_around_through_json():
    meaning = Meaning(
        trial="c00009",
        num_clusters=9,
        class_ids=(2, 7),
        counts=(200, 100),
        image_size=8,
        augment_dim=9,
        network=UNetConfig(model_channels=16),
        edm=EDMConfig(),
        sampling=SampleConfig(num_steps=7),
    )
    assert Meaning.from_json(durable.json.loads(durable.canonical_json(meaning.to_json()))) == meaning


def test_an_opened_model_is_ready_to_sample_and_cannot_be_trained(finished):
    model = open_model(durable.read_checkpoint(finished.best), "cpu", finished)
    assert not model.denoiser.training
    assert not any(weight.requires_grad for weight in model.denoiser.parameters())
