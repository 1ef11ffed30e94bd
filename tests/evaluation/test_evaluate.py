"""From a request to its numbers, against NumPy and SciPy; and the record that answers the same question again."""

import numpy as np
import pytest
import scipy.linalg
import torch
from PIL import Image

from cedm_ray import durable
from cedm_ray.data.image_set import open_image_set
from cedm_ray.errors import ConfigurationError, IntegrityError
from cedm_ray.evaluation import gathering
from cedm_ray.evaluation.evaluate import compare, evaluate
from cedm_ray.evaluation.gathering import run_here
from cedm_ray.evaluation.requests import Request
from cedm_ray.features.extractors import open_extractor
from cedm_ray.search.model import find_model
from cedm_ray.search.results import UNCONDITIONAL
from cedm_ray.search.space import SearchSpace
from cedm_ray.search.study import Study


def frechet(a, b):
    root = scipy.linalg.sqrtm(np.cov(a.T) @ np.cov(b.T)).real
    return ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(np.cov(a.T) + np.cov(b.T) - 2 * root)


def refuse(work, show):
    raise AssertionError("nothing is left to compute")


@pytest.fixture
def ask(tmp_path):
    def call(source, *, run=run_here, show=lambda event: None, against=None, **asked):
        request = Request(source=str(source), **asked)
        return evaluate(request, cache=tmp_path / "cache", run=run, show=show, against=against)

    return call


@pytest.fixture
def sides(tmp_path):
    rng = np.random.default_rng(0)
    pixels = [rng.integers(0, top, (count, 3, 8, 8), dtype=np.uint8) for top, count in ((200, 90), (256, 120))]
    for name, side in zip(("images", "reference"), pixels, strict=True):
        np.savez(tmp_path / f"{name}.npz", images=side)
    return tmp_path / "images.npz", str(tmp_path / "reference.npz"), pixels


def test_files_against_files_are_the_textbook_distance(ask, sides, color_network, study_tools):
    images, reference, (mine, other) = sides
    told = ask(images, reference=reference, detector=str(color_network))
    (score,) = told["scores"]
    expected = frechet(study_tools.mean_colors(mine), study_tools.mean_colors(other))
    assert score["mean"] == pytest.approx(expected, rel=1e-4)
    assert (score["metric"], score["network"], score["std"]) == ("FD[mean_colors]", "mean_colors", None)
    assert (told["num_samples"], told["seeds"], told["images_seen"]) == (90, None, None)
    assert told["reference"]["images"] == 120


def test_published_moments_give_the_same_distance(ask, sides, color_network, tmp_path, study_tools):
    images, reference, (_, other) = sides
    features = study_tools.mean_colors(other)
    np.savez(tmp_path / "moments.npz", mu=features.mean(0), sigma=np.cov(features.T))
    asked = {"detector": str(color_network), "metrics": ("fd", "fd_inf")}
    found = ask(images, reference=str(tmp_path / "moments.npz"), **asked)
    expected = ask(images, reference=reference, **asked)
    for one, two in zip(found["scores"], expected["scores"], strict=True):
        assert one["mean"] == pytest.approx(two["mean"], rel=1e-4)
    assert found["reference"]["images"] is None


def test_identical_sets_are_at_zero(ask, sides, color_network):
    _, reference, _ = sides
    told = ask(reference, reference=reference, detector=str(color_network), metrics=("fd", "prdc"))
    values = {score["metric"].partition("[")[0]: score["mean"] for score in told["scores"]}
    assert values["FD"] == pytest.approx(0, abs=1e-9)
    assert values["precision"] == values["recall"] == values["coverage"] == 1


def test_a_model_is_measured_on_disjoint_sets_of_its_seeds(ask, done, color_network, study_tools):
    told = ask(done.path, trial=UNCONDITIONAL, num=20, sets=2, detector=str(color_network))
    model = find_model(done, UNCONDITIONAL, "cpu", lambda event: None)
    training = np.load(done.images / "pixels.npy")
    for number, value in enumerate(told["scores"][0]["values"]):
        images = np.concatenate(list(model.sample(range(20 * number, 20 * number + 20))))
        expected = frechet(study_tools.mean_colors(images), study_tools.mean_colors(training))
        assert value == pytest.approx(expected, rel=1e-2)
    assert told["seeds"] == told["scores"][0]["seeds"] == [[0, 20], [20, 40]]
    assert (told["name"], told["num_clusters"], told["images_seen"]) == (UNCONDITIONAL, None, 512)


def test_the_same_question_is_answered_from_the_record(ask, done):
    asked = {"num": 16, "sets": 2, "metrics": ("fd", "kd", "msp", "ufd", "memorization")}
    told = ask(done.path, **asked)
    assert ask(done.path, run=refuse, **asked) == told
    assert [score["metric"] for score in told["scores"]] == [
        "FD[pixels]",
        "KD[pixels]",
        "MSP[pixels]",
        "uFD[pixels]",
        "memorized[pixels]",
        "similarity[pixels]",
    ]
    (record,) = (done.path / "evaluations").iterdir()
    assert record.name.startswith(f"{told['name']}-")


def test_two_models_are_compared_on_common_seeds(ask, done):
    named = f"{UNCONDITIONAL}@0.512"
    told = ask(done.path, num=24, sets=2, versus=named)
    mine = told["scores"][0]["mean"]
    other = ask(done.path, num=24, sets=2, trial=UNCONDITIONAL)["scores"][0]["mean"]
    (difference,) = told["differences"]
    assert difference["value"] == pytest.approx(mine - other, rel=1e-6)
    assert difference["low"] < difference["value"] < difference["high"]
    assert difference["versus"] == named


def test_novelty_is_held_against_test_images(ask, done, sides):
    told = ask(done.path, num=16, sets=1, metrics=("auroc", "memorization"), test=str(sides[0]))
    names = [score["metric"] for score in told["scores"]]
    assert names == ["AUROC[pixels]", "memorized[pixels]", "similarity[pixels]", "memorized test[pixels]"]
    assert all(0 <= score["mean"] <= 1 for score in told["scores"] if not score["metric"].startswith("sim"))


def test_confidence_is_refused_before_any_work_where_the_head_saw_other_features(ask, done):
    settled = done.settled()
    settled["features"]["pixel_components"] = 8
    durable.replace_record(done.path / "space.json", settled)
    with pytest.raises(IntegrityError, match="pixels is not what the clusters were fitted on"):
        ask(done.path, num=16, metrics=("msp",), run=refuse)


def test_numbers_depend_on_what_they_are_about(ask, done, sides):
    """The same words of another test set, another unconditional model or another C are other quantities."""
    asked = {"num": 16, "sets": 1, "metrics": ("fd", "ufd", "auroc", "memorization", "msp")}
    told = ask(done.path, test=str(sides[0]), **asked)
    found = {score["metric"].partition("[")[0]: score["reference"] for score in told["scores"]}
    training = told["reference"]["digest"]
    assert found["FD"] == found["memorized"] == found["similarity"] == training
    assert found["AUROC"] == found["memorized test"]
    assert len({training, found["uFD"], found["AUROC"], found["MSP"]}) == 4
    other = ask(done.path, test=sides[1], **asked)
    with pytest.raises(ConfigurationError, match=r"AUROC\[pixels\]: .* differ in the reference set"):
        compare(told, other)


def test_what_does_not_compare_is_refused_before_any_work(ask, done):
    earlier = ask(done.path, num=16, sets=2)
    with pytest.raises(ConfigurationError, match=r"differ in the number of images \(18 and 16\)"):
        ask(done.path, num=18, sets=2, run=refuse, against=earlier)
    with pytest.raises(ConfigurationError, match="no metric is in both"):
        ask(done.path, num=16, sets=2, metrics=("kd",), run=refuse, against=earlier)


def test_too_few_images_for_a_line_are_refused_before_any_work(ask, sides, color_network, done):
    # Unions of at least 2 x 16 images: 3 and 6 blocks of 11 are the first that are.
    asked = {"metrics": ("fd_inf",), "sets": 1}
    for num in (12, 65):
        with pytest.raises(ConfigurationError, match="too few") as error:
            ask(done.path, num=num, run=refuse, **asked)
        assert error.value.mend == "raise --num to 66"
    assert ask(done.path, num=66, **asked)["scores"][0]["metric"] == "FD[pixels]_inf"


@pytest.mark.parametrize("kind", ["files", "another study"])
def test_pixels_are_those_of_the_models_own_study_whatever_the_reference(
    ask, finished, tiny_space, study_tools, tmp_path, kind
):
    held_out = np.random.default_rng(5).integers(0, 256, (60, 3, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "held_out.npz", images=held_out)
    reference = tmp_path / "held_out.npz"
    if kind == "another study":
        folder = tmp_path / "pictures"
        folder.mkdir()
        for index, image in enumerate(held_out):
            Image.fromarray(image.transpose(1, 2, 0)).save(folder / f"{index:02d}.png")
        changes = {"images": {"source": str(folder)}, "features": {"extractor": "pixels", "pixel_components": 5}}
        space = SearchSpace.model_validate(tiny_space.model_dump(mode="json") | changes)
        reference = tmp_path / "other"
        study_tools.prepare(Study(reference), space)
    told = ask(finished.path, trial=UNCONDITIONAL, num=20, sets=1, reference=str(reference))
    extractor = open_extractor("pixels", open_image_set(finished.images), pixel_components=16)
    model = find_model(finished, UNCONDITIONAL, "cpu", lambda event: None)
    mine, other = (
        extractor(torch.from_numpy(side)).double().numpy()
        for side in (np.concatenate(list(model.sample(range(20)))), held_out)
    )
    assert told["scores"][0]["mean"] == pytest.approx(frechet(mine, other), rel=1e-3)
    assert told["scores"][0]["detector"] == extractor.key


def test_an_inception_score_needs_nothing_to_compare_with(ask, sides, monkeypatch):
    class Half:
        name, key, dim, device = "inception_probabilities", "k", 4, torch.device("cpu")

        def __call__(self, images):
            return torch.eye(4)[images[:, 0, 0, 0].long() % 2]

    monkeypatch.setattr(gathering, "open_inception_classifier", lambda device, weights: Half())
    told = ask(sides[0], metrics=("is",))
    score, deviation = told["scores"]
    assert (score["metric"], deviation["metric"]) == ("IS", "IS std over splits")
    assert 1 < score["mean"] <= 2
    assert deviation["mean"] > 0
    assert (told["reference"], told["collapsed"]) == (None, None)


def test_images_all_alike_are_said_to_be(ask, sides, color_network, tmp_path):
    np.savez(tmp_path / "alike.npz", images=np.full((30, 3, 8, 8), 7, dtype=np.uint8))
    assert ask(tmp_path / "alike.npz", reference=sides[1], detector=str(color_network))["collapsed"]


def test_only_like_is_compared_with_like(ask, done, color_network):
    first = ask(done.path, num=16, sets=2)
    again = ask(done.path, num=16, sets=2, trial=UNCONDITIONAL)
    (found,) = compare(first, again)
    assert found["value"] == pytest.approx(first["scores"][0]["mean"] - again["scores"][0]["mean"])
    assert found["paired"]
    with pytest.raises(ConfigurationError, match=r"differ in the number of images \(16 and 20\)"):
        compare(first, ask(done.path, num=20, sets=2))
    few, more = (ask(done.path, num=num, sets=2, metrics=("kd",)) for num in (16, 20))
    (found,) = compare(few, more)
    assert found["value"] == pytest.approx(few["scores"][0]["mean"] - more["scores"][0]["mean"])
    assert not found["paired"], "a kernel distance is unbiased, so that any numbers of images compare"
    with pytest.raises(ConfigurationError, match="no metric is in both"):
        compare(first, ask(done.path, num=16, detector=str(color_network)))
    with pytest.raises(ConfigurationError, match="no result of cedm-ray evaluate"):
        compare(first, {"scores": [{"metric": "FID"}]})
