"""The images of the report: the clusters' own training images, beside samples under the same noise."""

import numpy as np

from cedm_ray import durable
from cedm_ray.data.image_set import open_image_set
from cedm_ray.search.model import find_model, keep_model
from cedm_ray.search.results import TrialReport
from cedm_ray.search.showcase import GRID, PER_ROW, ROWS, make_showcase, read_showcase
from cedm_ray.search.study import FitRecord
from cedm_ray.search.trial import load_assignment, run_trial


def make(study, space, labels, num_clusters):
    """The showcase of a model that was trained on these labels and kept as the best."""
    record = FitRecord(num_clusters=num_clusters, repeat=0, num_used=len(set(labels)), loss=0.0, seconds=0.0)
    name = f"c{num_clusters:05d}"
    study.write_fit(record, f"{name}-r0", {"labels": np.array(labels, dtype=np.int32)}, {"method": "by hand"})
    for event in run_trial(study, space, num_clusters, device="cpu"):
        if isinstance(event, TrialReport):
            break
    keep_model(durable.newest_checkpoint(study.checkpoints(name)), study.best)
    make_showcase(study, open_image_set(study.images), "cpu")
    return read_showcase(study)


def test_no_showcase_without_a_best_model(fresh):
    assert read_showcase(fresh) is None


def test_rows_go_from_the_largest_cluster_to_the_smallest_with_their_shares(fresh, tiny_space):
    # Cluster 5: 195 images, 1: 102, 8: 3; 0, 2, 3, 4, 6 and 7 are empty.
    shown = make(fresh, tiny_space, [5] * 195 + [1] * 102 + [8] * 3, 9)
    assert shown.clusters.tolist() == [5, 1, 8]
    assert shown.shares.tolist() == [0.65, 0.34, 0.01]
    pixels = open_image_set(fresh.images).pixels
    for row, members in enumerate((range(195), range(195, 297), range(297, 300))):
        own = {pixels[i].tobytes() for i in members}
        assert {image.tobytes() for image in shown.training[row]} <= own
        # A cluster of fewer images than there are places repeats them, another does not.
        assert len({image.tobytes() for image in shown.training[row]}) == min(PER_ROW, len(members))
    assert shown.training.shape == shown.samples.shape == (3, PER_ROW, 3, 8, 8)


def test_rows_are_spread_over_the_sizes_where_there_are_many_clusters(fresh, tiny_space):
    # Cluster k has k + 1 images: 1 + 2 + ... + 24 = 300.
    labels = [k for k in range(24) for _ in range(k + 1)]
    shown = make(fresh, tiny_space, labels, 24)
    assert len(shown.clusters) == ROWS
    assert (shown.clusters[0], shown.clusters[-1]) == (23, 0)
    assert np.all(np.diff(shown.clusters) < 0)
    assert np.abs(np.diff(shown.clusters) + 23 / 9).max() <= 1


def test_samples_of_a_row_are_those_of_its_cluster_and_of_the_seeds_0_to_7(finished):
    shown = read_showcase(finished)
    model = find_model(finished, None, "cpu", [].append)
    for row, cluster in enumerate(shown.clusters.tolist()):
        place = model.meaning.class_ids.index(cluster)
        (alone,) = model.sample(range(PER_ROW), classes=[place] * PER_ROW)
        # Another batch size may round another way.
        assert np.abs(alone.astype(int) - shown.samples[row].astype(int)).max() <= 1
    assert shown.grid.shape == (GRID, 3, 8, 8)
    assert np.array_equal(shown.grid, np.concatenate(list(model.sample(range(GRID)))))


def test_training_images_lie_in_their_cluster(finished):
    shown = read_showcase(finished)
    model = find_model(finished, None, "cpu", [].append)
    labels = load_assignment(finished, model.meaning.num_clusters).labels
    pixels = open_image_set(finished.images).pixels
    for row, cluster in enumerate(shown.clusters):
        own = {pixels[i].tobytes() for i in np.flatnonzero(labels == cluster)}
        assert {image.tobytes() for image in shown.training[row]} <= own
        assert shown.shares[row] == np.mean(labels == cluster)
