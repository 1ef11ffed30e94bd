"""Sampling by actors gives the images that one process gives, in order, and holds only a few of them."""

import dataclasses

import numpy as np
import pytest
import torch

from cedm_ray import durable
from cedm_ray.distributed import sampling
from cedm_ray.errors import IntegrityError
from cedm_ray.search.confidence import open_confidence
from cedm_ray.search.driver import Resources
from cedm_ray.search.sampling import Condition, open_sampler, settle_job


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    """As Ray's workers of one core have, so that sums round alike."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def settle(study, space, **wanted):
    wanted = {"trial": None, "condition": Condition()} | wanted
    return settle_job(study, space, show=[].append, **wanted)


def together(parts):
    parts = list(parts)
    return {
        "seeds": np.concatenate([part.seeds for part in parts]).tolist(),
        "images": np.concatenate([part.images for part in parts]).astype(int),
        "clusters": np.concatenate([part.clusters for part in parts]).tolist(),
        "drawn": sum(part.drawn for part in parts),
        "decided": sum(part.decided for part in parts),
    }


def test_workers_give_the_images_of_one_process_in_order_and_hold_few(cluster, finished, tiny_space, monkeypatch):
    wanted = {"guide": f"{finished.path}:unconditional@0.384", "guidance": 0.5}
    seeds = range(40, 120)
    everything = open_sampler(settle(finished, tiny_space, **wanted), "cpu")
    confidence = open_confidence(finished, tiny_space, everything.model.meaning.num_clusters, "cpu")
    values = confidence(together(everything.generate(seeds))["images"].astype(np.uint8))
    # Between two confidences, so that no image lies within rounding of it.
    middle = float(np.sort(values)[39:41].mean())
    job = settle(finished, tiny_space, min_confidence=middle, max_tries=2, **wanted)
    job = dataclasses.replace(job, config=job.config.model_copy(update={"batch_size": 1}))
    asked = []
    real = sampling.ray.wait
    monkeypatch.setattr(sampling.ray, "wait", lambda calls, **rest: (asked.append(len(calls)), real(calls, **rest))[1])
    shared = together(sampling._sample(job, seeds, Resources(cpus=2, gpus=0)))
    alone = together(open_sampler(job, "cpu").generate(seeds))
    assert np.array_equal(shared.pop("images"), alone.pop("images"))
    assert shared == alone
    assert 40 <= len(alone["seeds"]) < 80
    assert (alone["decided"], alone["drawn"]) == (80, 120)
    # Of ten shares two workers have two each at a time, or are still being opened.
    assert max(asked) <= 4


def test_a_checkpoint_that_is_gone_is_told_as_it_is(cluster, done, tiny_space):
    job = settle(done, tiny_space)
    (done.best / durable.MANIFEST).unlink()
    with pytest.raises(IntegrityError, match="has no manifest"):
        list(sampling.sample_on_cluster(job, range(1)))
    assert cluster.is_initialized()


def test_no_seeds_are_no_work(cluster, finished, tiny_space):
    assert list(sampling.sample_on_cluster(settle(finished, tiny_space), range(0))) == []
