"""The grammar of extractors' names, and what a distance may be called."""

import pytest

from cedm_ray.errors import ConfigurationError
from cedm_ray.features.extractors import (
    FeaturesConfig,
    distance_name,
    extractor_name,
    open_extractor,
    open_text_encoder,
)


@pytest.mark.parametrize(
    ("spec", "name", "distance"),
    [
        ("inception", "inception", "FID"),
        ("dinov2", "dinov2", "FDD"),
        ("inception_clean", "inception_clean", "FID[clean]"),
        ("pixels", "pixels", "FD[pixels]"),
        ("dinov2_vitg14", "dinov2_vitg14", "FD[dinov2_vitg14]"),
        ("openclip:ViT-B-32:openai", "openclip:ViT-B-32:openai", "FD[openclip:ViT-B-32:openai]"),
        ("inception_clean.pt", "file:inception_clean", "FD[file:inception_clean]"),
        ("vit_base_patch16_224.dino", "vit_base_patch16_224.dino", "FD[vit_base_patch16_224.dino]"),
        ("../weights/cifar10_resnet56.pt", "cifar10_resnet56", "FD[cifar10_resnet56]"),
        ("mine.torchscript", "mine", "FD[mine]"),
        ("./inception", "file:inception", "FD[file:inception]"),
        ("dinov2.pt", "file:dinov2", "FD[file:dinov2]"),
    ],
)
def test_only_the_true_networks_give_fid_and_fdd(spec, name, distance):
    assert extractor_name(spec) == extractor_name(name) == name
    assert distance_name(spec) == distance_name(name) == distance


def test_a_distance_with_other_weights_in_an_architecture_says_so(tmp_path):
    mine = tmp_path / "mine.safetensors"
    assert distance_name("vit_base_patch16_224.dino", mine) == "FD[vit_base_patch16_224.dino+mine]"
    assert distance_name("openclip:ViT-B-32:openai", mine) == "FD[openclip:ViT-B-32:openai+mine]"
    assert [distance_name(spec, mine) for spec in ("inception", "dinov2", "ibot_vitl16")] == [
        "FD[inception+mine]",
        "FD[dinov2+mine]",
        "FD[ibot_vitl16+mine]",
    ]
    copy = tmp_path / "inception-2015-12-05.pt"
    assert [distance_name(spec, copy) for spec in ("inception", "inception_clean")] == ["FID", "FID[clean]"]


@pytest.mark.parametrize("spec", ["pixels", "./net.pt"])
def test_what_has_its_own_weights_takes_no_others(spec, image_set, tmp_path):
    with pytest.raises(ConfigurationError, match="takes no weights"):
        open_extractor(spec, image_set(), weights=tmp_path / "x.safetensors")


def test_texts_need_a_network_that_reads_them(image_set):
    with pytest.raises(ConfigurationError, match="dino_vitb16 embeds images only"):
        open_text_encoder("dino_vitb16", image_set())


def test_the_weights_of_a_configuration_are_a_path_or_nothing():
    assert FeaturesConfig().weights is None
    dumped = FeaturesConfig(extractor="ibot_vitl16", weights="a/b.pth").model_dump(mode="json")
    assert dumped["weights"] == "a/b.pth"


def test_a_pixel_extractor_is_opened_by_its_word(image_set):
    assert open_extractor("pixels", image_set(), pixel_components=5).dim == 5
