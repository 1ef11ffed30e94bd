import pytest
from pydantic import ValidationError

from cedm_ray.data.images_config import ImagesConfig


def test_the_limits_are_settings_of_images():
    assert ImagesConfig(max_pixels=9, max_ratio=3).model_dump(include={"max_pixels", "max_ratio"}) == {
        "max_pixels": 9,
        "max_ratio": 3,
    }


@pytest.mark.parametrize(
    "setting",
    [
        {"size": 0},
        {"size": 4097},
        {"crop": "left"},
        {"background": "#12345"},
        {"background": "blue"},
        {"on_bad": "ask"},
        {"max_bad_fraction": 1.5},
        {"max_pixels": 90_000_000},
        {"sise": 8},
    ],
)
def test_what_is_none_is_refused_by_its_name(setting):
    (name,) = setting
    with pytest.raises(ValidationError, match=name):
        ImagesConfig(**setting)
