"""What a request leaves open is closed by the study; what contradicts itself is refused with the way out."""

import shutil

import numpy as np
import pytest
from PIL import Image

from cedm_ray import durable
from cedm_ray.errors import ConfigurationError, InputDataError
from cedm_ray.evaluation.gathering import FileImages, Keep, Network
from cedm_ray.evaluation.requests import SETS, Request, settle
from cedm_ray.search.results import UNCONDITIONAL


def write_npz(path, *, count=40, size=8, seed=0):
    np.savez(path, images=np.random.default_rng(seed).integers(0, 256, (count, 3, size, size), dtype=np.uint8))
    return str(path)


@pytest.fixture
def images(tmp_path):
    return write_npz(tmp_path / "images.npz")


@pytest.fixture
def plan(tmp_path):
    def make(source, **asked):
        return settle(Request(source=str(source), **asked), cache=tmp_path / "cache", show=lambda event: None)

    return make


def test_a_study_settles_what_a_request_leaves_open(plan, finished, tiny_space):
    found = plan(finished.path)
    assert (found.num, found.sets, found.first_seed) == (tiny_space.evaluation.final_samples, SETS, 0)
    assert found.networks == {"fd": Network(spec="pixels")}
    assert found.reference.count == 300
    assert found.subject.trial is None
    assert found.name == found.model.meaning.trial != UNCONDITIONAL


def test_files_are_one_set_of_all_images(plan, finished, images):
    found = plan(images, reference=str(finished.path))
    assert (found.num, found.sets, found.name, found.model) == (40, 1, "images", None)
    assert found.subject == FileImages(path=images, batch_size=256)
    assert found.networks == {"fd": Network(spec="pixels")}


def test_files_against_files_need_no_study(plan, images, tmp_path, color_network):
    other = write_npz(tmp_path / "other.npz", seed=1)
    found = plan(images, reference=other, detector=str(color_network), metrics=("fd", "kd"))
    assert found.home is None
    assert set(found.networks.values()) == {Network(spec=str(color_network))}
    assert found.keeps == {Network(spec=str(color_network)): Keep(statistics=True, rows=10_000)}


def test_a_comparison_keeps_blocks(plan, finished):
    found = plan(finished.path, versus=UNCONDITIONAL, num=40)
    assert found.keeps == {Network(spec="pixels"): Keep(statistics=True, blocks=True)}
    assert found.versus.meaning.trial == UNCONDITIONAL


def test_weights_of_the_space_and_of_the_request(plan, done, tiny_space):
    found = plan(done.path, metrics=("fid", "fd"), weights=(("inception", "w.pt"),))
    assert found.networks["fid"].weights.endswith("/w.pt")
    assert found.networks["fd"] == Network(spec="pixels")
    with pytest.raises(ConfigurationError, match="--weights names dinov2"):
        plan(done.path, weights=(("dinov2", "w.pt"),))


def test_weights_are_those_of_the_role_and_not_of_the_word(plan, done):
    settled = done.settled()
    settled["features"] |= {"extractor": "resnet18", "weights": "/clustered_by.safetensors"}
    settled["evaluation"] |= {"detector": "resnet18", "weights": "/measured_by.safetensors"}
    durable.replace_record(done.path / "space.json", settled)
    both = ("fd", "msp")
    found = {word: network.weights for word, network in plan(done.path, metrics=both).networks.items()}
    assert found == {"fd": "/measured_by.safetensors", "msp": "/clustered_by.safetensors"}
    given = plan(done.path, metrics=both, weights=((None, "/mine.pt"),)).networks
    assert (given["fd"].weights, given["msp"].weights) == ("/mine.pt", "/clustered_by.safetensors")
    named = plan(done.path, metrics=both, weights=(("resnet18", "/mine.pt"),)).networks
    assert (named["fd"].weights, named["msp"].weights) == ("/mine.pt", "/mine.pt")
    with pytest.raises(ConfigurationError, match="--weights names resnet18"):
        plan(done.path, metrics=("msp",), weights=((None, "/mine.pt"),))


def test_stored_features_are_no_network(plan, done):
    settled = done.settled()
    settled["features"]["extractor"] = "/mine.npy"
    durable.replace_record(done.path / "space.json", settled)
    for word in ("msp", "memorization"):
        with pytest.raises(ConfigurationError, match=r"mine\.npy holds features of the training images only"):
            plan(done.path, metrics=("fd", word))


def test_seeds_end_at_2_to_the_32(plan, done):
    settled = done.settled()
    settled["evaluation"]["first_seed"] = 2**32 - 60
    durable.replace_record(done.path / "space.json", settled)
    assert plan(done.path, num=20).seeds[-1].stop == 2**32
    with pytest.raises(ConfigurationError, match=r"2\^32"):
        plan(done.path, num=21)


def test_the_key_is_that_of_the_question(plan, finished, color_network):
    class Opened:
        key = "k"

    def key(**asked):
        found = plan(finished.path, **asked)
        return found.key(dict.fromkeys(found.networks.values(), Opened))

    same = key(num=40)
    assert same == key(num=40)
    others = [key(num=41), key(num=40, sets=2), key(num=40, trial=UNCONDITIONAL), key(num=40, metrics=("kd",))]
    assert len({same, *others}) == 5


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({}, "nothing to compare"),
        ({"reference": True, "trial": "c00004"}, "--trial is for a study's models"),
        ({"reference": True, "num": 10}, "--num is for"),
        ({"reference": True, "sets": 3}, "--sets is for"),
        ({"reference": True, "versus": "c00004"}, "--versus compares two models"),
        ({"reference": True, "metrics": ("ufd",)}, "ufd and ufid compare a conditional model"),
        ({"reference": True, "metrics": ("msp",)}, "msp needs the clustering head"),
        ({"reference": True, "metrics": ("auroc",)}, "was not trained on"),
        ({"reference": True, "test": "x.npz"}, "--test is for auroc"),
        ({"reference": True, "metrics": ("fdi",)}, "did you mean fd"),
        ({"reference": True, "metrics": ("fid",), "detector": "dinov2"}, "fid is a measure of inception's"),
    ],
)
def test_what_files_cannot_be_asked(plan, images, tmp_path, asked, message):
    if asked.get("reference"):
        asked = asked | {"reference": write_npz(tmp_path / "other.npz")}
    with pytest.raises(ConfigurationError, match=message) as error:
        plan(images, **asked)
    assert error.value.exit_code == 2


def test_what_a_study_cannot_be_asked(plan, finished):
    for asked, message in (
        ({"trial": "c09999"}, "no trained model of 'c09999'"),
        ({"versus": "c09999"}, "no trained model of 'c09999'"),
        ({"versus": UNCONDITIONAL, "metrics": ("prdc",)}, "--versus compares Fréchet distances"),
        ({"versus": UNCONDITIONAL, "num": 11}, "needs at least 12 images"),
        ({"metrics": ("fd_inf",), "num": 5}, "needs at least 12 images"),
        ({"trial": UNCONDITIONAL, "metrics": ("msp",)}, "msp needs"),
        ({"trial": UNCONDITIONAL, "metrics": ("ufd",)}, "unconditional one"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            plan(finished.path, **asked)


def test_moments_serve_frechet_distances_only(plan, images, tmp_path, color_network):
    np.savez(tmp_path / "moments.npz", mu=np.zeros(4), sigma=np.eye(4))
    asked = {"reference": str(tmp_path / "moments.npz"), "detector": str(color_network)}
    assert plan(images, **asked).reference.count is None
    with pytest.raises(ConfigurationError, match="prdc needs the reference's images"):
        plan(images, metrics=("fd", "prdc"), **asked)


def test_images_of_another_size_are_refused(plan, finished, images, tmp_path):
    larger = write_npz(tmp_path / "larger.npz", size=16)
    with pytest.raises(InputDataError, match="side of 16 pixels, those of the reference digit-files0 of 8"):
        plan(larger, reference=str(finished.path))
    with pytest.raises(InputDataError, match="those of --test of 16"):
        plan(images, reference=str(finished.path), metrics=("auroc",), test=larger)


def test_a_folder_that_is_no_study_is_images(plan, finished, tmp_path):
    (tmp_path / "files").mkdir()
    for index in range(3):
        Image.new("RGB", (8, 8), (index, 0, 0)).save(tmp_path / "files" / f"{index}.png")
    assert plan(tmp_path / "files", reference=str(finished.path)).num == 3
    shutil.rmtree(tmp_path / "files")
    with pytest.raises(InputDataError, match="cannot read images"):
        plan(tmp_path / "files", reference=str(finished.path))
