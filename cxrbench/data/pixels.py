"""Files to pixels: every image as grey uint8, resized; pixel_cache.py keeps them.

Only PNG and JPEG are opened. Colour is turned to grey, 12- and 16-bit are scaled, alpha is dropped,
EXIF rotation is applied; several frames, more than 64 megapixels or fewer than 16 px are refused.
"""

import struct
import warnings
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError

from cxrbench.core.errors import DataError
from cxrbench.core.patience import patient
from cxrbench.core.spec import Reading

Grey = npt.NDArray[np.uint8]
MAX_PIXELS = 64_000_000
MIN_SIDE = 16
DECODER = 1  # raise when `decode` or `resize` changes any pixel: old caches are then not used
# What Pillow raises for damaged bytes besides OSError.
_BROKEN = (SyntaxError, ValueError, EOFError, TypeError, LookupError, OverflowError, struct.error)
# Pillow's own `exif_transpose` also writes the other tags anew, and fails on odd ones.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
SUFFIXES = (".png", ".jpg", ".jpeg")
# Pillow only warns between 89 and 178 megapixels; `_grey` refuses from MAX_PIXELS on.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


class UnreadableImageError(DataError):
    """An image that cannot be used, and why."""


@patient
def decode(path: Path) -> Grey:
    """A PNG or JPEG file as grey uint8 [H, W]; UnreadableImageError says what is wrong with it."""
    # Another library may have switched this on; half-grey images must never enter.
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    try:
        with Image.open(path, formats=("PNG", "JPEG")) as image:
            return _grey(image, path)
    except UnreadableImageError:
        raise
    except UnidentifiedImageError:
        raise UnreadableImageError(f"{path}: {_what_is(path)}, not a PNG or JPEG image") from None
    except Image.DecompressionBombError:
        raise UnreadableImageError(f"{path}: more than {MAX_PIXELS:,} pixels") from None
    except (*_BROKEN, OSError) as error:
        raise UnreadableImageError(f"{path}: {error or type(error).__name__}") from None


def _what_is(path: Path) -> str:
    head = path.open("rb").read(200) if path.is_file() else b""
    if not head:
        return "an empty file"
    if head.startswith(b"version https://git-lfs"):
        return "a git-lfs pointer (run git lfs pull)"
    if b"<html" in head.lower() or b"<!doctype" in head.lower():
        return "an HTML page (a failed download)"
    return "an unknown format"


def _grey(image: Image.Image, path: Path) -> Grey:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise UnreadableImageError(f"{path}: {width} x {height} is over {MAX_PIXELS:,} pixels")
    if min(width, height) < MIN_SIDE:
        raise UnreadableImageError(f"{path}: {width} x {height} is smaller than {MIN_SIDE} px")
    if getattr(image, "n_frames", 1) > 1:
        raise UnreadableImageError(f"{path}: {getattr(image, 'n_frames', 0)} frames; expected one")
    image.load()
    turn = _TURNS.get(image.getexif().get(ExifTags.Base.Orientation) or 1)
    upright = image if turn is None else image.transpose(turn)
    if upright.mode.startswith("I"):
        return _from_deep(np.asarray(upright), path)
    if upright.mode == "F":
        raise UnreadableImageError(f"{path}: float pixels; save it as 8 or 16 bit")
    if upright.mode in ("P", "PA"):
        upright = upright.convert("RGBA")
    if upright.mode in ("RGBA", "LA"):
        # Alpha is dropped, not blended: the films' alpha channels carry nothing.
        upright = upright.convert("RGB" if upright.mode == "RGBA" else "L")
    return np.asarray(upright.convert("L"))


def _from_deep(values: npt.NDArray[Any], path: Path) -> Grey:
    """12- or 16-bit values scaled to 8 bit; Pillow's own conversion would clip nearly all to white."""
    values = values.astype(np.int64)
    top = int(values.max())
    if values.min() < 0 or top > 65535:
        raise UnreadableImageError(f"{path}: values outside 0-65535")
    full = 4095 if top <= 4095 else 65535
    return np.rint(values * (255.0 / full)).astype(np.uint8)


def resize(image: Grey, size: int) -> Grey:
    """[H, W] squeezed to [size, size]; area averaging when shrinking, linear when growing."""
    return _resized(image, size, size)


def read_at(image: Grey, side: int, reading: Reading) -> Grey:
    """[H, W] as `reading` has it: [side, side], or with `short_side` [h, w] whose shorter side is `side`."""
    if reading == "squeeze":
        return resize(image, side)
    height, width = kept_shape(image.shape, side)
    whole = _resized(image, height, width)
    if reading == "short_side":
        return whole
    top, left = centre_of((height, width), side)
    return whole[top : top + side, left : left + side]


def kept_shape(shape: tuple[int, ...], side: int) -> tuple[int, int]:
    """(height, width) of a film [H, W] whose shorter side is scaled to `side`, to the nearest pixel."""
    height, width = shape
    short = min(height, width)
    return round(height * side / short), round(width * side / short)


def centre_of(shape: tuple[int, int], side: int) -> tuple[int, int]:
    """(top, left) of the square in the middle of a film whose shorter side is `side`."""
    return (shape[0] - side) // 2, (shape[1] - side) // 2


def _resized(image: Grey, height: int, width: int) -> Grey:
    if image.shape == (height, width):
        return image
    shrinks = image.shape[0] * image.shape[1] > height * width
    method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(image, (width, height), interpolation=method), dtype=np.uint8)
