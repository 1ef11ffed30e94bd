"""From the bytes of one image file to one square of checked pixels, or the reason why not.

`decode_image` is a pure function of (name, bytes, configuration): the same bytes give the same pixels in any process.
What is done to a picture, in this order:

1. The file must be PNG, JPEG, WebP, BMP or TIFF by its content, whatever its name says; PNG checksums are verified.
   Animations and files of several pages are refused. The first picture of a JPEG that carries more of them (MPO: depth
   or gain maps of phone cameras) is taken.
2. Number of pixels, longest side, shape and smallness are judged from the header, before anything is decoded.
3. The EXIF orientation is applied.
4. Colors become 8-bit RGB. Grey is repeated; palettes are looked up; CMYK, YCbCr and LAB are converted by Pillow,
   embedded color profiles are ignored. 16-bit grey is divided by 257 and rounded (32-bit integers likewise, if they
   fit into 16 bits); Pillow itself keeps the upper byte of 16-bit color. Floats must lie in [0, 1] and are multiplied
   by 255. Alpha, and a color that is declared transparent, are laid over `background`.
5. `crop` cuts the largest central square (of an odd remainder, the larger half falls at the right and at the bottom).
6. A square of another side than `size` is resized by Lanczos with 3 lobes, widened to antialias when it reduces; a
   square that already has the side is left as it is, bit by bit.

Shapes: S image side.
"""

import hashlib
import io
import re
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from PIL import Image, ImageColor

from cedm_ray.data.png import check_png, read_plain_png
from cedm_ray.errors import CedmError, InputDataError

if TYPE_CHECKING:
    # Pydantic is half of what a worker would import, and it needs the values alone.
    from cedm_ray.data.images_config import ImagesConfig

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF")
# JPEG's own limit; a longer side is a trick or a mistake, even where there are few pixels.
MAX_SIDE = 65_535
STRIP_PIXELS = 2**20

_SIGNATURES = {
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"\xff\xd8\xff": "JPEG",
    b"RIFF": "WebP",
    b"BM": "BMP",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
}
_STRANGERS = {b"GIF8": "a GIF image", b"%PDF": "a PDF document", b"%!PS": "PostScript", b"PK\3\4": "a zip archive"}
_EXIF_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class SourceImage(NamedTuple):
    """One good image. A tuple, because there are many: a frozen dataclass takes three times as long to make.

    name: relative POSIX path or member name. pixels: uint8 [3, S, S]. width, height: as stored, before rotation and
    crop. mode: Pillow's name of the stored color mode ("RGB", "P", "I;16", ...). sha256: hex, of the file's content, or
    of the pixels where the source holds pixels.
    """

    name: str
    pixels: np.ndarray
    width: int
    height: int
    mode: str
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """One image that is not used, and why."""

    name: str
    reason: str

    def __str__(self) -> str:
        return f"{printable(self.name)}: {self.reason}"


TOO_SMALL = "is smaller than images.size"
"""Part of the reason for refusing an image that is sound: the only one that other settings mend."""


class _Unusable(Exception):
    """The reason for a refusal, on its way out of the steps of decoding."""


def printable(text: str) -> str:
    """`text` with control characters (an ANSI escape in a file name, say) written as escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)


def decode_image(name: str, content: bytes | np.ndarray | Image.Image, config: "ImagesConfig") -> SourceImage | Refusal:
    """Bring one file's content, or pixels that need no decoding, to pixels as the module's docstring says.

    content: an array is uint8 [H, W, 3] or [H, W]. Raises InputDataError for an image that is not square where
    `config.crop` is "none": that is a decision to take, not an image to leave out.
    """
    with warnings.catch_warnings():
        forbid_warnings()
        return decode_without_warnings(name, content, config)


def forbid_warnings() -> None:
    """Make warnings errors, here and until they are told otherwise, all but those about metadata."""
    # A decoder that warns has guessed at the pixels. Broken metadata is no such guess.
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", message=r"(?i).*(exif|metadata)", category=UserWarning)


def decode_without_warnings(
    name: str, content: bytes | np.ndarray | Image.Image, config: "ImagesConfig"
) -> SourceImage | Refusal:
    """`decode_image` for a process in which `forbid_warnings` was called: once there, and not once for each image."""
    try:
        if isinstance(content, bytes):
            image, data = _open_image(content), content
        else:
            image = Image.fromarray(content) if isinstance(content, np.ndarray) else content
            data = image.tobytes()
        return _to_source_image(name, image, hashlib.sha256(data).hexdigest(), config)
    except CedmError:
        raise
    except _Unusable as error:
        return Refusal(name=name, reason=str(error))
    except Exception as error:
        # Decoders fed with foreign bytes raise whatever they come across; each of it means that the file is bad.
        return Refusal(name=name, reason=printable(str(error).strip()) or type(error).__name__)


def decode_entries(entries: Iterable[Any], config: "ImagesConfig") -> Iterator[SourceImage | Refusal]:
    """Decode what a source gives (`entries.py`), in its order; a Refusal passes through. Raises as `decode_image`."""
    for entry in entries:
        yield entry if isinstance(entry, Refusal) else decode_image(entry.name, entry.content, config)


@dataclass(slots=True)
class OneSize:
    """Holds all images of a set to the first one's side where `images.size` does not say it.

    first: (name, S) of the first good image; None before it.
    """

    first: tuple[str, int] | None = None

    def check(self, name: str, size: int) -> None:
        """Raises InputDataError naming both images where one has another side than the first."""
        if self.first is None:
            self.first = (name, size)
        if self.first[1] != size:
            sides = [f"{printable(n)} has side {s}" for n, s in (self.first, (name, size))]
            raise InputDataError(
                f"the images differ in size and images.size is not set: {sides[0]}, {sides[1]}",
                mend="set images.size to the side that all images shall have",
            )


def _to_source_image(name: str, image: Image.Image, sha256: str, config: "ImagesConfig") -> SourceImage:
    """Steps 2 to 6 of the module's docstring for an image of which only the header has been read."""
    width, height = image.size
    side, size = _judge_header(name, width, height, config)
    mode = image.mode
    image.load()
    # Only now: Pillow turns a TIFF upright while it loads it, and the tag is gone then.
    turn = _UPRIGHT.get(_orientation(image))
    if turn is not None:
        image = image.transpose(turn)
    image = _to_rgb(image, config.background)
    if image.size != (side, side):
        # Not resize's box: its filter would reach beyond the square.
        left, top = (image.width - side) // 2, (image.height - side) // 2
        image = image.crop((left, top, left + side, top + side))
    if side != size:
        image = image.resize((size, size), Image.Resampling.LANCZOS)
    # As `np.asarray`, with less of Python around it.
    rows = np.frombuffer(image.tobytes(), np.uint8).reshape(size, size, 3)
    pixels = np.ascontiguousarray(rows.transpose(2, 0, 1))
    return SourceImage(name=name, pixels=pixels, width=width, height=height, mode=mode, sha256=sha256)


def _orientation(image: Image.Image) -> int | None:
    """The EXIF orientation of a loaded image; None where it says none."""
    # Building Pillow's Exif is work for nothing where pixels alone came, or where these two formats say beforehand that
    # there is none.
    if image.format is None:
        return None
    if image.format in ("PNG", "JPEG") and not any("exif" in key.lower() or "xm" in key.lower() for key in image.info):
        return None
    return image.getexif().get(_EXIF_ORIENTATION)


def _open_image(data: bytes) -> Image.Image:
    if not data:
        raise _Unusable("the file is empty")
    if (plain := read_plain_png(data)) is not None:
        return plain
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.UnidentifiedImageError:
        raise _Unusable(_describe(data[:512])) from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        pixels = re.search(r"\d+", str(error))
        raise _Unusable(f"{int(pixels[0]):,} pixels are more than Pillow allows" if pixels else str(error)) from None
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":
        raise _Unusable(f"an animation or several pages ({frames} frames)")
    if image.format == "PNG":
        # Loading does not look at the checksums of the pixel chunks, and Pillow's verify() uses the image up.
        check_png(data)
    return image


def _describe(head: bytes) -> str:
    """What a file that no decoder takes looks like."""
    for signature, format_name in _SIGNATURES.items():
        if head.startswith(signature):
            return f"a {format_name} file with a damaged header"
    for signature, what in _STRANGERS.items():
        if head.startswith(signature):
            return f"{what}, not PNG, JPEG, WebP, BMP or TIFF"
    text = head.lstrip().lower()
    if text.startswith((b"<!doctype html", b"<html")):
        return "an HTML page, not an image"
    if text.startswith((b"<svg", b"<?xml")):
        return "an SVG or XML text, not PNG, JPEG, WebP, BMP or TIFF"
    return f"not PNG, JPEG, WebP, BMP or TIFF (it starts with {head[:8]!r})"


def _judge_header(name: str, width: int, height: int, config: "ImagesConfig") -> tuple[int, int]:
    """The side of the square to cut and the side to bring it to, in pixels."""
    if width < 1 or height < 1:
        raise _Unusable(f"{width}x{height} has no pixels")
    if max(width, height) > MAX_SIDE:
        raise _Unusable(f"{width}x{height} is longer than {MAX_SIDE:,} pixels")
    if width * height > config.max_pixels:
        raise _Unusable(f"{width}x{height} is more than images.max_pixels ({config.max_pixels:,})")
    if width != height and config.crop == "none":
        raise InputDataError(
            f"{printable(name)} is {width}x{height}, not square, and images.crop is none",
            mend="set images.crop to center, or make the images square",
        )
    side = min(width, height)
    size = config.size or side
    if side < size and not config.enlarge:
        raise _Unusable(f"{width}x{height} {TOO_SMALL} ({size}) and images.enlarge is false")
    return side, size


def _to_rgb(image: Image.Image, background: str) -> Image.Image:
    if image.mode == "F" or image.mode.startswith("I"):
        return Image.fromarray(_to_8_bits(np.asarray(image))).convert("RGB")
    if image.has_transparency_data:
        return _over_background(image, background)
    return image if image.mode == "RGB" else image.convert("RGB")


def _over_background(image: Image.Image, background: str) -> Image.Image:
    """Alpha laid over a color, a strip at a time: three pictures of 64 megapixels at once would take 732 MiB."""
    rows = max(1, STRIP_PIXELS // image.width)
    whole = Image.new("RGB", image.size)
    for top in range(0, image.height, rows):
        strip = image.crop((0, top, image.width, min(top + rows, image.height))).convert("RGBA")
        canvas = Image.new("RGBA", strip.size, ImageColor.getrgb(background))
        canvas.alpha_composite(strip)
        whole.paste(canvas.convert("RGB"), (0, top))
    return whole


def _to_8_bits(values: np.ndarray) -> np.ndarray:
    """Grey values of 16 bits, 32 bits or floats, [height, width], as uint8."""
    low, high = values.min(), values.max()
    if values.dtype.kind == "f":
        # Written so that NaN fails too.
        if not (low >= 0 and high <= 1):
            raise _Unusable(f"float values must lie in [0, 1], got [{low:g}, {high:g}]")
        return np.rint(values * 255).astype(np.uint8)
    if low < 0 or high > 65_535:
        raise _Unusable(f"integer values must lie in [0, 65535], got [{low}, {high}]")
    return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)


def format_name(content: bytes) -> str:
    """PNG, JPEG, WebP, BMP or TIFF, by the first bytes of a file that `decode_image` takes."""
    return next(name for signature, name in _SIGNATURES.items() if content.startswith(signature))
