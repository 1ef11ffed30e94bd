"""Confidence against the clustering's own assignments, and rejection against trying one seed after the other."""

import json

import numpy as np
import pytest
import torch

from cedm_ray import durable
from cedm_ray.data.image_set import open_image_set
from cedm_ray.errors import ConfigurationError, IntegrityError
from cedm_ray.search.confidence import candidate_seed, confident_images, open_confidence, training_confidence
from cedm_ray.search.fit import run_fit
from cedm_ray.search.goals import FitTask
from cedm_ray.search.study import FitRecord


@pytest.mark.parametrize("norm", ["standardize", "l2", "none"])
def test_the_surest_cluster_of_a_training_image_is_its_own(fresh, tiny_space, study_tools, norm):
    clustering = tiny_space.clustering.model_copy(update={"feature_norm": norm})
    space = tiny_space.model_copy(update={"clustering": clustering})
    # Another C than the one that is fitted already.
    study_tools.exhaust(run_fit(fresh, space, FitTask(num_clusters=6, repeat=0), device="cpu"))
    labels = durable.read_tensors(fresh.fit("c00006-r0"))[0]["labels"]
    confidence = open_confidence(fresh, space, 6, "cpu")
    probabilities = confidence.probabilities(open_image_set(fresh.images).pixels)
    assert probabilities.shape == (300, 6)
    # The stored features went through shards of another size, which rounds differently.
    assert np.mean(probabilities.argmax(axis=1) == labels) > 0.99
    assert probabilities.sum(axis=1) == pytest.approx(np.ones(300), abs=1e-5)
    assert training_confidence(fresh, confidence) == pytest.approx(probabilities.max(axis=1), abs=1e-4)


def test_confidence_is_the_largest_softmax_of_the_head_by_hand(finished, tiny_space):
    tensors, about = durable.read_tensors(finished.fit("c00004-r0"))
    head = {name[5:]: torch.from_numpy(array).double() for name, array in tensors.items() if name.startswith("head.")}
    confidence = open_confidence(finished, tiny_space, 4, "cpu")
    images = open_image_set(finished.images).pixels[:20]
    x = confidence.extractor(torch.from_numpy(np.array(images))).double()
    x = (x - head["feature_mean"]) / head["feature_scale"]
    hidden = torch.nn.functional.gelu(x @ head["weight_1"][0] + head["bias_1"][0])
    unit = torch.nn.functional.normalize(hidden @ head["weight_2"][0] + head["bias_2"][0], dim=1)
    prototypes = torch.nn.functional.normalize(head["prototypes"][0], dim=1) * head["gain"][0][:, None]
    expected = (unit @ prototypes.T / about["config"]["teacher_temperature"]).softmax(dim=1).amax(dim=1)
    assert confidence(images) == pytest.approx(expected.numpy(), abs=1e-5)


def test_what_has_no_head_is_refused(fresh, tiny_space):
    with pytest.raises(ConfigurationError, match="not conditioned on clusters has no head"):
        open_confidence(fresh, tiny_space, None, "cpu")
    with pytest.raises(ConfigurationError, match="no clustering with C = 9"):
        open_confidence(fresh, tiny_space, 9, "cpu")
    record = FitRecord(num_clusters=9, repeat=0, num_used=2, loss=0.0, seconds=0.0)
    fresh.write_fit(record, "c00009-r0", {"labels": np.zeros(300, dtype=np.int32)}, {"method": "kmeans"})
    with pytest.raises(ConfigurationError, match="C = 9 has no head"):
        open_confidence(fresh, tiny_space, 9, "cpu")
    features = tiny_space.features.model_copy(update={"pixel_components": 8})
    with pytest.raises(IntegrityError, match="not what the clusters were fitted on"):
        open_confidence(fresh, tiny_space.model_copy(update={"features": features}), 4, "cpu")


def image_of(seed, condition):
    """A stand-in for the sampler: the image says its seed and its condition."""
    return np.frombuffer(int(seed).to_bytes(8, "little") + bytes([condition] * 4), dtype=np.uint8).reshape(3, 2, 2)


def sure_of(images):
    """A confidence that follows from the image and is uniform over seeds."""
    values = [np.random.default_rng(list(image.ravel())).random() for image in images]
    return np.array(values, dtype=np.float32)


def reject(seeds, batch_size, minimum=0.7, max_tries=3):
    conditions = [seed % 5 for seed in seeds]

    def generate(candidates, positions):
        assert 0 < len(candidates) <= batch_size
        return np.stack([image_of(c, conditions[p]) for c, p in zip(candidates, positions, strict=True)])

    said = list(confident_images(seeds, generate, sure_of, minimum=minimum, max_tries=max_tries, batch_size=batch_size))
    assert sum(kept.seeds for kept in said) == len(seeds)
    return (
        np.concatenate([kept.positions for kept in said]).tolist(),
        np.concatenate([kept.images for kept in said]),
        np.concatenate([kept.confidence for kept in said]),
        sum(kept.drawn for kept in said),
    )


def one_after_the_other(seeds, minimum, max_tries):
    positions, images, drawn = [], [], 0
    for position, seed in enumerate(seeds):
        for attempt in range(max_tries):
            image = image_of(candidate_seed(seed, attempt), seed % 5)
            drawn += 1
            if sure_of([image])[0] >= minimum:
                positions.append(position)
                images.append(image)
                break
    return positions, np.stack(images), drawn


@pytest.mark.parametrize("batch_size", [1, 7, 16, 1000])
@pytest.mark.parametrize("max_tries", [1, 3, 50])
def test_rejection_is_what_trying_one_seed_after_the_other_gives(batch_size, max_tries):
    seeds = list(range(100, 200))
    positions, images, confidence, drawn = reject(seeds, batch_size, max_tries=max_tries)
    expected_positions, expected_images, expected_drawn = one_after_the_other(seeds, 0.7, max_tries)
    assert positions == expected_positions
    assert np.array_equal(images, expected_images)
    assert confidence.min() >= 0.7
    assert drawn == expected_drawn
    # Of so many tries with a chance of 0.3 each a seed has none with a probability of 0.7^tries.
    assert len(positions) / 100 == pytest.approx(1 - 0.7**max_tries, abs=0.15)


def test_rejection_keeps_the_condition_of_the_seed():
    positions, images, _, _ = reject(list(range(50)), 8, max_tries=20)
    assert [image[2, 0, 0] for image in images] == [position % 5 for position in positions]


def test_candidates_differ_and_are_seeds():
    found = {candidate_seed(seed, attempt) for seed in range(100) for attempt in range(10)}
    assert len(found) == 1000
    assert all(0 <= seed < 2**32 for seed in found)
    assert candidate_seed(2**32 - 1, 0) == 2**32 - 1
    # Written down, so that a seed's image stays the same in later versions.
    assert json.dumps([candidate_seed(7, attempt) for attempt in range(3)]) == "[7, 3618983171, 3831650445]"


def test_only_a_few_batches_of_seeds_are_held_at_once():
    begun = []

    def generate(candidates, positions):
        begun.append(max(positions))
        return np.zeros((len(candidates), 3, 2, 2), dtype=np.uint8)

    def never_the_first(images):
        return np.array([0.0 if len(begun) < 30 else 1.0] * len(images), dtype=np.float32)

    said = confident_images(range(1000), generate, never_the_first, minimum=0.5, max_tries=100, batch_size=10)
    assert sum(len(kept.positions) for kept in said) == 1000
    assert max(begun[:30]) < 40


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"minimum": 0.0}, r"minimum must lie in \(0, 1\], got 0"),
        ({"minimum": 1.5}, r"minimum must lie in \(0, 1\], got 1\.5"),
        ({"max_tries": 0}, "max_tries must be at least 1, got 0"),
    ],
)
def test_bounds_are_checked(keywords, message):
    with pytest.raises(ValueError, match=message):
        reject([1], 1, **keywords)
