"""A miniature of somebody's DICOM folder: the same drawn films in every encoding, among other files.

The bytes follow from the seed. Names, dates and whatever else a writer adds are fixed.
"""

import io
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence
from pydicom.uid import (
    UID,
    BasicTextSRStorage,
    ComputedRadiographyImageStorage,
    CTImageStorage,
    DigitalXRayImageStorageForPresentation,
    DigitalXRayImageStorageForProcessing,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    MediaStorageDirectoryStorage,
    RLELossless,
    SecondaryCaptureImageStorage,
    generate_uid,
)

from cxrbench.data.fakes import fake_patients
from cxrbench.data.painter import Study, paint_image

Film = npt.NDArray[np.uint8]
LABELS = ("Atelectasis", "Cardiomegaly", "Effusion", "Infiltration")
SITE = "Ärzte Süd/Röntgen 1"  # blanks and letters of more than one byte in every path


def write_fake(root: Path, *, images: int, size: int, seed: int) -> None:
    """Films with labels.csv, and a CT slice, a report, a DICOMDIR and more that are no films."""
    rows = [",".join(("image", *LABELS))]
    number = 0
    for studies in fake_patients(images, seed):
        for study in studies:
            ds = _film(study, paint_image(study, size), ENCODINGS[number % len(ENCODINGS)], seed)
            name = (f"IM{number:04d}", f"IM{number:04d}.dcm", f"film {number}.DCM")[number % 3]
            path = f"{SITE}/{study.patient_id}/{name}"
            _save(ds, root / path)
            # By path or by SOPInstanceUID, and one in eleven not at all.
            if number % 11 != 10:
                rows.append(
                    ",".join(
                        (ds.SOPInstanceUID if number % 5 == 4 else path, *_marks(study, number))
                    )
                )
            number += 1
    _write_others(root, seed, size)
    rows.append(",".join((f"{SITE}/ct.dcm", *"1000")))
    (root / "labels.csv").write_bytes(("\ufeff" + "\r\n".join(rows) + "\r\n").encode())


def _marks(study: Study, number: int) -> list[str]:
    shown = dict(study.findings)
    marks = ["1" if label in shown else "0" for label in LABELS]
    if number % 7 == 6:
        marks[:2] = "-1", ""
    return marks


def _film(study: Study, film: Film, encode: "Encode", seed: int) -> Dataset:
    ds = _object(ComputedRadiographyImageStorage, "CR", f"{seed}/{study.image_id}")
    ds.PatientID = study.patient_id
    ds.PatientSex = study.sex
    ds.PatientAge = f"{study.age:03d}Y"
    ds.ViewPosition = study.view_position
    ds.BodyPartExamined = "CHEST"
    encode(ds, film)
    return ds


def _object(kind: str, modality: str, source: str) -> Dataset:
    """An object without pixels, identified by `source`."""
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.file_meta.ImplementationClassUID = generate_uid(entropy_srcs=["cxrbench"])
    ds.file_meta.ImplementationVersionName = "CXRBENCH"
    ds.SpecificCharacterSet = "ISO_IR 192"
    ds.SOPClassUID = kind
    ds.SOPInstanceUID = generate_uid(entropy_srcs=["cxrbench", source])
    ds.StudyDate = "20000101"
    ds.Modality = modality
    ds.PatientName = "Mustermann^Zoë"
    ds.PatientID = "nobody"
    return ds


def _save(ds: Dataset, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    ds.save_as(path, enforce_file_format=True)


def _store(
    ds: Dataset, values: npt.NDArray[Any], bits: int, *, inverted: bool = False, order: str = "<"
) -> None:
    """Put the stored values [H, W] into a data set."""
    signed = values.dtype.kind == "i"
    allocated = 8 if bits <= 8 else 16
    ds.SamplesPerPixel = 1
    ds.PhotometricInterpretation = "MONOCHROME1" if inverted else "MONOCHROME2"
    ds.Rows, ds.Columns = values.shape
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = allocated, bits, bits - 1
    ds.PixelRepresentation = int(signed)
    data = values.astype(f"{order}{'i' if signed else 'u'}{allocated // 8}").tobytes()
    ds.PixelData = data + b"\0" * (len(data) % 2)
    ds["PixelData"].VR = "OB" if allocated == 8 else "OW"


def _deep(film: Film) -> npt.NDArray[np.uint16]:
    """The film [H, W] as 12-bit values from 200 to 2,750."""
    return (200 + 10 * film.astype(np.uint16)).astype(np.uint16)


def _as_8_bit(ds: Dataset, film: Film) -> None:
    _store(ds, film, 8)


def _inverted_with_window(ds: Dataset, film: Film) -> None:
    _store(ds, 4095 - _deep(film), 12, inverted=True)
    ds.SOPClassUID = DigitalXRayImageStorageForPresentation
    ds.Modality = "DX"
    ds.PresentationIntentType = "FOR PRESENTATION"
    ds.PresentationLUTShape = "INVERSE"
    ds.WindowCenter, ds.WindowWidth = ["2620.5", "2000"], ["2551", "4000"]


def _rescaled(ds: Dataset, film: Film) -> None:
    _store(ds, 2 * (_deep(film) + 1000), 16)
    ds.RescaleSlope, ds.RescaleIntercept, ds.RescaleType = "0.5", "-1000", "US"
    ds.VOILUTFunction = "LINEAR_EXACT"
    ds.WindowCenter, ds.WindowWidth = "1475", "2550"


def _run_lengths(ds: Dataset, film: Film) -> None:
    _store(ds, _deep(film), 12)
    ds.compress(RLELossless, generate_instance_uid=False)


def _signed_with_padding(ds: Dataset, film: Film) -> None:
    values = _deep(film).astype(np.int16) - 1500
    values[:, 0] = -2000
    _store(ds, values, 16)
    ds.PixelPaddingValue = -2000
    ds["PixelPaddingValue"].VR = "SS"


def _looked_up(ds: Dataset, film: Film) -> None:
    _store(ds, 16 * film.astype(np.uint16), 12)
    item = Dataset()
    item.LUTDescriptor = [4096, 0, 8]
    item["LUTDescriptor"].VR = "US"
    item.LUTData = (np.arange(4096) // 16).astype("<u2").tobytes()
    item["LUTData"].VR = "OW"
    ds.VOILUTSequence = Sequence([item])
    ds.WindowCenter, ds.WindowWidth = "100", "50"  # the table goes before the window


def _jpeg(ds: Dataset, film: Film) -> None:
    packed = io.BytesIO()
    Image.fromarray(film).save(packed, "JPEG", quality=95)
    _store(ds, film, 8)
    _pack(ds, packed.getvalue(), JPEGBaseline8Bit)


def _jpeg_2000(ds: Dataset, film: Film) -> None:
    packed = io.BytesIO()
    Image.fromarray(film).save(packed, "JPEG2000", no_jp2=True)
    _store(ds, film, 8)
    _pack(ds, packed.getvalue(), JPEG2000Lossless)


def _pack(ds: Dataset, stream: bytes, syntax: UID) -> None:
    ds.PixelData = encapsulate([stream])
    ds["PixelData"].VR = "OB"
    ds["PixelData"].is_undefined_length = True
    ds.file_meta.TransferSyntaxUID = syntax


def _big_endian(ds: Dataset, film: Film) -> None:
    _store(ds, _deep(film), 12, order=">")
    ds.file_meta.TransferSyntaxUID = ExplicitVRBigEndian


def _implicit(ds: Dataset, film: Film) -> None:
    _store(ds, _deep(film), 12)
    ds.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian


Encode = Callable[[Dataset, Film], None]
ENCODINGS: tuple[Encode, ...] = (
    *(_as_8_bit, _inverted_with_window, _rescaled, _run_lengths, _signed_with_padding),
    *(_looked_up, _jpeg, _jpeg_2000, _big_endian, _implicit),
)


def _write_others(root: Path, seed: int, size: int) -> None:
    """What lies in such folders besides films."""
    flat = np.arange(size * size, dtype=np.uint16).reshape(size, size) % 4096

    def other(kind: str, modality: str, name: str) -> Dataset:
        return _object(kind, modality, f"{seed}/{name}")

    slice_ = other(CTImageStorage, "CT", "ct")
    _store(slice_, flat.astype(np.int16) - 1024, 12)
    raw = other(DigitalXRayImageStorageForProcessing, "DX", "raw")
    raw.PresentationIntentType = "FOR PROCESSING"
    _store(raw, flat, 12)
    cine = other(ComputedRadiographyImageStorage, "CR", "cine")
    _store(cine, np.concatenate([flat, flat]), 12)
    cine.Rows, cine.NumberOfFrames = size, 2
    colour = other(SecondaryCaptureImageStorage, "CR", "colour")
    _store(colour, np.repeat(flat.astype(np.uint8), 3, axis=1), 8)
    colour.Columns, colour.SamplesPerPixel, colour.PlanarConfiguration = size, 3, 0
    colour.PhotometricInterpretation = "RGB"
    report = other(BasicTextSRStorage, "SR", "report")
    report.ContentSequence = Sequence(_texts("no pneumothorax", "heart not enlarged"))
    for name, ds in (("ct", slice_), ("raw", raw), ("cine", cine), ("colour", colour)):
        _save(ds, root / SITE / f"{name}.dcm")
    _save(report, root / SITE / "SR 0001")
    _save(_directory(seed), root / "DICOMDIR")
    (root / SITE / "notes.dcm").write_text("films of spring\n", encoding="utf-8")
    (root / "README.txt").write_text("exported\n", encoding="utf-8")
    (root / SITE / "._IM0000.dcm").write_bytes(b"\0\5\x16\7junk")


def _texts(*lines: str) -> Iterable[Dataset]:
    for line in lines:
        item = Dataset()
        item.RelationshipType, item.ValueType, item.TextValue = "CONTAINS", "TEXT", line
        yield item


def _directory(seed: int) -> Dataset:
    """A DICOMDIR that points out of the folder; nothing may follow it."""
    ds = _object(MediaStorageDirectoryStorage, "", f"{seed}/directory")
    record = Dataset()
    record.DirectoryRecordType = "IMAGE"
    record.ReferencedFileID = ["..", "..", "SECRET"]
    ds.DirectoryRecordSequence = Sequence([record])
    return ds
