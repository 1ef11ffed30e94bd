import numpy as np
import pytest

from cedm_ray.data import limits
from cedm_ray.data.images_config import ImagesConfig
from cedm_ray.data.limits import LIMITS, Limits, changed_limits
from cedm_ray.data.sources import open_source
from cedm_ray.errors import InputDataError
from cedm_ray.verbs.images import LIMITS as OPTIONS


def test_limits_that_are_not_set_change_nothing_that_was_computed_before_there_were_any():
    settings = ImagesConfig(size=8).model_dump(mode="json")
    assert set(changed_limits(settings)) == {
        "source",
        "size",
        "crop",
        "enlarge",
        "background",
        "on_bad",
        "max_bad_fraction",
        "max_pixels",
    }
    assert changed_limits(settings | {"max_ratio": 300}) == changed_limits(settings) | {"max_ratio": 300}


@pytest.mark.parametrize(
    ("told", "setting"),
    [
        (limits.too_large(2, LIMITS), "max_file_bytes"),
        (limits.inflates(LIMITS), "max_ratio"),
        (limits.too_many(LIMITS), "max_files"),
        (limits.too_much(2, LIMITS), "max_unpacked_bytes"),
    ],
)
def test_every_message_names_its_setting_and_the_value(told, setting):
    assert f"images.{setting} ({getattr(LIMITS, setting):,})" in told


def test_the_command_line_has_an_option_for_each_and_tells_its_default():
    assert {name: default for name, (default, _) in OPTIONS.items()} == {
        name: f"{value:,}" for name, value in LIMITS.model_dump().items()
    }
    assert set(OPTIONS) == set(Limits.model_fields)


def test_an_array_of_too_many_images_is_an_error(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((3, 4, 4), np.uint8))
    where = str(tmp_path / "a.npy")
    with pytest.raises(InputDataError, match=r"a.npy: it holds more files than images.max_files \(2\)"):
        open_source(ImagesConfig(source=where, max_files=2))
    with pytest.raises(InputDataError, match=r"holds 48 bytes unpacked, more than images.max_unpacked_bytes \(47\)"):
        open_source(ImagesConfig(source=where, max_unpacked_bytes=47))


def test_a_pattern_may_name_only_so_many_files(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((3, 4, 4), np.uint8))
    with pytest.raises(InputDataError, match=r"names more files than images.max_shards \(9\)"):
        open_source(ImagesConfig(source=str(tmp_path / "{0..9}.tar"), max_shards=9))
