"""A DICOM film's pixels as grey uint8: decoded, rescaled, windowed and turned so that air is black.

The steps are pydicom's. This file decides which of them apply, and gives no decoder anything that could
unpack to more than the film: GDCM ends the process on damaged JPEG, so each syntax has one decoder here.
"""

import struct
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset
from pydicom.encaps import generate_frames
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.processing import apply_modality_lut, apply_voi, apply_windowing
from pydicom.uid import (
    JPEG2000,
    UID,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

from cxrbench.data.pixels import MAX_PIXELS, MIN_SIDE, Grey

Values = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
# One decoder a syntax, so that the pixels do not depend on what else is installed.
DECODERS = {
    RLELossless: "pydicom",
    JPEGBaseline8Bit: "pillow",
    JPEG2000Lossless: "pillow",
    JPEG2000: "pillow",
    JPEGExtended12Bit: "pylibjpeg",
    JPEGLossless: "pylibjpeg",
    JPEGLosslessSV1: "pylibjpeg",
    JPEGLSLossless: "pylibjpeg",
    JPEGLSNearLossless: "pylibjpeg",
}
# What decides the grey values, beside the pixels themselves.
RULES = (
    *("PhotometricInterpretation", "PixelRepresentation", "BitsAllocated", "BitsStored"),
    *("PixelPaddingValue", "PixelPaddingRangeLimit", "PresentationLUTShape"),
    *("ModalityLUTSequence", "RescaleSlope", "RescaleIntercept"),
    *("VOILUTSequence", "WindowCenter", "WindowWidth", "VOILUTFunction"),
)
IMAGE = ("Rows", "Columns", "SamplesPerPixel", "NumberOfFrames", "HighBit", "PixelData")
FARTHEST = 1e30  # beyond any window
_START_OF_FRAME = {
    0xC0,
    0xC1,
    0xC2,
    0xC3,
    0xC5,
    0xC6,
    0xC7,
    0xC9,
    0xCA,
    0xCB,
    0xCD,
    0xCE,
    0xCF,
    0xF7,
}


class MissingDecoderError(Exception):
    """The file may be fine, but what decodes it is not installed."""


def to_grey(ds: Dataset) -> Grey:
    """The image of a data set as grey uint8 [H, W], bright where little radiation passed.

    1. Modality LUT, or rescale slope and intercept.
    2. The first VOI LUT, else the first window (LINEAR, LINEAR_EXACT or SIGMOID). With neither, all that
       8 bits can hold, or for deeper pixels the least to the greatest value that is no padding.
    3. MONOCHROME1 or a presentation LUT shape INVERSE turn it over, once (the standard asks for both).

    Raises ValueError and whatever pydicom raises for an image that cannot be used, and
    MissingDecoderError.
    """
    rules = _rules(ds)
    stored = _stored(ds)
    low, high = int(stored.min()), int(stored.max())
    # Every step is a function of the stored value, of which there are 65,536 at most. Looked up by
    # rows, since an index takes eight bytes a pixel.
    present = np.zeros(high - low + 1, np.bool_)
    for row in stored:
        present[row.astype(np.int64) - low] = True
    tones = _tones(np.arange(low, high + 1), present, rules)
    grey = np.empty(stored.shape, np.uint8)
    for shown, row in zip(grey, stored, strict=True):
        shown[:] = tones[row.astype(np.int64) - low]
    return grey


def _rules(ds: Dataset) -> Dataset:
    """The elements of RULES that are not empty; complaints name those that contradict each other."""
    rules = Dataset()
    rules.file_meta = ds.file_meta
    for keyword in RULES:
        if keyword in ds and not ds[keyword].is_empty:
            rules.add(ds[keyword])
    meaning = rules.get("PhotometricInterpretation")
    if meaning not in ("MONOCHROME1", "MONOCHROME2"):
        raise ValueError(f"{meaning or 'no PhotometricInterpretation'}; expected a grey image")
    for pair in (("WindowCenter", "WindowWidth"), ("RescaleSlope", "RescaleIntercept")):
        given = [keyword for keyword in pair if keyword in rules]
        if len(given) == 1:
            raise ValueError(f"{given[0]} without {(set(pair) - set(given)).pop()}")
    return rules


def _tones(values: Values, present: npt.NDArray[np.bool_], rules: Dataset) -> Grey:
    """The grey [V] of each stored value; `present` tells which of them the image has."""
    with np.errstate(over="ignore", invalid="ignore"):  # told below; SIGMOID means the limit
        shown, bottom, top = _shown(values, present, rules)
    if not (np.isfinite(shown).all() and np.isfinite((bottom, top)).all()):
        raise ValueError("rescale or window give values that are no numbers")
    if top == bottom:
        return np.zeros(len(values), np.uint8)
    share = np.clip((shown - bottom) / (top - bottom), 0, 1)
    shape = str(rules.get("PresentationLUTShape", "")).strip().upper()
    if rules.PhotometricInterpretation == "MONOCHROME1" or shape == "INVERSE":
        share = 1 - share
    return np.rint(255 * share).astype(np.uint8)


def _shown(
    values: Values, present: npt.NDArray[np.bool_], rules: Dataset
) -> tuple[Floats, float, float]:
    """What a display gets for each stored value [V], and the ends of its range."""
    modality = apply_modality_lut(values, rules).astype(np.float64)
    if "VOILUTSequence" in rules:
        return _looked_up(modality, rules)
    if "WindowCenter" in rules:
        # With a negative slope the ends are swapped, and the values between them as well.
        ends = apply_windowing(np.array([-FARTHEST, FARTHEST]), rules)
        return apply_windowing(modality, rules), float(ends[0]), float(ends[1])
    if rules.BitsStored <= 8 and "ModalityLUTSequence" not in rules:
        lowest = -(2 ** (rules.BitsStored - 1)) if rules.PixelRepresentation else 0
        limits = np.array([lowest, lowest + 2**rules.BitsStored - 1])
        held = apply_modality_lut(limits, rules)
    else:
        kept = present & ~_padding(values, rules)
        held = modality[kept if kept.any() else present]
    return modality, float(held.min()), float(held.max())


def _looked_up(modality: Floats, rules: Dataset) -> tuple[Floats, float, float]:
    """The first VOI LUT. pydicom keeps indices in the type of its entries, so they are made to fit."""
    given = rules.VOILUTSequence[0]
    entries, first, bits = given.LUTDescriptor
    item = Dataset()
    item.LUTDescriptor = [entries, first, bits if bits > 8 else 16]
    item.add(given["LUTData"])
    wide = Dataset()
    wide.file_meta = rules.file_meta
    wide.VOILUTSequence = [item]
    inside = np.clip(np.rint(modality), first, first + (entries or 2**16) - 1).astype(np.int64)
    return apply_voi(inside, wide).astype(np.float64), 0.0, 2.0**bits - 1


def _padding(values: Values, rules: Dataset) -> npt.NDArray[np.bool_]:
    """Which stored values [V] say that there is no image."""
    if "PixelPaddingValue" not in rules:
        return np.zeros(len(values), np.bool_)
    one = int(rules.PixelPaddingValue)
    ends = np.array([one, int(rules.get("PixelPaddingRangeLimit", one))])
    # Some writers give the number unsigned although the pixels are signed.
    full = 2**rules.BitsAllocated
    ends %= full
    if rules.PixelRepresentation:
        ends[ends >= full // 2] -= full
    padding: npt.NDArray[np.bool_] = (values >= ends.min()) & (values <= ends.max())
    return padding


def _stored(ds: Dataset) -> npt.NDArray[Any]:
    """The stored values [H, W], signed or not, from pixel data that cannot unpack to more."""
    rows, columns = _size(ds)
    syntax = ds.file_meta.TransferSyntaxUID
    pixels = rows * columns
    if syntax.is_encapsulated:
        frames = list(islice(generate_frames(ds.PixelData, number_of_frames=1), 2))
        if len(frames) != 1:
            raise ValueError("the pixel data hold no frame, or more than one")
        plugin = _plugin(syntax)
        if syntax == RLELossless:
            _check_runs(frames[0], pixels)
        else:
            _check_codestream(frames[0], rows, columns)
    else:
        plugin = ""
        if len(ds.PixelData) >= 2 * pixels * ds.BitsAllocated // 8:
            raise ValueError(f"{len(ds.PixelData):,} bytes of pixels are more than one frame")
    options: Any = {"allow_excess_frames": False}  # pydicom's annotation of it is wrong
    values, _ = get_decoder(syntax).as_array(ds, raw=True, decoding_plugin=plugin, **options)
    return np.asarray(values)


def _size(ds: Dataset) -> tuple[int, int]:
    """Rows and columns of a single grey frame within bounds; ValueError otherwise."""
    if not ds.get("PixelData"):
        raise ValueError("no pixel data; is the file cut short?")
    rows, columns = int(ds.get("Rows") or 0), int(ds.get("Columns") or 0)
    if rows * columns > MAX_PIXELS:
        raise ValueError(f"{columns} x {rows} is over {MAX_PIXELS:,} pixels")
    if min(rows, columns) < MIN_SIDE:
        raise ValueError(f"{columns} x {rows} is smaller than {MIN_SIDE} px")
    if ds.SamplesPerPixel != 1 or int(ds.get("NumberOfFrames") or 1) != 1:
        raise ValueError("not a single grey frame")
    if ds.BitsAllocated not in (8, 16) or not 1 <= ds.BitsStored <= ds.BitsAllocated:
        raise ValueError(f"{ds.BitsStored} of {ds.BitsAllocated} bits; films have 8 or 16")
    return rows, columns


def _plugin(syntax: UID) -> str:
    """pydicom's name of the one decoder that a syntax may have."""
    if syntax not in DECODERS:
        raise ValueError(f"transfer syntax {syntax.name} is not read; save it uncompressed")
    plugin = DECODERS[syntax]
    if plugin not in get_decoder(syntax).available_plugins:
        raise MissingDecoderError(
            f"transfer syntax {syntax.name} needs {plugin}: pip install 'cxrbench[dicom]'"
        )
    return plugin


def _check_runs(frame: bytes, pixels: int) -> None:
    """ValueError when a segment of run lengths would unpack to more than twice its pixels."""
    count, *offsets = struct.unpack_from("<16L", frame)
    ends = [*offsets[1:count], len(frame)]
    for start, end in zip(offsets[:count], ends, strict=False):
        position = length = 0
        segment = frame[start:end]
        while position < len(segment):
            head = segment[position]
            length += head + 1 if head < 128 else (257 - head) % 129
            position += head + 2 if head < 128 else 2 if head > 128 else 1
            if length > 2 * pixels:
                raise ValueError("its run lengths unpack to more than the image")


def _check_codestream(frame: bytes, rows: int, columns: int) -> None:
    """ValueError unless a JPEG of any kind is whole, grey and of the size that the header says.

    Decoders allocate by the codestream's own size, and some take a cut one for complete.
    """
    if b"\xff\xd9" not in frame[-64:]:
        raise ValueError("the compressed image is cut short")
    try:
        found = _codestream_shape(frame)
    except struct.error:  # it ends within its header
        raise ValueError("the compressed image has a damaged header") from None
    if found != (rows, columns, 1):
        height, width, samples = found
        raise ValueError(
            f"the compressed image is {width} x {height} with {samples} channels, "
            f"the header says {columns} x {rows} with 1"
        )


def _codestream_shape(frame: bytes) -> tuple[int, int, int]:
    """Rows, columns and channels as a JPEG, JPEG-LS or JPEG 2000 codestream gives them."""
    if frame.startswith(b"\xff\x4f\xff\x51"):  # JPEG 2000
        right, bottom, left, top = struct.unpack_from(">4L", frame, 8)
        return bottom - top, right - left, struct.unpack_from(">H", frame, 40)[0]
    if not frame.startswith(b"\xff\xd8"):
        raise ValueError("the compressed image is neither JPEG nor a JPEG 2000 codestream")
    position = 2
    while True:
        mark, kind, length = struct.unpack_from(">BBH", frame, position)
        if mark != 0xFF:
            raise ValueError("the compressed image has a damaged header")
        if kind in _START_OF_FRAME:
            rows, columns, samples = struct.unpack_from(">HHB", frame, position + 5)
            return rows, columns, samples
        # A marker may be preceded by fill bytes.
        position += 1 if kind == 0xFF else 2 + length
