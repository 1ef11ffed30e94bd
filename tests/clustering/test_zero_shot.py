"""CLIP pseudo-labels: the paper's prompts, the order of averaging, the nearest class."""

import numpy as np
import pytest

from cedm_ray.clustering.zero_shot import PROMPTS, class_prompts, prompt_ensemble, zero_shot


def test_the_prompts_are_the_papers_and_stand_class_by_class():
    assert len(PROMPTS) == 5
    assert class_prompts(["cat", "airplane"]) == [
        "a photo of a cat",
        "a blurry photo of a cat",
        "a photo of many cat",
        "a photo of the large cat",
        "a photo of the small cat",
        "a photo of a airplane",
        "a blurry photo of a airplane",
        "a photo of many airplane",
        "a photo of the large airplane",
        "a photo of the small airplane",
    ]


@pytest.mark.parametrize("names", [[], ["cat", "cat"], ["cat", " "]])
def test_names_must_be_different_words(names):
    with pytest.raises(ValueError, match="names must be different words"):
        class_prompts(names)


def test_texts_are_brought_to_unit_length_before_they_are_averaged():
    """By hand: (3, 0) and (0, 100) count alike, so that the class lies at 45 degrees and not near the longer one."""
    found = prompt_ensemble(np.array([[[3.0, 0.0], [0.0, 100.0]], [[0.0, -2.0], [0.0, -1.0]]]))
    assert np.allclose(found, [[np.sqrt(0.5), np.sqrt(0.5)], [0, -1]])
    assert found.dtype == np.float32


def test_each_image_gets_the_class_of_the_highest_cosine(monkeypatch):
    """By brute force in float64; lengths of images and classes do not count."""
    monkeypatch.setattr("cedm_ray.clustering.zero_shot._TILE_ROWS", 7)
    rng = np.random.default_rng(0)
    images, classes = rng.normal(size=(50, 6)) * rng.uniform(1, 90, (50, 1)), rng.normal(size=(4, 6))
    classes *= np.array([1, 50, 3, 9])[:, None]
    cosines = [[a @ b / np.linalg.norm(a) / np.linalg.norm(b) for b in classes] for a in images]
    found = zero_shot(images, classes, provenance={"names": ["a", "b", "c", "d"]})
    assert found.labels.tolist() == np.argmax(cosines, axis=1).tolist()
    assert (found.method, found.num_clusters, found.provenance) == ("clip", 4, {"names": ["a", "b", "c", "d"]})


def test_a_class_that_no_image_is_nearest_to_stays_empty():
    found = zero_shot(np.array([[1.0, 0.0], [1.0, 0.1]]), np.array([[1.0, 0.0], [-1.0, 0.0]]))
    assert (found.num_clusters, found.num_used) == (2, 1)


@pytest.mark.parametrize(
    ("images", "classes", "message"),
    [
        (np.ones((3, 2)), np.ones((2, 3)), "they come from two models"),
        (np.ones(3), np.ones((2, 3)), r"image_embeddings must have shape \[rows, D\]"),
        (np.ones((3, 2)), np.ones((0, 2)), "class_embeddings must have shape"),
        (np.array([[1.0, 1.0], [np.nan, 1.0]]), np.ones((2, 2)), "image_embeddings must be finite .* row 1 is not"),
        (np.ones((3, 2)), np.array([[1.0, 0.0], [0.0, 0.0]]), "class_embeddings must be finite and not zero, .* row 1"),
    ],
)
def test_embeddings_that_cannot_be_compared_are_refused(images, classes, message):
    with pytest.raises(ValueError, match=message):
        zero_shot(images, classes)


def test_prompts_that_cancel_each_other_out_are_refused():
    with pytest.raises(ValueError, match="the means of text_embeddings must be finite and not zero"):
        prompt_ensemble(np.array([[[1.0, 0.0], [-1.0, 0.0]]]))
    with pytest.raises(ValueError, match=r"text_embeddings must have shape \[K, P, D\]"):
        prompt_ensemble(np.ones((2, 3)))
