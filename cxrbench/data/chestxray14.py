"""ChestX-ray14 of the NIH Clinical Center (Wang et al., 2017): 112,120 films, 14 findings."""

import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
from PIL import Image

from cxrbench.core.errors import DataError, MissingInputError
from cxrbench.core.frozen import Frozen
from cxrbench.core.nearest import nearest
from cxrbench.core.treeprint import scan_files
from cxrbench.data.base import CxrDataset, DataParams, Problem, count_labels
from cxrbench.data.csvfile import at, need_column, read_csv, read_names, some
from cxrbench.data.fakes import fake_patients, write_film
from cxrbench.data.index import Index
from cxrbench.data.splits import Split, committed_folder, read_split, stratified_parts

LABELS = (
    *("Atelectasis", "Cardiomegaly", "Effusion", "Infiltration", "Mass", "Nodule", "Pneumonia"),
    *("Pneumothorax", "Consolidation", "Edema", "Emphysema", "Fibrosis", "Pleural_Thickening"),
    "Hernia",
)
NO_FINDING = "No Finding"
IMAGES, PATIENTS = 112_120, 30_805
TRAIN_VAL_IMAGES, VAL_IMAGES = 86_524, 10_000
# Rows without a finding tell the two releases of the labels apart.
RELEASES = {60_361: "v2020", 60_412: "2017"}
# Positive images in the v2020 release.
POSITIVES = dict(
    zip(
        LABELS,
        (11559, 2776, 13317, 19894, 5782, 6331, 1431, 5302, 4667, 2303, 2516, 1686, 3385, 227),
        strict=True,
    )
)
CSV_NAMES = ("Data_Entry_2017_v2020.csv", "Data_Entry_2017.csv")
LISTS = {"test": "test_list.txt", "train_val": "train_val_list.txt"}
IMAGE_NAME = re.compile(r"(\d{8})_\d{3}\.png")
SEARCH_DEPTH = 3


class ChestXray14Params(DataParams):
    """Where things lie when they are not found by themselves, or are there more than once."""

    labels_file: str | None = None
    images: str | None = None


class ChestXray14(CxrDataset):
    """ChestX-ray14: any layout of the download, or any part of it."""

    name = "chestxray14"
    Params = ChestXray14Params
    splits = ("official", "cv5")
    home = "https://nihcc.app.box.com/v/ChestXray-NIHCC"
    licence = "free use; name the NIH Clinical Center and cite Wang et al. (CVPR 2017)"

    @classmethod
    def read_index(cls, root: Path | None, params: Frozen) -> Index:
        """Images below `root` that stand in the label file, in the label file's order."""
        assert isinstance(params, ChestXray14Params)
        root = cls.require_root(root)
        labels_file = _labels_file(root, params.labels_file)
        frame = read_labels(labels_file)
        files, twice = _image_files(root, params.images)
        paths = frame["image_id"].map(files)
        unlabelled = sorted(set(files) - set(frame["image_id"]))
        if paths.isna().all():
            raise DataError(
                f"{labels_file}: none of the {len(files):,} images below {root} stands in it, "
                f"such as {some(unlabelled, 2)}; give the right one: --set data.labels_file=..."
            )
        present = int(paths.notna().sum())
        notes = {
            "labels_file": labels_file.name,
            "label_release": _release(frame),
            "coverage": {"present": present, "promised": IMAGES, "complete": present == IMAGES},
            "rows_without_image": int(paths.isna().sum()),
            "images_without_row": len(unlabelled),
            "same_image_twice": twice,
            "repeated_rows": frame.attrs["repeated"],
        }
        frame = frame.assign(path=paths)[paths.notna()].reset_index(drop=True)
        return Index(cls.name, frame, LABELS, root, notes, (labels_file,))

    @classmethod
    def make_split(cls, name: str, index: Index) -> Split:
        """`official` from the NIH's two lists; `cv5` over everything.

        The committed files were made by this from the v2020 labels of all 112,120 images with
        `write_split(ChestXray14.make_split(name, index), index, folder)`.
        """
        if name != "official":
            return super().make_split(name, index)
        part = _listed_parts(index)
        fractions = {
            "train": 1 - VAL_IMAGES / TRAIN_VAL_IMAGES,
            "val": VAL_IMAGES / TRAIN_VAL_IMAGES,
        }
        exact = {"val": VAL_IMAGES} if len(index) == IMAGES else None
        cut = stratified_parts(index.select(part == "train_val"), name, fractions, exact=exact)
        tested = pd.Series("test", index=np.unique(index.patient_ids[part == "test"].astype(str)))
        kept = cut.assignment.set_index("patient_id")["part"]
        rule = f"The NIH's test_list.txt tests. {cut.rule} Both only among the NIH's train_val_list.txt."
        return Split.of(cls.name, name, rule, pd.concat([kept, tested]))

    @classmethod
    def check(cls, index: Index) -> list[Problem]:
        """Counts against the published ones, and the NIH's lists, where present, against `official`."""
        notes = index.notes
        problems = [
            Problem("warning", what, count=notes[key])
            for key, what in (
                ("rows_without_image", "rows of the label file have no image (a partial download)"),
                ("images_without_row", "images do not stand in the label file and are left out"),
                ("same_image_twice", "images lie in two folders; the first is used"),
                ("repeated_rows", "rows of the label file repeat another row"),
            )
            if notes.get(key)
        ]
        if len(index) == IMAGES and notes.get("label_release") == "v2020":
            problems += _count_problems(index)
        old = index.frame["image_id"][index.frame["age"] > 100]
        if len(old):
            problems.append(Problem("warning", "ages over 100 (known errors of 2017)", tuple(old)))
        return problems + _list_problems(index)

    @classmethod
    def fake(
        cls, root: Path, *, images: int = 60, size: int = 64, seed: int = 0, variant: str = ""
    ) -> Path:
        """The download in miniature: archives' folders, lists, trailing commas, one RGBA file."""
        header = (
            "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
            "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y],"
        )
        rows = [header]
        listed: dict[str, list[str]] = {part: [] for part in LISTS}
        patients = fake_patients(images, seed)
        real = _real_patients(len(patients))
        for patient, part, studies in zip(*real, patients, strict=True):
            for study in studies:
                name = f"{patient}_{study.follow_up:03d}.png"
                folder = root / f"images_{len(rows) * 3 // (images + 1) + 1:03d}" / "images"
                write_film(study, folder / name, size, "RGBA" if len(rows) == 1 else "L")
                findings = "|".join(finding for finding, _ in study.findings) or NO_FINDING
                rows.append(
                    f"{name},{findings},{study.follow_up},{int(patient)},{study.age},{study.sex},"
                    f"{study.view_position},{size},{size},0.143,0.143,"
                )
                listed["test" if part == "test" else "train_val"].append(name)
        (root / CSV_NAMES[1]).write_text("\n".join(rows) + "\n")
        for part, names in listed.items():
            (root / LISTS[part]).write_text("\n".join(names))
        return root


def read_labels(path: Path) -> pd.DataFrame:
    """The label file as image_id, patient_id, 14 labels (1.0 or 0.0), sex, age, view_position.

    Copes with both releases and their repackagings. `attrs["repeated"]` counts the rows left out
    because they repeat another. DataError names the line.
    """
    raw = read_csv(path, split_brackets=True)
    columns = {
        "image_id": need_column(raw, path, "Image Index"),
        "findings": need_column(raw, path, "Finding Labels"),
        "patient": need_column(raw, path, "Patient ID"),
        "age": need_column(raw, path, "Patient Age"),
        "sex": need_column(raw, path, "Patient Gender", "Patient Sex"),
        "view_position": need_column(raw, path, "View Position"),
    }
    frame = raw[list(columns.values())].set_axis(list(columns), axis=1)
    patient_id = _patient_ids(frame, path)
    ages = _ages(frame, path)
    first = frame["findings"].drop_duplicates()
    table = {text: _findings(f"{path}: {at(frame, line)}", text) for line, text in first.items()}
    marks = np.array([table[text] for text in frame["findings"]], dtype=np.float32)
    labels = pd.DataFrame(marks, columns=list(LABELS), index=frame.index)
    out = pd.concat([frame[["image_id"]].assign(patient_id=patient_id), labels], axis=1)
    out = out.assign(sex=frame["sex"], age=ages, view_position=frame["view_position"])
    kept = out.drop_duplicates()
    clash = kept[kept["image_id"].duplicated(keep=False)]
    if len(clash):
        name = clash["image_id"].iloc[0]
        lines = some([str(line) for line in clash.index[clash["image_id"] == name]])
        raise DataError(f"{path}: {name} stands twice with different contents, lines {lines}")
    kept = kept.reset_index(drop=True)
    kept.attrs["repeated"] = len(out) - len(kept)
    return kept


def _patient_ids(frame: pd.DataFrame, path: Path) -> pd.Series:
    """Eight digits from the file name, checked against the file's own number."""
    prefix = frame["image_id"].str.extract(f"^{IMAGE_NAME.pattern}$")[0]
    number = pd.to_numeric(frame["patient"], errors="coerce")
    wrong = frame[prefix.isna() | (pd.to_numeric(prefix) != number)]
    if len(wrong):
        name, patient = wrong["image_id"].iloc[0], wrong["patient"].iloc[0]
        raise DataError(
            f"{path}: {at(frame, wrong.index[0])}: image {name!r} of patient {patient!r}; expected a "
            "name like 00000001_000.png that begins with the patient's number"
        )
    return prefix


def _ages(frame: pd.DataFrame, path: Path) -> pd.Series:
    """Years; repackaged files also have 058Y, 011M and 013D."""
    found = frame["age"].str.extract(r"^(\d+)(?:\.0)?([YMD]?)$")
    wrong = frame[found[0].isna() & (frame["age"] != "")]
    if len(wrong):
        raise DataError(
            f"{path}: {at(frame, wrong.index[0])}: Patient Age {wrong['age'].iloc[0]!r} is no age"
        )
    unit = found[1].map({"Y": 1, "M": 12, "D": 365}).fillna(1)
    return pd.to_numeric(found[0]).astype(float) // unit


def _findings(where: str, text: str) -> list[float]:
    """14 marks of a text such as "Mass|Nodule"."""
    findings = text.split("|")
    for finding in findings:
        if finding not in POSITIVES and finding != NO_FINDING:
            hint = nearest(finding, (*LABELS, NO_FINDING))
            raise DataError(f"{where}: Finding Labels: unknown {finding!r}; {hint}")
    if NO_FINDING in findings and len(findings) > 1:
        raise DataError(f"{where}: Finding Labels: {NO_FINDING!r} with a finding: {text!r}")
    return [float(label in findings) for label in LABELS]


def _release(frame: pd.DataFrame) -> str:
    if len(frame) != IMAGES:
        return "partial"
    healthy = int((frame[list(LABELS)].to_numpy() == 0).all(axis=1).sum())
    return RELEASES.get(healthy, "unknown")


def _search(folder: Path, names: Iterable[str], depth: int = SEARCH_DEPTH) -> Path | None:
    """The first file with one of the names, earlier names and shallower folders first."""
    variants = [variant for name in names for variant in (name, f"{name}.gz")]
    for name in variants:
        for level in range(depth + 1):
            if found := sorted(p for p in folder.glob("*/" * level + name) if p.is_file()):
                return found[0]
    return None


def _labels_file(root: Path, given: str | None) -> Path:
    if given is not None:
        path = root / Path(given).expanduser()
        if not path.is_file():
            raise MissingInputError(f"{path}: no such label file (data.labels_file)")
        return path
    beside = root.resolve().parent
    if found := _search(root, CSV_NAMES) or _search(beside, CSV_NAMES, 1):
        return found
    raise MissingInputError(
        f"{root}: no {' or '.join(CSV_NAMES)} here, {SEARCH_DEPTH} folders deep, or beside it; get it at "
        f"{ChestXray14.home}, or say where it is: --set data.labels_file=PATH"
    )


def _image_files(root: Path, folder: str | None) -> tuple[dict[str, str], int]:
    """Path below `root` of each image name, and how many lie there twice with the same size."""
    base = root / (folder or "")
    if not base.resolve().is_relative_to(root.resolve()) or not base.is_dir():
        raise MissingInputError(f"{base}: no such folder below {root} (data.images)")
    prefix = "" if base == root else f"{base.relative_to(root).as_posix()}/"
    found: dict[str, tuple[str, int]] = {}
    twice = 0
    for path, info in scan_files(base, (".png",)):
        name = path.rpartition("/")[2]
        if not IMAGE_NAME.fullmatch(name):
            continue
        first, size = found.setdefault(name, (prefix + path, info.st_size))
        if size != info.st_size:
            _refuse_versions(root, first, prefix + path)
        twice += first != prefix + path
    if not found:
        packed = "; unpack images_*.tar.gz" if any(base.glob("*.tar.gz")) else ""
        raise MissingInputError(f"{base}: no image like 00000001_000.png in it or below{packed}")
    files = {name: path for name, (path, _) in found.items()}
    _check_one_version(root, files)
    return files, twice


def _check_one_version(root: Path, files: dict[str, str]) -> None:
    """Refuse folders with images of different sizes in pixels, judged by one image of each folder."""
    first_in: dict[str, str] = {}
    for path in files.values():
        first_in.setdefault(path.rpartition("/")[0], path)
    sample = list(first_in.values())[:: max(1, len(first_in) // 50)]
    sizes: dict[tuple[int, int], str] = {}
    for path in sample:
        try:
            with Image.open(root / path, formats=("PNG",)) as image:
                sizes.setdefault(image.size, path)
        except OSError:
            continue  # an unreadable image is reported by whoever decodes it
    if len(sizes) > 1:
        _refuse_versions(root, *list(sizes.values())[:2])


def _refuse_versions(root: Path, first: str, second: str) -> None:
    folders = [path.rpartition("/")[0] or "." for path in (first, second)]
    raise DataError(
        f"{root}: different versions of the images in {folders[0]} and {folders[1]} (see {first} and "
        f"{second}); choose one: --set data.images={folders[0]}"
    )


def _read_lists(index: Index) -> dict[str, list[str]]:
    """Image names by "test" and "train_val", as far as the lists are found."""
    if index.root is None:
        return {}
    found = {part: _search(index.root, (name,)) for part, name in LISTS.items()}
    return {part: read_names(path) for part, path in found.items() if path}


def _listed_parts(index: Index) -> npt.NDArray[np.object_]:
    """[N] of "test" or "train_val" from the NIH's lists."""
    lists = _read_lists(index)
    if lacking := [LISTS[part] for part in LISTS if part not in lists]:
        raise MissingInputError(
            f"{index.root}: no {' or '.join(lacking)}; get them at {ChestXray14.home}"
        )
    part_of = {name: part for part, names in lists.items() for name in names}
    if both := set(lists["test"]) & set(lists["train_val"]):
        raise DataError(f"{index.root}: in both of the NIH's lists: {some(sorted(both))}")
    if absent := [name for name in index.image_ids if name not in part_of]:
        raise DataError(f"{index.root}: in neither of the NIH's lists: {some(absent)}")
    parts = np.array([part_of[name] for name in index.image_ids], dtype=object)
    torn = set(index.patient_ids[parts == "test"]) & set(index.patient_ids[parts == "train_val"])
    if torn:
        raise DataError(f"{index.root}: patients in both of the NIH's lists: {some(sorted(torn))}")
    return parts


def _real_patients(count: int) -> tuple[list[str], list[str]]:
    """Ids from the committed split, and their parts: of five, three train, one validates, one tests."""
    folder = committed_folder(ChestXray14.name, "official")
    assert folder is not None, "data_splits/chestxray14 comes with every copy of cxrbench"
    split, _ = read_split(folder, "official")
    pools = {part: iter(ids) for part, ids in split.assignment.groupby("part")["patient_id"]}
    parts = [("train", "val", "train", "test", "train")[i % 5] for i in range(count)]
    return [next(pools[part]) for part in parts], parts


def _list_problems(index: Index) -> list[Problem]:
    folder, lists = committed_folder(ChestXray14.name, "official"), _read_lists(index)
    if folder is None or not lists:
        return []
    split, _ = read_split(folder, "official")
    tested = set(split.assignment["patient_id"][split.assignment["part"] == "test"])
    wrong = [
        name
        for part, names in lists.items()
        for name in names
        if (name[:8] in tested) != (part == "test")
    ]
    what = "images of the NIH's lists that the split `official` has in another part"
    return [Problem("error", what, tuple(wrong))] if wrong else []


def _count_problems(index: Index) -> list[Problem]:
    """Positives and patients that differ from the v2020 release."""
    positives = count_labels(index)
    promised: Counter[str] = Counter(POSITIVES)
    found = {label: (positives[label], promised[label]) for label in LABELS}
    found["patients"] = (len(set(index.patient_ids)), PATIENTS)
    return [
        Problem("error", f"{have:,} of {what}, published {want:,}", count=abs(have - want))
        for what, (have, want) in found.items()
        if have != want
    ]
