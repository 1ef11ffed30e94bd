"""What may be asked of the rivals, and k-means in a study."""

import re

import numpy as np
import pytest
from sklearn.cluster import KMeans

from cedm_ray import durable
from cedm_ray.errors import ConfigurationError, InputDataError
from cedm_ray.features.store import open_features
from cedm_ray.search.rivals import Wanted, kmeans_of, read_class_names, short_digest


def parse(method="temi", sizes=None, classes=None, clip_weights=None, labels=None):
    return Wanted.parse(method, sizes, classes=classes, clip_weights=clip_weights, labels=labels)


def test_sizes_are_numbers_with_commas():
    assert parse(sizes="100,20,3").sizes == (100, 20, 3)
    for wrong in ("", "1,2", "x", "10,", "10 20", "5,5", "-3", "9999999999"):
        with pytest.raises(ConfigurationError, match="num-clusters"):
            parse(sizes=wrong)


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({}, "temi needs --num-clusters"),
        ({"method": "kmeans"}, "kmeans needs --num-clusters"),
        ({"method": "labels", "sizes": "5", "labels": "folders"}, "labels does not take --num-clusters"),
        ({"method": "labels"}, "labels needs labels"),
        ({"method": "clip"}, "clip needs --classes"),
        ({"method": "a.npz", "sizes": "10"}, "a.npz does not take --num-clusters"),
        ({"method": "kmens", "sizes": "10"}, "got 'kmens'; did you mean kmeans?"),
        ({"method": "spectral"}, "--method must be temi, kmeans, clip, labels or a file"),
        ({"sizes": "5", "clip_weights": "w.bin"}, "temi does not take --clip-weights"),
    ],
)
def test_combinations_that_mean_nothing_are_refused(asked, told):
    with pytest.raises(ConfigurationError, match=re.escape(told)):
        parse(**asked)


def test_class_names_are_lines_of_a_text_file(tmp_path):
    path = tmp_path / "classes.txt"
    path.write_text("cat\n\n fire truck \n")
    assert read_class_names(path) == ("cat", "fire truck")
    assert parse("clip", classes=str(path)).classes == ("cat", "fire truck")
    path.write_text("cat\ncat\n")
    with pytest.raises(InputDataError, match="each once"):
        read_class_names(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(InputDataError, match="not UTF-8"):
        read_class_names(path)
    with pytest.raises(InputDataError, match="No such file"):
        read_class_names(tmp_path / "none.txt")
    path.write_text("a\nb\n")
    with pytest.raises(ConfigurationError, match="temi does not take --classes"):
        parse(sizes="5", classes=str(path))


def test_kmeans_is_scikit_learns_on_the_raw_features_and_keeps_its_centers(fresh, tiny_space, study_tools):
    key = durable.read_tensors(fresh.neighbors)[1]["features"]
    runs, assignment = study_tools.exhaust(kmeans_of(fresh, tiny_space, key, 7))
    assert len(runs) == 10
    features = np.array(open_features(fresh.features(key)))
    oracle = KMeans(7, n_init=10, random_state=tiny_space.seed).fit(features)
    centers = durable.read_tensors(fresh.clustering("kmeans-c00007").with_suffix(".safetensors"))[0]["centers"]
    inertia = ((features - centers[assignment.labels]) ** 2).sum()
    assert assignment.method == "kmeans"
    assert inertia == pytest.approx(oracle.inertia_, rel=1e-4)
    with pytest.raises(ConfigurationError, match="must not exceed the 300 images, got 301"):
        next(kmeans_of(fresh, tiny_space, key, 301))


def test_digests_tell_clusterings_apart():
    labels = np.array([0, 1], dtype=np.int32)
    assert short_digest(labels) == short_digest(labels.copy())
    assert (
        len({short_digest(labels), short_digest(labels[::-1]), short_digest(labels, "a"), short_digest(labels, "ab")})
        == 4
    )
