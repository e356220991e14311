"""DICOM folders: grey values against formulas written out here, what is taken, and hostile files."""

import io
import json
import os
import subprocess
import sys
import tracemalloc
import unicodedata
import warnings
import zlib
from pathlib import Path

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
    RLELossless,
)

from cxrbench.core.errors import DataError, MissingInputError, UsageError
from cxrbench.core.registry import Registry
from cxrbench.core.store import Store
from cxrbench.data import dicom_pixels
from cxrbench.data.dicom import Dicom, DicomParams
from cxrbench.data.dicom_file import FILE_BYTES, HEADER_BYTES, decode_dicom, find_files, read_header
from cxrbench.data.dicom_pixels import to_grey
from cxrbench.data.fakes import fake_patients
from cxrbench.data.index import Index, join_twins
from cxrbench.data.painter import paint_image
from cxrbench.data.pixels import MAX_PIXELS, UnreadableImageError, decode
from cxrbench.data.splits import find_split
from cxrbench.data.verify import verify_dataset

# What pydicom says of the files below, which the reader keeps to itself.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning")
BUNDLED = Path(pydicom.__file__).parent / "data" / "test_files"
CR, CT = "1.2.840.10008.5.1.4.1.1.1", "1.2.840.10008.5.1.4.1.1.2"
RAMP = np.arange(0, 4096, 7)[:400].reshape(20, 20)  # 12-bit values, not all of them


def film(values=RAMP, bits=12, syntax=ExplicitVRLittleEndian, **elements) -> Dataset:
    """A CR film with the stored values [H, W]; `elements` are further elements, or other values."""
    values = np.asarray(values)
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = syntax
    ds.SOPClassUID, ds.SOPInstanceUID, ds.Modality, ds.PatientID = CR, "1.2.3", "CR", "p1"
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.Rows, ds.Columns = values.shape
    ds.BitsAllocated = 8 if bits <= 8 else 16
    ds.BitsStored, ds.HighBit, ds.PixelRepresentation = bits, bits - 1, int(values.min() < 0)
    order = ">" if syntax == ExplicitVRBigEndian else "<"
    kind = "i" if values.min() < 0 else "u"
    ds.PixelData = values.astype(f"{order}{kind}{ds.BitsAllocated // 8}").tobytes()
    ds["PixelData"].VR = "OB" if bits <= 8 else "OW"
    for keyword, value in elements.items():
        setattr(ds, keyword, value)
    return ds


def packed(stream: bytes, syntax, **elements) -> Dataset:
    """A film of RAMP's size whose pixels are a compressed stream."""
    ds = film(syntax=syntax, **elements)
    ds.PixelData = encapsulate([stream])
    ds["PixelData"].VR = "OB"
    ds["PixelData"].is_undefined_length = True
    return ds


def save(ds: Dataset, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    ds.save_as(path, enforce_file_format=True)
    return path


def lut(first: int, entries, bits: int, signed: bool = False) -> list[Dataset]:
    item = Dataset()
    item.LUTDescriptor = [len(entries), first, bits]
    item["LUTDescriptor"].VR = "SS" if signed else "US"
    item.LUTData = np.asarray(entries, "<u2").tobytes()
    item["LUTData"].VR = "OW"
    return [item]


def grey(share) -> np.ndarray:
    return np.rint(255 * np.clip(share, 0, 1)).astype(np.uint8)


def spread(values) -> np.ndarray:
    """From the least to the greatest."""
    return grey((values - values.min()) / (values.max() - values.min()))


# Pixels


def test_eight_bits_are_taken_as_they_stand():
    values = RAMP % 200 + 20
    np.testing.assert_array_equal(to_grey(film(values, 8)), values)
    np.testing.assert_array_equal(
        to_grey(film(values, 8, PhotometricInterpretation="MONOCHROME1")), 255 - values
    )
    np.testing.assert_array_equal(to_grey(film(values - 120, 8)), values - 120 + 128)
    ds = film(values, 8, RescaleSlope=-1, RescaleIntercept=255)
    np.testing.assert_array_equal(to_grey(ds), 255 - values)
    # A window of everything that 8 bits hold is the same.
    same = film(values, 8, WindowCenter=128, WindowWidth=256)
    np.testing.assert_array_equal(to_grey(same), values)


def test_seven_bits_fill_the_range():
    np.testing.assert_array_equal(to_grey(film(RAMP % 128, 7)), grey(RAMP % 128 / 127))


@pytest.mark.parametrize("shift", [0, 1000, -2000])
@pytest.mark.parametrize("slope", [None, 2.5, -0.5])
def test_deep_pixels_without_a_window_span_what_is_there(shift, slope):
    ds = film(RAMP + shift, 16)
    if slope is not None:
        ds.RescaleSlope, ds.RescaleIntercept = slope, -7
    expected = spread(RAMP if (slope or 1) > 0 else -RAMP)
    np.testing.assert_array_equal(to_grey(ds), expected)
    ds.PhotometricInterpretation = "MONOCHROME1"
    np.testing.assert_allclose(to_grey(ds), 255 - expected.astype(int), atol=1)


def window(x, center, width, function):
    """PS3.3 C.11.2.1.2 and C.11.2.1.3 as shares of the output."""
    if function == "LINEAR":
        return (x - (center - 0.5)) / (width - 1) + 0.5
    if function == "LINEAR_EXACT":
        return (x - center) / width + 0.5
    return 1 / (1 + np.exp(-4 * (x - center) / width))


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
@pytest.mark.parametrize(("slope", "intercept"), [(1, 0), (0.5, -300), (-2, 5000)])
@pytest.mark.parametrize("shift", [0, -2048])
def test_windows_follow_the_standard(function, slope, intercept, shift):
    values = RAMP + shift
    x = slope * values + intercept
    center, width = float(np.median(x)) + 11, float(np.ptp(x)) / 3
    ds = film(values, RescaleSlope=slope, RescaleIntercept=intercept, VOILUTFunction=function)
    ds.WindowCenter, ds.WindowWidth = round(center, 1), round(width, 1)
    expected = grey(window(x, round(center, 1), round(width, 1), function))
    assert len(set(expected.ravel())) > 50
    np.testing.assert_allclose(to_grey(ds), expected.astype(int), atol=1)


def test_of_several_windows_the_first_is_used():
    one = film(WindowCenter=1000, WindowWidth=500)
    two = film(WindowCenter=["1000", "2000"], WindowWidth=["500", "50"])
    np.testing.assert_array_equal(to_grey(two), to_grey(one))


@pytest.mark.parametrize("bits", [8, 10, 12, 16])
@pytest.mark.parametrize("first", [0, 500, -600])
def test_a_table_goes_before_the_window(bits, first):
    entries = np.sort(np.random.default_rng(bits).integers(0, 2**bits, 2000))
    values = RAMP - 800 if first < 0 else RAMP
    ds = film(values, 12, WindowCenter=10, WindowWidth=20)
    ds.VOILUTSequence = lut(first, entries, bits, signed=first < 0)
    inside = np.clip(values - first, 0, len(entries) - 1)
    np.testing.assert_array_equal(to_grey(ds), grey(entries[inside] / (2**bits - 1)))


def test_a_table_of_65536_entries_after_a_rescale():
    ds = film(RAMP, RescaleSlope=0.5, RescaleIntercept=10.25)
    ds.VOILUTSequence = lut(0, np.arange(65536)[::-1], 16)
    ds.VOILUTSequence[0].LUTDescriptor = [0, 0, 16]
    np.testing.assert_array_equal(to_grey(ds), grey(1 - np.rint(0.5 * RAMP + 10.25) / 65535))


def test_values_beyond_a_table_get_its_ends():
    ds = film(RAMP, RescaleSlope=40, RescaleIntercept=-5000)
    ds.VOILUTSequence = lut(100, np.arange(2000) + 50, 12)
    inside = np.clip(40 * RAMP - 5100, 0, 1999)
    assert (40 * RAMP).max() > 65536 + 5100
    np.testing.assert_array_equal(to_grey(ds), grey((inside + 50) / 4095))


def test_a_modality_table_replaces_rescaling():
    entries = np.arange(4096)[::-1] * 3
    ds = film(ModalityLUTSequence=lut(0, entries, 16))
    np.testing.assert_array_equal(to_grey(ds), spread(entries[RAMP]))
    ds.WindowCenter, ds.WindowWidth = 6000, 3000
    np.testing.assert_array_equal(to_grey(ds), grey(window(entries[RAMP], 6000, 3000, "LINEAR")))


@pytest.mark.parametrize("limit", [None, -1990])
@pytest.mark.parametrize("unsigned", [False, True])
def test_padding_is_no_part_of_the_range(limit, unsigned):
    values = RAMP - 1000
    values[0, :5], values[1, :5] = -2000, -1990 if limit else -2000
    ds = film(values, 16)
    for keyword, value in (("PixelPaddingValue", -2000), ("PixelPaddingRangeLimit", limit)):
        if value is not None:
            setattr(ds, keyword, value + 65536 if unsigned else value)
            ds[keyword].VR = "US" if unsigned else "SS"
    kept = values[values > -1500]
    expected = grey((values - kept.min()) / (kept.max() - kept.min()))
    assert (expected == 0).sum() >= 10
    np.testing.assert_array_equal(to_grey(ds), expected)


def test_padding_of_unsigned_pixels_may_be_written_as_signed():
    values = RAMP.copy()
    values[0, 0] = 65535
    ds = film(values, 16, PixelPaddingValue=-1)
    ds["PixelPaddingValue"].VR = "SS"
    expected = spread(RAMP[RAMP > 0])
    np.testing.assert_array_equal(to_grey(ds).ravel()[1:], expected)


def test_an_image_of_one_value_is_black():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not to_grey(film(np.full((20, 20), 7), PixelPaddingValue=7)).any()


def test_bits_beyond_those_stored_are_ignored():
    dirty = RAMP | 0xB000
    np.testing.assert_array_equal(to_grey(film(dirty, 12)), spread(RAMP))
    signed = film((RAMP - 2000) & 0xFFF, 12, PixelRepresentation=1)
    np.testing.assert_array_equal(to_grey(signed), spread(RAMP))


@pytest.mark.parametrize(
    ("meaning", "shape", "turned"),
    [
        ("MONOCHROME1", "", True),
        ("MONOCHROME1", "INVERSE", True),
        ("MONOCHROME1", "IDENTITY", True),
        ("MONOCHROME2", "INVERSE", True),
        ("MONOCHROME2", "IDENTITY", False),
    ],
)
def test_films_are_turned_over_once(meaning, shape, turned):
    ds = film(RAMP % 256, 8, PhotometricInterpretation=meaning, PresentationLUTShape=shape)
    expected = 255 - RAMP % 256 if turned else RAMP % 256
    np.testing.assert_array_equal(to_grey(ds), expected)


def test_empty_elements_say_nothing():
    names = ("RescaleSlope", "RescaleIntercept", "WindowCenter", "WindowWidth", "PixelPaddingValue")
    ds = film(VOILUTSequence=[], ModalityLUTSequence=[], **dict.fromkeys(names, None))
    np.testing.assert_array_equal(to_grey(ds), spread(RAMP))


@pytest.mark.parametrize(
    ("elements", "message"),
    [
        ({"WindowCenter": 5}, "WindowCenter without WindowWidth"),
        ({"RescaleSlope": 5}, "RescaleSlope without RescaleIntercept"),
        ({"WindowCenter": 5, "WindowWidth": 0}, "Window Width"),
        ({"WindowCenter": 5, "WindowWidth": 9, "VOILUTFunction": "CUBIC"}, "CUBIC"),
        ({"RescaleSlope": "1e308", "RescaleIntercept": "1e308"}, "no numbers"),
        ({"PhotometricInterpretation": "RGB"}, "RGB; expected a grey image"),
        ({"PhotometricInterpretation": None}, "no PhotometricInterpretation"),
        ({"SamplesPerPixel": 3}, "not a single grey frame"),
        ({"NumberOfFrames": 2}, "not a single grey frame"),
        ({"BitsAllocated": 32}, "12 of 32 bits"),
        ({"BitsStored": 17}, "17 of 16 bits"),
        ({"PixelData": None}, "no pixel data; is the file cut short"),
        ({"Rows": 15}, "20 x 15 is smaller than 16 px"),
        ({"Rows": None}, "20 x 0 is smaller"),
        ({"Rows": 65535, "Columns": 65535}, "is over 64,000,000 pixels"),
        ({"Rows": 21}, "less than expected"),
        ({"Columns": 19, "Rows": 16, "BitsAllocated": 8, "BitsStored": 8}, "more than one frame"),
    ],
)
def test_unusable_images_say_why(tmp_path, elements, message):
    ds = film(**{"HighBit": 11, **elements})
    path = save(ds, tmp_path / "x.dcm")
    with pytest.raises(UnreadableImageError, match=message) as caught:
        decode_dicom(path)
    assert str(path) in str(caught.value)


# Encodings


@pytest.mark.parametrize(
    "name", ["RLE", "bigendian", "expb", "implicit", "padded", "jp2klossless", "jpeg_ls_lossless"]
)
def test_a_film_is_the_same_in_every_lossless_encoding(name):
    plain = decode_dicom(BUNDLED / "MR_small.dcm")
    assert len(set(plain.ravel())) > 100
    np.testing.assert_array_equal(decode_dicom(BUNDLED / f"MR_small_{name}.dcm"), plain)


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian])
def test_windows_and_tables_survive_a_file(tmp_path, syntax):
    ds = film(RAMP - 2000, syntax=syntax, WindowCenter=0, WindowWidth=1500, PixelPaddingValue=-2000)
    ds["PixelPaddingValue"].VR = "SS"
    np.testing.assert_array_equal(decode_dicom(save(ds, tmp_path / "a")), to_grey(ds))
    ds.VOILUTSequence = lut(-1500, np.arange(3000), 12, signed=True)
    if syntax == ExplicitVRBigEndian:
        ds.VOILUTSequence[0].LUTData = np.arange(3000).astype(">u2").tobytes()
    expected = grey(np.clip(RAMP - 500, 0, 2999) / 4095)
    np.testing.assert_array_equal(decode_dicom(save(ds, tmp_path / "b")), expected)


def lossless_jpeg(values: np.ndarray, precision: int = 12) -> bytes:
    """JPEG process 14, first-order prediction; every category of differences has a code of five bits."""
    rows, columns = values.shape
    frame = np.array([rows, columns]).astype(">u2").tobytes()
    head = b"\xff\xd8\xff\xc3\0\x0b" + bytes([precision]) + frame + b"\1\1\x11\0"
    table = b"\0" + bytes([0] * 4 + [17] + [0] * 11) + bytes(range(17))
    head += b"\xff\xc4" + (len(table) + 2).to_bytes(2, "big") + table
    head += b"\xff\xda\0\x08\1\1\0\1\0\0"
    before = np.roll(values, 1, axis=1)
    before[:, 0] = np.roll(values[:, 0], 1)
    before[0, 0] = 2 ** (precision - 1)
    bits = ""
    for d in (values.astype(int) - before).ravel().tolist():
        size = abs(d).bit_length()
        bits += f"{size:05b}" + (f"{d if d > 0 else d + 2**size - 1:0{size}b}" if size else "")
    bits += "1" * (-len(bits) % 8)
    data = int(bits, 2).to_bytes(len(bits) // 8, "big").replace(b"\xff", b"\xff\0")
    return head + data + b"\xff\xd9"


def jpeg(values: np.ndarray, kind: str = "JPEG", **options) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(values.astype(np.uint8)).save(stream, kind, **options)
    return stream.getvalue()


def test_lossless_jpeg_of_the_archives():
    np.testing.assert_array_equal(
        to_grey(packed(lossless_jpeg(RAMP), JPEGLosslessSV1)), spread(RAMP)
    )


def test_jpeg_and_jpeg_2000():
    smooth = np.add.outer(np.arange(20), np.arange(20)) * 5 + 20
    eight = {"BitsAllocated": 8, "BitsStored": 8, "HighBit": 7}
    ds = packed(jpeg(smooth, quality=95), JPEGBaseline8Bit, **eight)
    assert abs(to_grey(ds).astype(int) - smooth).max() <= 3
    ds = packed(jpeg(smooth, "JPEG2000", no_jp2=True), JPEG2000Lossless, **eight)
    np.testing.assert_array_equal(to_grey(ds), smooth)


def test_a_missing_decoder_is_named_and_not_the_files_fault(tmp_path, monkeypatch):
    path = save(packed(lossless_jpeg(RAMP), JPEGLosslessSV1), tmp_path / "x.dcm")
    monkeypatch.setitem(dicom_pixels.DECODERS, JPEGLosslessSV1, "absent")
    with pytest.raises(
        DataError, match=r"x\.dcm: transfer syntax JPEG Lossless.*cxrbench\[dicom\]"
    ) as e:
        decode_dicom(path)
    # Unreadable files are remembered in the pixel cache; this one is readable tomorrow.
    assert not isinstance(e.value, UnreadableImageError)


# Hostile files


@pytest.mark.parametrize(
    ("stream", "syntax", "message"),
    [
        (lossless_jpeg(RAMP)[:-40], JPEGLosslessSV1, "cut short"),
        (lossless_jpeg(RAMP[:16]), JPEGLosslessSV1, "20 x 16 with 1 channels, the header says 20 x 20"),
        (jpeg(np.zeros((4000, 4000))), JPEGBaseline8Bit, "4000 x 4000"),
        (jpeg(np.zeros((4000, 4000)), "JPEG2000", no_jp2=True), JPEG2000Lossless, "4000 x 4000"),
        (jpeg(np.zeros((20, 20, 3))), JPEGBaseline8Bit, "with 3 channels"),
        (jpeg(np.zeros((20, 20)), "JPEG2000", no_jp2=False), JPEG2000Lossless, "neither JPEG nor"),
        (jpeg(np.zeros((20, 20)), "PNG") + b"\xff\xd9", JPEGBaseline8Bit, "neither JPEG nor"),
        (b"\xff\xd8\xff\xe0\xff\xd9", JPEGBaseline8Bit, "damaged header"),
        (b"\xff\xd8\0\0\0\4\0\0\xff\xd9", JPEGBaseline8Bit, "damaged header"),
        (b"\0\0", RLELossless, "unpack"),
        (jpeg(np.zeros((20, 20))), HTJ2KLossless, "High-Throughput JPEG 2000.* is not read"),
    ],
)  # fmt: skip
def test_bad_streams_never_reach_a_decoder(tmp_path, stream, syntax, message, monkeypatch):
    path = save(packed(stream, syntax), tmp_path / "x.dcm")

    class Never:
        available_plugins = tuple(dicom_pixels.DECODERS.values())

    monkeypatch.setattr(dicom_pixels, "get_decoder", lambda syntax: Never)
    with pytest.raises(UnreadableImageError, match=message):
        decode_dicom(path)


def test_runs_that_unpack_to_more_are_refused(tmp_path):
    segment = b"\x81\0" * 100_000  # 128 zeros each
    header = np.array([2, 64, 64 + len(segment), *[0] * 13], "<u4").tobytes()
    path = save(packed(header + segment * 2, RLELossless), tmp_path / "x.dcm")
    tracemalloc.start()
    with pytest.raises(UnreadableImageError, match="unpack to more than the image"):
        decode_dicom(path)
    assert tracemalloc.get_traced_memory()[1] < 5_000_000
    tracemalloc.stop()
    ds = film()
    ds.compress(RLELossless, generate_instance_uid=False)
    np.testing.assert_array_equal(to_grey(ds), spread(RAMP))
    # A byte of 128 stands for nothing.
    literal = b"".join(b"\x13" + row.tobytes() for row in (RAMP % 256).astype(np.uint8))
    header = np.array([1, 64, *[0] * 14], "<u4").tobytes()
    eight = {"BitsAllocated": 8, "BitsStored": 8, "HighBit": 7}
    ds = packed(header + b"\x80" * 1000 + literal, RLELossless, **eight)
    np.testing.assert_array_equal(to_grey(ds), RAMP % 256)


def test_two_frames_are_not_taken_for_one():
    ds = packed(b"x", RLELossless)
    ds.PixelData = encapsulate([lossless_jpeg(RAMP), lossless_jpeg(RAMP)])
    with pytest.raises(ValueError, match="more than one"):
        to_grey(ds)


def test_a_deflated_bomb_is_not_inflated(tmp_path):
    save(film(), path := tmp_path / "x.dcm")
    ds = pydicom.dcmread(path)
    ds.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    save(ds, path)
    start = path.read_bytes().index(DeflatedExplicitVRLittleEndian.encode()) + 22
    squeeze = zlib.compressobj(9, wbits=-15)
    bomb = squeeze.compress(bytes(100_000_000)) + squeeze.flush()
    path.write_bytes(path.read_bytes()[:start] + bomb)
    tracemalloc.start()
    for read in (read_header, decode_dicom):
        with pytest.raises(UnreadableImageError, match="deflated; save it uncompressed"):
            read(path)
    assert tracemalloc.get_traced_memory()[1] < 5_000_000
    tracemalloc.stop()


def test_lengths_that_lie(tmp_path):
    path = save(film(PatientID="LONGISH", SOPInstanceUID="1.2.3"), tmp_path / "x.dcm")
    data = path.read_bytes()
    long = data.replace(b"LO\x08\0LONGISH", b"UT\0\0\xff\xff\xff\x7fLON")
    assert long != data
    path.write_bytes(long)
    with pytest.raises(
        UnreadableImageError, match=r"element \(0010,0020\) has 2,147,483,647 bytes"
    ):
        read_header(path)
    path.write_bytes(data.replace(b"LO\x08\0LONGISH", b"UT\0\0\xff\xff\xff\xffLON"))
    tracemalloc.start()
    header = read_header(path)
    assert header is None or not header.rows
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()
    at = data.index(b"\xe0\x7f\x10\0OW\0\0") + 8
    path.write_bytes(data[:at] + b"\xf0\xff\xff\xff" + data[at + 4 :])
    tracemalloc.start()
    np.testing.assert_array_equal(decode_dicom(path), spread(RAMP))  # all pixels are there
    assert tracemalloc.get_traced_memory()[1] < 2_000_000
    tracemalloc.stop()
    path.write_bytes(data[:at] + b"\xf0\xff\xff\xff" + data[at + 4 : -2])
    with pytest.raises(UnreadableImageError, match="less than expected"):
        decode_dicom(path)


def test_headers_and_files_are_bounded(tmp_path):
    path = save(film(), tmp_path / "x.dcm")
    with path.open("r+b") as stream:
        stream.truncate(FILE_BYTES + 1)  # sparse
    with pytest.raises(UnreadableImageError, match="bytes; a film has"):
        decode_dicom(path)
    ds = film()
    ds.add_new(0x00091001, "OB", bytes(HEADER_BYTES))
    header = read_header(save(ds, path))
    assert header is not None
    assert (header.modality, header.rows) == ("CR", 0)
    assert MAX_PIXELS * 2 < FILE_BYTES


def test_a_nest_of_sequences_ends(tmp_path):
    path = save(film(), tmp_path / "x.dcm")
    data = path.read_bytes()
    at = data.index(b"\x10\0\x20\0LO")
    nest = b"\x08\0\x40\x11SQ\0\0\xff\xff\xff\xff\xfe\xff\0\xe0\xff\xff\xff\xff" * 5000
    path.write_bytes(data[:at] + nest + data[at:])
    # How deep it is followed hangs on the stack that other libraries leave.
    with pytest.raises(UnreadableImageError, match=r"recursion|No tag to read"):
        read_header(path)


@pytest.mark.parametrize(
    ("group", "before"), [(b"\x09\0", b"\x10\0\x20\0LO"), (b"\x01\x60", b"\xe0\x7f\x10\0OW")]
)
def test_a_crowd_of_elements_ends(tmp_path, group, before):
    path = save(film(), tmp_path / "x.dcm")
    data = path.read_bytes()
    at = data.index(before)
    crowd = group + b"\x01\x10SQ\0\0\xff\xff\xff\xff\xfe\xff\0\xe0\xff\xff\xff\xff"
    path.write_bytes(data[:at] + crowd + b"\x09\0\x02\x10LO\0\0" * 500_000 + data[at:])
    with pytest.raises(UnreadableImageError, match="too many elements"):
        decode_dicom(path)
    if group == b"\x09\0":
        with pytest.raises(UnreadableImageError, match="too many elements"):
            read_header(path)
    else:  # what comes after the image's description is not looked at
        assert read_header(path).patient == "p1"


@pytest.fixture(scope="module")
def seeds(tmp_path_factory) -> list[bytes]:
    """The bytes of films in different encodings, with whatever decides their pixels."""
    root = tmp_path_factory.mktemp("seeds")
    windowed = film(
        WindowCenter=["1", "2"], WindowWidth=["3", "4"], RescaleSlope=1, RescaleIntercept=0
    )
    windowed.PatientID, windowed.PatientAge = "p1", "045Y"
    table = film(VOILUTSequence=lut(0, np.arange(300), 12), syntax=ImplicitVRLittleEndian)
    runs = film()
    runs.compress(RLELossless, generate_instance_uid=False)
    eight = {"BitsAllocated": 8, "BitsStored": 8, "HighBit": 7}
    made = (
        *(windowed, table, runs, packed(lossless_jpeg(RAMP), JPEGLosslessSV1)),
        packed(jpeg(RAMP % 256), JPEGBaseline8Bit, **eight),
        packed(jpeg(RAMP % 256, "JPEG2000", no_jp2=True), JPEG2000Lossless, **eight),
    )
    return [save(ds, root / f"{n}").read_bytes() for n, ds in enumerate(made)]


def only_known_errors(path: Path) -> None:
    for read in (read_header, decode_dicom):
        try:
            read(path)
        except DataError as error:
            assert str(error).startswith(f"{path}: ")
            assert "\n" not in str(error)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_damaged_bytes_raise_nothing_else(seeds, tmp_path_factory, data):
    whole = data.draw(st.sampled_from(seeds))
    changed = bytearray(whole)
    for place, value in data.draw(
        st.lists(st.tuples(st.integers(0, len(whole) - 1), st.integers(0, 255)), max_size=6)
    ):
        changed[place] = value
    changed = changed[: data.draw(st.integers(0, len(whole)) | st.just(len(whole)))]
    path = tmp_path_factory.getbasetemp() / "damaged.dcm"
    path.write_bytes(changed)
    only_known_errors(path)


def test_every_cut_of_a_film_is_noticed(seeds, tmp_path):
    for n, whole in enumerate(seeds):
        path = tmp_path / f"{n}.dcm"
        for length in range(1, len(whole) - 16, 97):
            path.write_bytes(whole[:length])
            with pytest.raises(UnreadableImageError):
                decode_dicom(path)


# Folders


def read(root: Path, **params) -> Index:
    return Dicom.read_index(root, DicomParams.parse(params, where="--set data"))


@pytest.fixture
def folder(tmp_path) -> Path:
    """Three films of two patients."""
    root = tmp_path / "data"
    for n, (path, patient) in enumerate((("a/1", "p1"), ("a/2.txt", "p1"), ("b c/é.dcm", "p2"))):
        save(film(RAMP + n, SOPInstanceUID=f"1.2.{n}", PatientID=patient), root / path)
    return root


def test_films_are_known_by_their_bytes(folder):
    (folder / "a" / "text.dcm").write_text("no film")
    (folder / "a" / "empty.DCM").write_bytes(b"")
    (folder / "readme.txt").write_text("no film either")
    index = read(folder)
    assert index.image_ids.tolist() == ["a/1", "a/2.txt", "b c/é.dcm"]
    assert index.patient_ids.tolist() == ["p1", "p1", "p2"]
    assert index.labels == ()
    assert index.notes["files"] == 6
    assert index.notes["left_out"] == {"files called .dcm that are no DICOM files": 2}
    found = {p.what: p for p in verify_dataset(Dicom, index)}
    problem = found["left out: files called .dcm that are no DICOM files"]
    assert (problem.severity, problem.names) == ("warning", ("a/empty.DCM", "a/text.dcm"))


@pytest.mark.parametrize(
    ("elements", "reason"),
    [
        ({"Modality": "CT", "SOPClassUID": CT}, "modality CT (data.modalities)"),
        ({"Modality": "XA"}, "modality XA (data.modalities)"),
        ({"Modality": "", "SOPClassUID": CT}, "modality not given (data.modalities)"),
        ({"Modality": "Doe^Jane"}, "modality UNPRINTABLE (data.modalities)"),
        ({"Modality": "", "SOPClassUID": "1.2.840.10008.1.3.10"}, "directories (DICOMDIR)"),
        ({"Rows": None}, "objects without an image"),
        ({"NumberOfFrames": 30}, "several frames"),
        ({"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB"}, "colour"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "colour"),
        ({"SamplesPerPixel": 3}, "colour"),
        ({"PresentationIntentType": "FOR PROCESSING"}, "raw detector images (FOR PROCESSING)"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.1.1.1"}, "raw detector images (FOR PROCESSING)"),
    ],
)
def test_what_is_no_film_is_counted_by_reason(folder, elements, reason):
    save(film(**elements), folder / "other")
    index = read(folder)
    assert index.notes["left_out"] == {reason: 1}
    assert len(index) == 3
    [problem] = [p for p in Dicom.check(index) if p.what == f"left out: {reason}"]
    assert (problem.severity, problem.names) == ("info", ("other",))


def test_unreadable_headers_are_named_with_the_reason(folder):
    path = save(film(NumberOfFrames=1), folder / "bad: x.dcm")
    path.write_bytes(path.read_bytes().replace(b"IS\x02\x001 ", b"IS\x02\x001A"))
    index = read(folder)
    assert index.notes["left_out"] == {"files that cannot be read": 1}
    [problem] = [p for p in Dicom.check(index) if p.what.startswith("left out")]
    assert problem.severity == "warning"
    assert problem.names[0].startswith("bad: x.dcm (")


def test_what_is_taken_can_be_chosen(folder):
    save(film(Modality="", SOPClassUID="1.2.840.10008.5.1.4.1.1.7"), folder / "blank")
    save(film(Modality="CT", ViewPosition="ll"), folder / "ct")
    save(film(ViewPosition="PA", BodyPartExamined="HAND"), folder / "hand")
    taken = {
        (): {"a/1", "a/2.txt", "b c/é.dcm", "hand"},
        ("modalities", ("", "ct")): {"blank", "ct"},
        ("views", ("pa", "LL")): {"hand"},
        ("views", ("PA", "")): {"a/1", "a/2.txt", "b c/é.dcm", "hand"},
        ("body_parts", ("",)): {"a/1", "a/2.txt", "b c/é.dcm"},
    }
    for choice, images in taken.items():
        index = read(folder, **({choice[0]: list(choice[1])} if choice else {}))
        assert set(index.image_ids) == images
    assert "view not given (data.views)" in read(folder, views=["PA"]).notes["left_out"]


def test_a_blank_modality_follows_from_the_kind_of_object(folder):
    save(film(Modality=""), folder / "cr")
    save(film(Modality="", SOPClassUID="1.2.840.10008.5.1.4.1.1.1.1"), folder / "dx")
    assert read(folder).notes["modalities"] == {"CR": 4, "DX": 1}


def test_folders_without_a_film_say_so(tmp_path):
    (tmp_path / "a.dcm").write_text("text")
    with pytest.raises(MissingInputError, match=r"none of 1 files is a DICOM file.*called \.dcm"):
        read(tmp_path)
    save(film(Modality="CT"), tmp_path / "ct")
    with pytest.raises(DataError, match=r"no film among 2 files.*1 modality CT.*data\.modalities"):
        read(tmp_path)
    with pytest.raises(MissingInputError, match="--data"):
        Dicom.read_index(None, DicomParams())


def test_attributes(folder):
    ages = {"045Y": 45, "011M": 0, "100W": 1, "800D": 2, "62": 62, "045X": np.nan, "": np.nan}
    for n, age in enumerate(ages):
        sex = ("M", "F", "O", "", "x", "m", "Male")[n]
        ds = film(SOPInstanceUID=f"1.9.{n}", PatientAge=age, PatientSex=sex, ViewPosition="ap")
        save(ds, folder / f"z{n}")
    index = read(folder)
    rows = index.frame[index.frame["image_id"].str.startswith("z")]
    np.testing.assert_array_equal(rows["age"], list(ages.values()))
    assert rows["sex"].tolist() == ["M", "F", "O", "", "", "M", ""]
    assert set(rows["view_position"]) == {"AP"}
    assert index.notes["ages_without_unit"] == 1


def test_whose_a_film_is(folder):
    save(film(PatientID=""), folder / "x")
    with pytest.raises(
        DataError, match=r"1 of 4 films have no PatientID: x; .*folder\|file\|table"
    ):
        read(folder)
    assert read(folder, patients="file").patient_ids.tolist() == [
        "a/1",
        "a/2.txt",
        "b c/é.dcm",
        "x",
    ]
    with pytest.raises(DataError, match="1 of 4 films lie in no folder below it: x"):
        read(folder, patients="folder")
    (folder / "x").unlink()
    assert read(folder, patients="folder").patient_ids.tolist() == ["a", "a", "b c"]
    with pytest.raises(MissingInputError, match=r"data\.patients=table needs a table"):
        read(folder, patients="table")
    (folder / "labels.csv").write_text("image,patient_id\na/1,q\na/2.txt, r \nb c/é.dcm,\n")
    with pytest.raises(
        DataError, match=r"1 of 3 films have no patient_id in labels\.csv: b c/é\.dcm"
    ):
        read(folder, patients="table")
    (folder / "labels.csv").write_text("image,patient_id\na/1,q\na/2.txt, r \nb c/é.dcm,q\n")
    index = read(folder, patients="table")
    assert index.patient_ids.tolist() == ["q", "r", "q"]
    assert index.labels == ()
    save(film(PatientID="a\tb"), folder / "x")
    with pytest.raises(DataError, match="have no PatientID: x"):
        read(folder)


LABELS = "image,Edema,Mass\na/1,1,0\n1.2.1,-1,\nb c/é.dcm,0,1\n"


def test_labels_by_path_or_instance(folder):
    (folder / "labels.csv").write_text(unicodedata.normalize("NFD", LABELS), encoding="utf-8-sig")
    index = read(folder)
    assert index.labels == ("Edema", "Mass")
    np.testing.assert_array_equal(index.targets, [[1, 0], [np.nan, np.nan], [0, 1]])
    np.testing.assert_array_equal(
        read(folder, uncertain="positive", blank="negative").targets[1], [1, 0]
    )
    decomposed = unicodedata.normalize("NFD", "b c/é.dcm")
    (folder / "b c" / "é.dcm").rename(folder / decomposed)
    (folder / "labels.csv").write_text(unicodedata.normalize("NFC", LABELS))
    again = read(folder)
    assert again.image_ids[2] == decomposed
    np.testing.assert_array_equal(again.targets, index.targets)
    assert read(folder, labels=["Mass"]).labels == ("Mass",)
    assert read(folder, labels_file="").labels == ()
    assert index.sources == (folder / "labels.csv",)
    (folder / "labels.csv").rename(folder / "other.csv")
    assert read(folder).labels == ()
    assert read(folder, labels_file="other.csv").labels == ("Edema", "Mass")


def test_films_without_a_row_are_unknown(folder):
    (folder / "labels.csv").write_text("image,Edema\n1.2.2,1\n")
    index = read(folder, blank="negative")
    np.testing.assert_array_equal(index.targets[:, 0], [np.nan, np.nan, 1])
    assert index.notes["images_without_row"] == 2
    [problem] = [p for p in Dicom.check(index) if p.what == "films without a known label"]
    assert problem.names == ("a/1", "a/2.txt")


def test_rows_of_files_that_are_left_out_are_passed_over(folder):
    save(film(Modality="CT", SOPInstanceUID="1.7"), folder / "ct")
    save(film(Modality="CT", SOPInstanceUID="1.8"), folder / "ct2")
    (folder / "labels.csv").write_text(LABELS + "ct,1,1\n1.8,1,1\n")
    assert len(read(folder)) == 3


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("gone,1,0", r"1 of 1 rows name no DICOM file.*'gone' \(line 2\)"),
        ("../a/1,1,0", r"'\.\./a/1' \(line 2; it holds '\.\.'"),
        ("/etc/passwd,1,0", "is absolute"),
        ("a\\1,1,0", "holds a backslash"),
        ("leak/1,1,0", "a link that leaves the data folder"),
        ("labels.csv,1,0", "name no DICOM file"),
        (",1,0", "''"),
        ("a/1,1,0\n1.2.0,1,0", "line 3: '1.2.0' stands in line 2 already"),
        ("a/1,2,0", "line 2: column 'Edema': '2' is not 1, 0, -1 or blank"),
        ("a/1,yes,0", "line 2: column 'Edema': 'yes' is not a number"),
    ],
)
def test_bad_rows_are_named(folder, tmp_path, rows, message):
    save(film(), tmp_path / "out" / "1")
    (folder / "leak").symlink_to(tmp_path / "out")
    (folder / "labels.csv").write_text(f"image,Edema,Mass\n{rows}\n")
    with pytest.raises(DataError, match=f"labels.csv: .*{message}"):
        read(folder)


def test_an_instance_in_two_files_is_no_name(folder):
    save(film(SOPInstanceUID="1.2.0"), folder / "copy")
    [problem] = [p for p in Dicom.check(read(folder)) if "SOPInstanceUID" in p.what]
    assert problem.names == ("a/1", "copy")
    (folder / "labels.csv").write_text("image,Edema\n1.2.0,1\n")
    with pytest.raises(DataError, match="the SOPInstanceUID of 2 files: a/1, copy; name the path"):
        read(folder)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ("../labels.csv", DataError, r"data\.labels_file: '\.\./labels\.csv' holds"),
        ("label.csv", MissingInputError, r"did you mean 'labels\.csv'"),
    ],
)
def test_the_table_lies_in_the_folder(folder, given, error, message):
    (folder / "labels.csv").write_text(LABELS)
    (folder.parent / "labels.csv").write_text(LABELS)
    with pytest.raises(error, match=message):
        read(folder, labels_file=given)
    (folder / "labels.csv").unlink()
    (folder / "labels.csv").symlink_to(folder.parent / "labels.csv")
    assert read(folder).labels == ()
    with pytest.raises(MissingInputError, match=r"data\.labels needs a table"):
        read(folder, labels=["Edema"])


def test_links_are_followed_inside_only(folder, tmp_path):
    save(film(), tmp_path / "out" / "secret")
    (folder / "leak").symlink_to(tmp_path / "out")
    (folder / "leak.dcm").symlink_to(tmp_path / "out" / "secret")
    (folder / "loop").symlink_to(folder)
    (folder / "self").symlink_to(folder / "self")
    (folder / "gone").symlink_to(folder / "nowhere")
    (folder / "A").symlink_to(folder / "a")  # sorts before the real folder
    (folder / "inside").symlink_to(folder / "a" / "1")
    os.mkfifo(folder / "pipe.dcm")
    index = read(folder)
    assert index.image_ids.tolist() == ["a/1", "a/2.txt", "b c/é.dcm", "inside"]
    assert index.notes["left_out"] == {
        "links that leave the data folder": 2,
        "links to nothing": 2,
        "neither files nor folders": 1,
    }
    found = {p.what: p for p in Dicom.check(index)}
    assert found["left out: links that leave the data folder"].names == ("leak", "leak.dcm")
    assert found["left out: links that leave the data folder"].severity == "warning"


@pytest.mark.parametrize("backwards", [False, True])
def test_a_folder_goes_by_its_own_name_whatever_comes_first(tmp_path, monkeypatch, backwards):
    listed = os.scandir
    monkeypatch.setattr(
        os, "scandir", lambda p: sorted(listed(p), key=lambda item: item.name, reverse=backwards)
    )
    save(film(), tmp_path / "real" / "1")
    for name in ("a", "b", "y", "z"):
        (tmp_path / name).symlink_to("real")
    assert find_files(tmp_path) == (["real/1"], {})
    (tmp_path / "real").rename(tmp_path / ".real")
    for name in ("a", "b", "y", "z"):
        (tmp_path / name).unlink()
        (tmp_path / name).symlink_to(".real")
    assert find_files(tmp_path) == (["a/1"], {})


def test_names_that_no_list_can_carry(folder):
    save(film(), folder / "line\nbreak.dcm")
    path = os.fsencode(folder) + b"/latin-\xe9.dcm"
    with open(path, "wb") as stream:  # noqa: PTH123
        stream.write((folder / "a" / "1").read_bytes())
    (folder / ".hidden.dcm").write_text("x")
    found, refused = find_files(folder)
    assert found == ["a/1", "a/2.txt", "b c/é.dcm"]
    assert [len(names) for names in refused.values()] == [2]


@pytest.mark.skipif(os.geteuid() == 0, reason="root opens every folder")
def test_closed_folders_are_told(folder):
    (folder / "b c").chmod(0)
    try:
        assert read(folder).notes["left_out"] == {"folders that cannot be opened": 1}
    finally:
        (folder / "b c").chmod(0o755)


def test_signs_of_wrong_tags(folder):
    for n, (sex, part, age) in enumerate([("M", "CHEST", "030Y"), ("F", "PORT CHEST", "130Y")]):
        ds = film(SOPInstanceUID=f"1.8.{n}", PatientSex=sex, BodyPartExamined=part, PatientAge=age)
        save(ds, folder / f"z{n}")
    save(film(SOPInstanceUID="1.8.9", BodyPartExamined="HAND", PatientID="p2"), folder / "z9")
    found = {p.what: p.names for p in Dicom.check(read(folder))}
    assert found == {
        "films of another body part than the chest (data.body_parts)": ("z9",),
        "patients of both sexes; is PatientID a placeholder?": ("p1",),
        "ages over 120": ("z1",),
    }


# The miniature


@pytest.fixture(scope="module")
def mini(tmp_path_factory) -> Path:
    return Dicom.fake(tmp_path_factory.mktemp("mini"), images=30, size=48, seed=3)


def test_the_miniature_shows_what_was_drawn(mini):
    index = read(mini)
    assert len(index) == 30
    drawn = [s for studies in fake_patients(30, 3) for s in studies]
    for row, path in enumerate(index.image_ids):
        study = drawn[int("".join(c for c in path.rpartition("/")[2] if c.isdigit()))]
        assert index.patient_ids[row] == study.patient_id
        assert index.frame["age"][row] == study.age
        shown = Dicom.read_image(index, row, 48).astype(float)
        truth = paint_image(study, 48).astype(float)
        assert np.corrcoef(shown[:, 1:].ravel(), truth[:, 1:].ravel())[0, 1] > 0.99
    assert sum(index.notes["left_out"].values()) == 7
    assert index.notes["images_without_row"] == 2
    shown = {s.image_id: dict(s.findings) for s in drawn}
    assert np.nansum(index.targets) <= sum(map(len, shown.values()))
    assert np.nansum(index.targets) > 0


def test_the_miniature_follows_from_its_seed(mini, tmp_path):
    Dicom.fake(tmp_path, images=30, size=48, seed=3)
    names = sorted(p.relative_to(mini) for p in mini.rglob("*") if p.is_file())
    assert len(names) == 40
    for name in names:
        assert (tmp_path / name).read_bytes() == (mini / name).read_bytes(), name


def test_verify_finds_a_damaged_film_and_nothing_worse(mini, tmp_path):
    index = read(Dicom.fake(tmp_path, images=12, size=48))
    assert not [p for p in verify_dataset(Dicom, index) if p.severity == "error"]
    path = index.path(4)
    path.write_bytes(path.read_bytes()[:-60])
    [error] = [p for p in verify_dataset(Dicom, index) if p.severity == "error"]
    assert error.what == "images cannot be read"
    assert error.names[0].startswith(index.image_ids[4])


@pytest.mark.parametrize("labels", [None, ""])
def test_splits_keep_patients_apart(mini, tmp_path, labels):
    index = read(mini, labels_file=labels)
    for name in Dicom.splits:
        split, facts = find_split(Dicom, index, name, f"{name}{labels}", Store(tmp_path))
        assert facts["complete"]
        parts = split.parts(index, 0)
        assert set(parts) == {"train", "val", "test"}
        for patient in set(index.patient_ids):
            assert len(set(parts[index.patient_ids == patient])) == 1


def test_names_of_files_do_not_go_into_records(mini):
    index = read(mini)
    text = json.dumps(index.notes)
    assert "IM0" not in text
    assert "Röntgen" not in text
    joined = join_twins(index, ["same"] * 2 + [str(n) for n in range(28)])
    assert [p.what for p in Dicom.check(joined)] == [p.what for p in Dicom.check(index)]


SAYS_NOTHING = """
import logging, sys, warnings
from pathlib import Path
logging.basicConfig()
warnings.simplefilter("always")
from cxrbench.core.registry import Registry
Registry().entries("datasets")
import cxrbench.data.dicom as dicom
assert "pydicom" not in sys.modules
index = dicom.Dicom.read_index(Path(sys.argv[1]), dicom.DicomParams())
print(index.frame.to_string(), index.notes)
for row in range(len(index)):
    try:
        dicom.Dicom.read_image(index, row, 32)
    except dicom.UnreadableImageError as error:
        print(error)
assert not {"torch", "lightning"} & set(sys.modules)
"""


def test_no_one_is_named_and_pydicom_comes_late(folder, monkeypatch):
    ignore = pydicom.config.IGNORE
    monkeypatch.setattr(pydicom.config.settings, "writing_validation_mode", ignore)
    bad = film(PatientAge="DOE^JANE", PatientSex="DOE^JANE", StudyDate="DOE^JANE", Rows=21)
    bad.PatientName = "DOE^JANE"
    bad.AcquisitionTime, bad.InstanceNumber = "DOE^JANE", 1
    save(bad, path := folder / "x")
    path.write_bytes(path.read_bytes().replace(b"DOE^JANE", b"DOE^\xffANE"))
    noisy = film(ViewPosition="DOE^JANE", BodyPartExamined="DOE^JANE")
    noisy.PixelData += bytes(100)  # which pydicom warns of
    save(noisy, folder / "y")
    done = subprocess.run(
        [sys.executable, "-c", SAYS_NOTHING, str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "DOE" not in done.stdout
    assert "less than expected" in done.stdout


def test_without_pydicom_the_data_set_says_how_to_get_it(folder, monkeypatch):
    for name in [n for n in sys.modules if n.split(".")[0] == "pydicom" or "data.dicom_" in n]:
        monkeypatch.delitem(sys.modules, name)
    import cxrbench.data

    monkeypatch.delattr(cxrbench.data, "dicom_file", raising=False)
    monkeypatch.setitem(sys.modules, "pydicom", None)
    assert Registry().entry("datasets", "dicom").summary
    with pytest.raises(UsageError, match=r"pip install 'cxrbench\[dicom\]'"):
        read(folder)


@pytest.mark.data
def test_real_films_are_the_same_as_dicom(samples, tmp_path):
    paths = sorted((samples / "nih_images_sub" / "images").glob("*.png"))[:3]
    paths += sorted((samples / "kermany_sub" / "raw").rglob("*.jp*g"))[:2]
    if not paths:
        pytest.skip("no full-size films among the samples")
    for path in paths:
        shown = decode(path)
        deep = shown.astype(np.int64) * 12 + 700
        ends = {"WindowCenter": 128 * 12 + 700 - 6, "WindowWidth": 255 * 12}
        turned = {
            "PhotometricInterpretation": "MONOCHROME1",
            "VOILUTFunction": "LINEAR_EXACT",
            **ends,
            "WindowCenter": 4095 - ends["WindowCenter"],
        }
        runs = film(shown, 8)
        runs.compress(RLELossless, generate_instance_uid=False)
        for ds in (film(shown, 8), film(4095 - deep, 12, **turned), runs):
            np.testing.assert_array_equal(decode_dicom(save(ds, tmp_path / "film")), shown)
