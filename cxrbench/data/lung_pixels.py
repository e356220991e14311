"""Pixels of the lung masks' data sets: JSRT's raw films, masks of any kind, black borders."""

import struct
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFile, UnidentifiedImageError

from cxrbench.core.patience import patient
from cxrbench.data.pixels import (
    MAX_PIXELS,
    MIN_SIDE,
    Grey,
    UnreadableImageError,
    decode,
)

Mask = npt.NDArray[np.bool_]
JSRT_SIDE = 2048
JSRT_BYTES = JSRT_SIDE * JSRT_SIDE * 2
JSRT_LEVELS = 4096
# A row or column at the edge is border while none of its pixels is brighter than this, of 255.
BORDER_GREY = 8
# More pixels that are neither dark nor bright than this make a picture, no mask.
MOST_GREY = 0.1
# What Pillow raises for damaged bytes besides OSError.
_BROKEN = (SyntaxError, ValueError, EOFError, TypeError, LookupError, OverflowError, struct.error)
# The files are inverted: bones are dark in them.
_JSRT_GREYS = np.rint((1 - np.arange(JSRT_LEVELS) / JSRT_LEVELS) * 255).astype(np.uint8)


@patient
def read_jsrt(path: Path) -> Grey:
    """A raw film of JSRT as grey uint8 [2048, 2048], bones bright.

    The file is headless: 2048 x 2048 big-endian 16-bit numbers from 0 to 4095, the brightest 0.
    UnreadableImageError for any other length and for larger numbers.
    """
    try:
        with path.open("rb") as stream:
            data = stream.read(JSRT_BYTES + 1)
    except OSError as error:
        raise UnreadableImageError(f"{path}: {error}") from None
    if len(data) != JSRT_BYTES:
        given = "more" if len(data) > JSRT_BYTES else f"{len(data):,}"
        raise UnreadableImageError(
            f"{path}: {given} bytes; a film of JSRT has {JSRT_BYTES:,} "
            f"({JSRT_SIDE} x {JSRT_SIDE} of 16 bit); get the file again"
        )
    values = np.frombuffer(data, dtype=">u2")
    if (top := int(values.max())) >= JSRT_LEVELS:
        raise UnreadableImageError(
            f"{path}: a value of {top}; a film of JSRT has 12 bit, 0-{JSRT_LEVELS - 1}, the high byte "
            "first; get the original file"
        )
    return np.asarray(_JSRT_GREYS[values].reshape(JSRT_SIDE, JSRT_SIDE))


def read_masks(paths: Sequence[Path]) -> Mask:
    """The lungs [H, W] of one or more mask files (left, right), joined.

    UnreadableImageError names the file that is no mask, or of another size than the first.
    """
    first, *others = paths
    lungs = _read_mask(first)
    for path in others:
        mask = _read_mask(path)
        if mask.shape != lungs.shape:
            raise UnreadableImageError(
                f"{path}: {_size(mask)}, but {first.name} beside it is {_size(lungs)}"
            )
        lungs = lungs | mask
    return lungs


def fit_mask(lungs: Mask, film: Grey, path: Path) -> Mask:
    """The mask [h, w] brought to the film's size [H, W]; its proportions must be the film's.

    `path` is for the message of the UnreadableImageError.
    """
    if lungs.shape == film.shape:
        return lungs
    (height, width), (rows, columns) = film.shape, lungs.shape
    # A side of a reduced mask is rounded to whole pixels.
    if abs(rows * width - columns * height) > max(width, height):
        raise UnreadableImageError(
            f"{path}: {_size(lungs)} does not have the proportions of its film, {_size(film)}; "
            "is it the mask of another image?"
        )
    # Plain INTER_NEAREST shifts by up to half a pixel.
    scaled = cv2.resize(
        lungs.astype(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST_EXACT
    )
    return np.asarray(scaled, dtype=np.bool_)


def inside_border(film: Grey) -> tuple[slice, slice]:
    """Rows and columns of a film [H, W] without the black stripes at its edges.

    Cautious: a stripe ends at the first line with a single pixel over BORDER_GREY, so that nothing
    visible is ever cut off. A film that is black all over stays whole.
    """
    lit = film > BORDER_GREY
    rows, columns = np.flatnonzero(lit.any(axis=1)), np.flatnonzero(lit.any(axis=0))
    if not len(rows):
        return slice(0, film.shape[0]), slice(0, film.shape[1])
    return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)


def _size(pixels: npt.NDArray[np.generic]) -> str:
    return f"{pixels.shape[1]} x {pixels.shape[0]}"


def _read_mask(path: Path) -> Mask:
    """A file of 0 and 255, of 0 and 1, or of greys near them, as True inside."""
    grey = _decode_gif(path) if path.suffix.lower() == ".gif" else decode(path)
    top = int(grey.max())
    if top <= 1:
        return grey > 0
    middle = float(((grey >= 64) & (grey < 192)).mean())
    if top < 128 or middle > MOST_GREY:
        raise UnreadableImageError(
            f"{path}: no mask: its largest value is {top} and {middle:.0%} of it is grey; a mask has 0 "
            "outside and 255 (or 1) inside"
        )
    return grey >= 128


@patient
def _decode_gif(path: Path) -> Grey:
    """A GIF as grey uint8 [H, W], under the same limits as PNG and JPEG; only masks come as GIF."""
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    try:
        with Image.open(path, formats=("GIF",)) as image:
            width, height = image.size
            if width * height > MAX_PIXELS or min(width, height) < MIN_SIDE:
                raise UnreadableImageError(
                    f"{path}: {width} x {height}; a mask has {MIN_SIDE} px or more a side and at most "
                    f"{MAX_PIXELS:,} pixels"
                )
            if _has_second_frame(image):
                raise UnreadableImageError(f"{path}: several frames; expected one")
            return np.asarray(image.convert("L"))
    except UnreadableImageError:
        raise
    except UnidentifiedImageError:
        raise UnreadableImageError(f"{path}: not a GIF image") from None
    except Image.DecompressionBombError:
        raise UnreadableImageError(f"{path}: more than {MAX_PIXELS:,} pixels") from None
    except (*_BROKEN, OSError) as error:
        raise UnreadableImageError(f"{path}: {error or type(error).__name__}") from None


def _has_second_frame(image: Image.Image) -> bool:
    # Counting all frames would read a hostile file to its end. A failed seek goes back to the first.
    try:
        image.seek(1)
    except EOFError:
        return False
    return True
