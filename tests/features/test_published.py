"""The paper's networks: that the table says the truth about what timm and OpenCLIP have."""

import open_clip
import pytest
import timm

from cedm_ray.features.published import IMAGENET_224, PUBLISHED

TIMM = {name: row for name, row in PUBLISHED.items() if row.timm}


def test_the_papers_five_extractors_and_the_detector_are_there():
    assert {name: row.dim for name, row in PUBLISHED.items()} == {
        "dino_vitb16": 768,
        "mocov3_vitb16": 768,
        "ibot_vitl16": 1024,
        "dinov2_vitg14": 1536,
        "openclip_vitbigg14": 1280,
        "dinov2": 1024,
    }


@pytest.mark.parametrize("name", TIMM)
def test_timm_has_the_architecture_at_the_tables_width(name):
    row = TIMM[name]
    config = timm.get_pretrained_cfg(row.timm)
    network = timm.create_model(row.timm, num_classes=0, img_size=224, device="meta")
    assert network.num_features == row.dim
    assert network.global_pool == "token"
    assert isinstance(network.norm.eps, float)
    assert network.norm.eps == 1e-6
    if row.file is None:
        assert config.hf_hub_id == f"timm/{row.timm}"
        assert (config.mean, config.std, config.interpolation) == (
            IMAGENET_224.mean,
            IMAGENET_224.std,
            IMAGENET_224.interpolation,
        )


def test_openclip_has_the_model_and_the_weights():
    (row,) = [row for row in PUBLISHED.values() if row.openclip]
    model, tag = row.openclip
    assert open_clip.get_model_config(model)["embed_dim"] == row.dim
    assert open_clip.pretrained.is_pretrained_cfg(model, tag)


def test_every_row_has_one_source():
    for row in PUBLISHED.values():
        assert (row.timm is None) != (row.openclip is None)
        assert row.file is None or row.file.url.startswith("https://")
    files = [row.file.name for row in PUBLISHED.values() if row.file]
    assert len(set(files)) == len(files)
