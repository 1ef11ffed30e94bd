"""cedm-ray: how many groups should a diffusion model be conditioned on, and how good does it get?

The table of contents. Every name is imported when it is first used, so that `import cedm_ray` costs nothing.

    config, durable, errors     configurations, bytes on disk, how things can fail
    data                        images in one order
    features                    frozen networks and their features
    clustering                  TEMI and the upper bound of C
    diffusion                   C-EDM: network, training, sampler
    metrics                     feature statistics and the Fréchet distance
    search                      a study: its space, its records, its trials, its result
    distributed                 the study on a Ray cluster
    report                      what a study shows
"""

import importlib

_CONTENTS = {
    "SearchSpace": "search.space",
    "read_space": "search.space",
    "Study": "search.study",
    "StudyResult": "search.results",
    "study_result": "search.outcome",
    "run_study": "distributed.run",
    "publish": "report.publish",
    "ImageSet": "data.image_set",
    "import_images": "data.importing",
    "open_image_set": "data.image_set",
    "open_extractor": "features.extractors",
    "nearest_neighbors": "clustering.neighbors",
    "TemiConfig": "clustering.recipe",
    "TemiData": "clustering.pairs",
    "load_temi_data": "clustering.pairs",
    "peak_bytes": "clustering.plan",
    "fit_temi": "clustering.temi",
    "ClusterAssignment": "clustering.assignment",
    "BoundConfig": "clustering.bound",
    "UpperBoundSearch": "clustering.bound",
    "Denoiser": "diffusion.edm",
    "UNet": "diffusion.unet",
    "train": "diffusion.train",
    "TrainState": "diffusion.train",
    "sample": "diffusion.sample",
    "FeatureStatistics": "metrics.statistics",
    "frechet_distance": "metrics.frechet",
}

__all__ = list(_CONTENTS)


def __getattr__(name: str):
    if name not in _CONTENTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_CONTENTS[name]}"), name)
