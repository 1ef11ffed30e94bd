"""OpenCLIP with a small network of random weights and the tokenizer that it ships, against OpenCLIP's own pipeline."""

import json
import logging
import sys

import numpy as np
import open_clip
import pytest
import safetensors.torch
import timm
import torch
from PIL import Image

from cedm_ray.errors import ConfigurationError, InputDataError, SecurityError
from cedm_ray.features.extractors import open_extractor, open_text_encoder

SMALL = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 16, "head_width": 8, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2},
}


@pytest.fixture(scope="module", autouse=True)
def model_name(tmp_path_factory):
    """The small architecture under a name that OpenCLIP knows."""
    path = tmp_path_factory.mktemp("configs") / "small-cedm-test.json"
    path.write_text(json.dumps(SMALL))
    open_clip.add_model_config(path)
    return path.stem


@pytest.fixture(scope="module")
def network(model_name):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return open_clip.create_model(model_name, load_weights=False).eval()


@pytest.fixture
def weights(network, tmp_path):
    safetensors.torch.save_file(network.state_dict(), tmp_path / "small.safetensors")
    return tmp_path / "small.safetensors"


@pytest.fixture
def spec(model_name):
    return f"openclip:{model_name}"


def test_image_embeddings_are_openclips_on_pillow_images(spec, network, weights, image_set):
    images = image_set(count=4, size=20)
    preprocess = open_clip.image_transform(32, is_train=False)
    with torch.inference_mode():
        pictures = [Image.fromarray(image.transpose(1, 2, 0)) for image in images.pixels]
        expected = network.encode_image(torch.stack([preprocess(picture) for picture in pictures]))
    extractor = open_extractor(spec, images, weights=weights)
    features = extractor(torch.from_numpy(images.pixels))
    assert (extractor.name, extractor.dim, features.dtype) == (f"{spec}+small", 24, torch.float32)
    assert torch.nn.functional.cosine_similarity(features, expected).min() > 0.9999
    assert (features - expected).abs().max() < 0.02


def test_text_embeddings_are_openclips(spec, network, weights, image_set, model_name):
    encoder = open_text_encoder(spec, image_set(), weights=weights)
    texts = [f"a photo of a {word}" for word in ("cat", "dog", "truck")]
    with torch.inference_mode():
        expected = network.encode_text(open_clip.get_tokenizer(model_name)(texts)).numpy()
    found = encoder.embed_texts(texts)
    assert (found.shape, found.dtype) == ((3, 24), np.float32)
    assert np.allclose(found, expected, atol=1e-6)
    with pytest.raises(ValueError, match="texts must not be empty"):
        encoder.embed_texts([])


def test_many_texts_are_embedded_as_one_by_one(spec, weights, image_set, monkeypatch):
    encoder = open_text_encoder(spec, image_set(), weights=weights)
    texts = [f"number {i}" for i in range(7)]
    whole = encoder.embed_texts(texts)
    monkeypatch.setattr("cedm_ray.features.openclip._TEXTS_AT_ONCE", 3)
    assert np.allclose(encoder.embed_texts(texts), whole, atol=1e-6)


def test_the_key_follows_the_image_side_only(spec, network, weights, image_set, tmp_path):
    key = open_extractor(spec, image_set(), weights=weights).key
    tensors = {name: value.clone() for name, value in network.state_dict().items()}
    tensors["token_embedding.weight"] += 1
    safetensors.torch.save_file(tensors, tmp_path / "text.safetensors")
    assert open_extractor(spec, image_set(), weights=tmp_path / "text.safetensors").key == key
    tensors["visual.proj"] *= 2
    safetensors.torch.save_file(tensors, tmp_path / "image.safetensors")
    assert open_extractor(spec, image_set(), weights=tmp_path / "image.safetensors").key != key


def test_logging_is_left_as_it_was(spec, weights, image_set):
    before = list(logging.getLogger().handlers)
    open_extractor(spec, image_set(), weights=weights)
    assert logging.getLogger().handlers == before


def test_weights_that_do_not_fit_are_named(spec, network, image_set, tmp_path):
    tensors = dict(network.state_dict())
    del tensors["visual.proj"]
    torch.save(tensors, tmp_path / "part.pt")
    with pytest.raises(InputDataError, match=r"part.pt does not fit OpenCLIP's small.*Missing key.*visual.proj"):
        open_extractor(spec, image_set(), weights=tmp_path / "part.pt")


def test_pickled_objects_are_refused(spec, image_set, tmp_path):
    class Explosive:
        def __reduce__(self):
            return (exec, ("raise SystemExit('unpickled')",))

    torch.save({"state_dict": Explosive()}, tmp_path / "evil.pt")
    with pytest.raises(SecurityError, match=r"evil.pt holds pickled Python objects"):
        open_extractor(spec, image_set(), weights=tmp_path / "evil.pt")


def test_without_the_extra_the_message_says_how_to_get_it(image_set, monkeypatch):
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(ConfigurationError, match="OpenCLIP is not installed") as caught:
        open_extractor("openclip_vitbigg14", image_set())
    assert "pip install 'cedm-ray[clip]'" in caught.value.mend


def test_missing_weights_say_what_to_put_where(image_set):
    with pytest.raises(InputDataError, match=r"neither at .*/openclip-ViT-bigG-14-laion2b_s39b_b160k.safe") as caught:
        open_extractor("openclip_vitbigg14", image_set())
    address = "huggingface.co/laion/CLIP-ViT-bigG-14-laion2B-39B-b160k/resolve/main/open_clip_model.safetensors"
    assert address in caught.value.mend


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("openclip:ViT-B-33:openai", "ViT-B-33 is no OpenCLIP model; did you mean ViT-B-32"),
        ("openclip:ViT-B-32:nothing", "has no weights nothing of ViT-B-32; it has openai"),
        ("openclip:ViT-B-32", "does not say which weights"),
        ("openclip:ViT-B-32:openai", "another GELU than ViT-B-32 has"),
    ],
)
def test_names_that_openclip_does_not_know_are_answered(wrong, message, image_set):
    with pytest.raises(ConfigurationError, match=message):
        open_extractor(wrong, image_set())


def test_timms_image_tower_gives_the_features_before_the_projection(network, image_set):
    """Why the paper's row goes through OpenCLIP: timm's name for the tower, without its head, is another feature."""
    with torch.random.fork_rng():
        tower = timm.create_model(
            "vit_base_patch32_clip_224",
            img_size=32,
            patch_size=8,
            embed_dim=16,
            depth=2,
            num_heads=2,
            num_classes=0,
            act_layer="gelu",
        ).eval()
    filtered = sys.modules[type(tower).__module__].checkpoint_filter_fn(dict(network.state_dict()), tower)
    tower.load_state_dict({name: filtered[name] for name in tower.state_dict()})
    pixels = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        before, after = tower(pixels), network.encode_image(pixels)
        projected = before @ network.visual.proj
    assert (before.shape, after.shape) == ((3, 16), (3, 24))
    assert torch.allclose(projected, after, atol=1e-5)
