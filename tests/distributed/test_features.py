"""Extraction by actors gives the bytes that one process gives, and does again only what is missing or damaged."""

import numpy as np

from cedm_ray.distributed import features
from cedm_ray.distributed.session import cluster_resources
from cedm_ray.features.extractors import open_extractor
from cedm_ray.features.store import extract_features
from cedm_ray.search.prepare import prepare_images
from cedm_ray.search.results import Notice


def test_actors_extract_what_one_process_extracts_and_mend_a_damaged_shard(cluster, space, study, shown, tmp_path):
    images = prepare_images(study, space, shown.append)
    found, key = features.prepare_features(study, space, images, cluster_resources(), shown.append)
    alone = extract_features(images, open_extractor("pixels", images), tmp_path / "alone", batch_size=256)
    for _ in alone:
        pass
    np.testing.assert_array_equal(found, np.load(tmp_path / "alone" / "shard-00000.npy"))
    shard = study.features(key) / "shard-00000.npy"
    whole = shard.read_bytes()
    written = shard.stat().st_mtime_ns
    features.prepare_features(study, space, images, cluster_resources(), shown.append)
    assert shard.stat().st_mtime_ns == written
    shard.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    features.prepare_features(study, space, images, cluster_resources(), shown.append)
    assert shard.read_bytes() == whole
    assert any(isinstance(event, Notice) and "computed again" in event.text for event in shown)
