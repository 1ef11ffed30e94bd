"""Which images, and what is made of each: the configuration of `decoding.py`."""

from typing import Literal

from pydantic import Field

from cedm_ray.data.limits import Limits


class ImagesConfig(Limits):
    """Which images, how each of them is brought to [3, S, S] uint8, and how much of them is let in (`limits.py`)."""

    source: str | None = Field(
        None,
        description="a folder, zip, tar, npz, Parquet file, ... of images, an imported set, or sklearn:digits; None: "
        "the command line's --images names it",
    )
    size: int | None = Field(
        None, ge=1, le=4096, description="S in pixels; None: the images' own side, which must then be one and the same"
    )
    crop: Literal["none", "center"] = Field(
        "none", description="center: the largest central square; none: an image that is not square is an error"
    )
    enlarge: bool = Field(
        False, description="whether an image smaller than `size` is enlarged; otherwise it is refused"
    )
    background: str = Field(
        "black",
        pattern=r"^(black|white|#[0-9a-fA-F]{6})$",
        description="the color under alpha: black, white or #rrggbb",
    )
    on_bad: Literal["fail", "skip"] = Field("skip", description="a refused image ends the import, or is left out")
    max_bad_fraction: float = Field(
        0.01, ge=0, le=1, description="with on_bad skip: the largest refused part of all images, in [0, 1]"
    )
