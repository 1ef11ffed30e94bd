"""How much of a source is let in: the limits of `images` in the configuration, each with the rule that it stands for.

They keep a damaged or a hostile file from taking all memory or disk. Whoever has larger things on purpose raises them;
every message that refuses something names the setting.
"""

from collections.abc import Mapping
from typing import Any

from pydantic import Field

from cedm_ray.config import Config


class Limits(Config):
    """The part of `ImagesConfig` that says what is too much."""

    # Pillow refuses more than 89.5 million pixels on its own account.
    max_pixels: int = Field(
        64_000_000, ge=1, le=89_000_000, description="width x height allowed; judged from the header before decoding"
    )
    max_file_bytes: int = Field(
        256 * 2**20,
        ge=1,
        description="of one file or member of an archive, which is held in memory while it is decoded; also of "
        "dataset.json and of a batch of CIFAR",
    )
    max_files: int = Field(
        20_000_000,
        ge=1,
        description="images and other files of one source, members of its archives, rows of its tables",
    )
    max_unpacked_bytes: int = Field(
        4 * 2**40, ge=1, description="of an archive's or a table's content all together, unpacked"
    )
    max_ratio: int = Field(200, ge=1, description="times that anything packed may inflate")
    max_shards: int = Field(100_000, ge=1, description="files that a pattern with *, ?, [] or {} may name")


LIMITS = Limits()
"""The defaults."""


def changed_limits(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of images without the limits, but for `max_pixels`, that have their default: so that what is computed of
    settings stays what it was before there were these."""
    later = {name: value for name, value in LIMITS.model_dump().items() if name != "max_pixels"}
    return {name: value for name, value in settings.items() if name not in later or value != later[name]}


def too_large(size_bytes: int, limits: Limits) -> str:
    """The reason for refusing a file of this size."""
    return f"{size_bytes:,} bytes are more than images.max_file_bytes ({limits.max_file_bytes:,})"


def inflates(limits: Limits) -> str:
    """What is wrong with what inflates further than `max_ratio` allows."""
    return f"it inflates more than images.max_ratio ({limits.max_ratio:,}) times"


def too_many(limits: Limits) -> str:
    """What is wrong with a source of more entries than `max_files` allows."""
    return f"it holds more files than images.max_files ({limits.max_files:,})"


def too_much(size_bytes: int, limits: Limits) -> str:
    """What is wrong with a source that holds more than `max_unpacked_bytes` allows."""
    return (
        f"it holds {size_bytes:,} bytes unpacked, more than images.max_unpacked_bytes ({limits.max_unpacked_bytes:,})"
    )


RAISE = "if that is meant to be, raise the setting"
"""What mends each of them."""
