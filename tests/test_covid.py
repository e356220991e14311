"""The COVID-19 image collection: which rows are films, what findings mean, licences, hostile tables."""

import csv
import math
import unicodedata
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from cxrbench.core.errors import ConfigError, DataError, MissingInputError
from cxrbench.core.store import Store
from cxrbench.data.covid import Covid, CovidParams
from cxrbench.data.covid_findings import label_of
from cxrbench.data.index import Index
from cxrbench.data.pixels import decode
from cxrbench.data.splits import find_split
from cxrbench.data.verify import verify_dataset

ROW = {
    "patientid": "2",
    "offset": "0",
    "sex": "M",
    "age": "65",
    "finding": "Pneumonia/Viral/COVID-19",
    "view": "PA",
    "modality": "X-ray",
    "folder": "images",
    "filename": "a.png",
    "doi": "10.1/x",
    "url": "https://example.org/1",
    "license": "CC BY 4.0",
}


def table(root: Path, *rows: dict[str, str], name: str = "metadata.csv", drop: tuple = ()) -> Path:
    """A table of ROW with changes, and one image for each file that it names."""
    columns = [column for column in ROW if column not in drop]
    columns += sorted({column for row in rows for column in row} - set(columns))
    with (root / name).open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, columns, extrasaction="ignore")
        writer.writeheader()
        for row in rows:
            writer.writerow({**ROW, **row})
    return root


def films(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (20, 20), sum(name.encode()) % 256).save(root / name, "PNG")


def read(root: Path, **params: str) -> Index:
    return Covid.read_index(root, CovidParams(**params))


@pytest.mark.parametrize(
    ("text", "covid", "pneumonia"),
    [
        ("Pneumonia/Viral/COVID-19", 1, 1),
        ("COVID-19", 1, 1),
        ("covid-19 ", 1, 1),
        ("COVID-19, ARDS", 1, 1),
        ("ARDS, COVID-19", 1, 1),
        ("Pneumonia", 0, 1),
        ("Pneumonia/Viral/SARS", 0, 1),
        ("Pneumonia/Viral/Influenza/H1N1", 0, 1),
        ("Pneumonia/Bacterial/Staphylococcus/MRSA", 0, 1),
        ("SARS", 0, 1),
        ("Streptococcus", 0, 1),
        ("E.Coli", 0, 1),
        ("Bacterial", 0, 1),
        ("Mycoplasma Bacterial Pneumonia", 0, 1),
        ("Herpes pneumonia, ARDS", 0, 1),
        ("No Finding", 0, 0),
        ("Tuberculosis", 0, 0),
        # ARDS may come of a pneumonia, or of a bite.
        ("ARDS", 0, None),
        ("Tuberculosis, ARDS", 0, None),
        ("todo", None, None),
        ("Unknown", None, None),
        ("", None, None),
        ("Pneumonia, todo", None, 1),
        # Names that are not known here: the first may be anything, the others are placed by their path.
        ("Lupus", None, None),
        ("COVID19", None, None),
        ("Pneumonia/Viral/Nipah", None, 1),
        ("Pneumonia/Bacterial/Pseudomonas", 0, 1),
        ("No COVID-19", None, None),
    ],
)
def test_findings_are_read_as_a_tree_or_as_a_list(text, covid, pneumonia):
    for task, expected in (("covid", covid), ("pneumonia", pneumonia)):
        found = label_of(task, text)
        assert (None if math.isnan(found) else found) == expected, task


@given(st.text(alphabet="bdfgjkqwxyz /,", max_size=20), st.sampled_from(["covid", "pneumonia"]))
def test_unknown_names_are_never_guessed_at(text, task):
    assert math.isnan(label_of(task, text))


def test_a_finding_that_contradicts_itself_is_an_error_with_its_line(tmp_path):
    films(tmp_path, "images/a.png", "images/b.png")
    table(tmp_path, {}, {"filename": "b.png", "finding": "No Finding, COVID-19"})
    with pytest.raises(
        DataError, match=r"metadata.csv: line 3: finding: 'No Finding' with another"
    ):
        read(tmp_path)


def test_unknown_findings_stay_unknown_and_are_told(tmp_path):
    texts = ["COVID-19", "No Finding", "todo", "", "Lupus"]
    rows = [{"filename": f"{n}.png", "finding": text} for n, text in enumerate(texts)]
    films(tmp_path, *(f"images/{n}.png" for n in range(5)))
    index = read(table(tmp_path, *rows))
    assert np.array_equal(index.targets[:, 0], [1, 0, np.nan, np.nan, np.nan], equal_nan=True)
    assert index.notes["findings_unknown"] == {"(blank)": 1, "Lupus": 1, "todo": 1}
    told = {p.what: p for p in Covid.check(index) if "finding" in p.what}
    assert [(p.severity, p.names, p.count) for p in told.values()] == [
        ("info", ("(blank): 1", "todo: 1"), 2),
        ("warning", ("Lupus: 1",), 1),
    ]
    table(tmp_path, {"filename": "0.png"}, {"filename": "1.png", "finding": "ARDS"})
    told = [p for p in Covid.check(read(tmp_path, task="pneumonia")) if "finding" in p.what]
    assert [(p.severity, p.names) for p in told] == [("info", ("ARDS: 1",))]


VIEWS = [
    ("PA", "X-ray", "frontal pa all"),
    ("pa", "x-ray", "frontal pa all"),
    ("AP", "X-ray", "frontal all"),
    ("AP Supine", "X-ray", "frontal all"),
    ("AP Erect", "X-ray", "frontal all"),
    ("APS", "X-ray", "frontal all"),
    ("AP", "", "frontal all"),
    ("L", "X-ray", "all"),
    ("L", "", "all"),
    ("", "X-ray", "all"),
    ("Apical", "X-ray", "all"),
    ("", "", ""),
    ("Axial", "CT", ""),
    ("Coronal", "", ""),
    ("CT", "", ""),
    ("PA", "CT", ""),
    ("PA", "Ultrasound", ""),
]


@pytest.mark.parametrize("wanted", ["frontal", "pa", "all"])
def test_views_and_modalities(tmp_path, wanted):
    rows = [{"filename": f"{n}.png", "view": v, "modality": m} for n, (v, m, _) in enumerate(VIEWS)]
    films(tmp_path, *(f"images/{n}.png" for n in range(len(VIEWS))))
    index = read(table(tmp_path, *rows), view=wanted)
    expected = [f"images/{n}.png" for n, (_, _, kept) in enumerate(VIEWS) if wanted in kept.split()]
    assert list(index.image_ids) == expected
    left = index.notes["left_out"]
    assert sum(left.values()) == len(VIEWS) - len(expected)
    assert left["ct"] == 4 and left["other_modality"] == 1 and left["unknown_modality"] == 1
    assert left.get("unknown_view", 0) == (0 if wanted == "all" else 1)
    told = {p.what: p.count for p in Covid.check(index)}
    assert told["rows are slices or volumes of CT: left out"] == 4


def test_volumes_other_formats_and_rows_without_a_file_are_left_out(tmp_path):
    films(tmp_path, "images/a.png", "volumes/a.png")
    index = read(
        table(
            tmp_path,
            {},
            {"folder": "volumes"},
            {"filename": "b.nii.gz"},
            {"filename": "c.dcm"},
            {"filename": ""},
        )
    )
    assert list(index.image_ids) == ["images/a.png"]
    assert index.notes["left_out"] == {"ct": 2, "no_file_name": 1, "not_png_or_jpeg": 1}


def test_no_film_at_all_is_an_error_that_tells_why(tmp_path):
    table(tmp_path, {"view": "L"}, {"modality": "CT"})
    with pytest.raises(DataError, match=r"none of its 2 rows.*'other_view': 1.*data.view"):
        read(tmp_path)


def test_the_first_version_of_the_table(tmp_path):
    # Its header as it was: other names and case, a blank before one, no modality and no folder.
    films(tmp_path, "images/a.jpg", "images/b.jpg")
    (tmp_path / "metadata.csv").write_text(
        "Patientid,offset,sex,age,finding,survival,view,date,location,filename,doi, url,license,notes\n"
        "1, ,,,COVID-19,,PA,2019,,a.jpg,,https://example.org,,\n"
        '17,9,M,54,COVID-19,Y,CT,2020,"Goyang, Korea",b.jpg,,,,"Two\nlines"\n'
    )
    index = read(tmp_path)
    assert list(index.image_ids) == ["images/a.jpg"]
    assert index.frame["url"].tolist() == ["https://example.org"]
    assert index.notes["left_out"] == {"ct": 1}


def test_attributes_are_numbers_or_unknown(tmp_path):
    films(tmp_path, "images/a.png", "images/b.png", "images/c.png")
    index = read(
        table(
            tmp_path,
            {"patientid": "007", "offset": "-5", "age": "70.5"},
            {
                "patientid": "331a",
                "filename": "b.png",
                "sex": "",
                "age": "",
                "offset": "",
                "license": "",
            },
            {"filename": "c.png", "sex": "female", "age": "60s", "offset": "inf"},
        )
    )
    assert list(index.patient_ids) == ["007", "331a", "2"]
    frame = index.frame
    assert frame["sex"].tolist() == ["M", "", "F"]
    assert frame["age"].fillna(-1).tolist() == [70.5, -1, -1]
    assert frame["offset_days"].fillna(-99).tolist() == [-5, -99, -99]
    assert frame["view_position"].tolist() == ["PA"] * 3
    assert frame["licence"].tolist() == ["CC BY 4.0", "unknown", "CC BY 4.0"]
    assert frame["doi"].tolist() == ["10.1/x"] * 3
    assert index.notes["licences"] == {"CC BY 4.0": 2, "unknown": 1}
    problems = {p.what.partition(" ")[0]: p for p in Covid.check(index)}
    assert problems["cells"].names in (("60s",), ("inf",))
    assert index.notes["unreadable_cells"] == {"age": ["60s"], "offset_days": ["inf"]}
    assert problems["images"].names == ("images/b.png",)
    assert problems["images"].severity == "warning"


def test_a_patient_of_two_sexes_is_told(tmp_path):
    films(tmp_path, "images/a.png", "images/b.png", "images/c.png")
    rows = ({}, {"filename": "b.png", "sex": "F"}, {"filename": "c.png", "sex": ""})
    told = [p for p in Covid.check(read(table(tmp_path, *rows))) if "two sexes" in p.what]
    assert [p.names for p in told] == [("2",)]
    rows = ({}, {"filename": "b.png", "sex": ""})
    assert not [p for p in Covid.check(read(table(tmp_path, *rows))) if "two sexes" in p.what]


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"filename": "../a.png"}, r"holds '\.\.'"),
        ({"folder": ".."}, r"holds '\.\.'"),
        ({"folder": "/etc"}, "is absolute"),
        ({"folder": "C:", "filename": "a.png"}, "is absolute"),
        ({"filename": "x\\a.png"}, "holds a backslash"),
        ({"filename": "a\n.png"}, "holds control characters"),
        ({"filename": "../a.png", "modality": "CT"}, r"holds '\.\.'"),
        ({"patientid": ""}, "patient '' is blank"),
        ({"patientid": "2\x07"}, "holds control characters"),
    ],
)
def test_names_that_leave_the_folder_are_errors_with_their_line(tmp_path, row, why):
    root = tmp_path / "data"
    root.mkdir()
    films(root, "images/a.png", "a.png")
    table(root, {"filename": "ok.png"}, row)
    with pytest.raises(DataError, match=rf"metadata.csv: line 3: .*{why}"):
        read(root)


def test_links_that_leave_the_folder_are_refused(tmp_path):
    root = tmp_path / "data"
    films(root, "images/a.png")
    films(tmp_path, "secret.png", "aside/b.png")
    (root / "images" / "b.png").symlink_to(tmp_path / "secret.png")
    table(root, {}, {"filename": "b.png"})
    leaves = "is a link that leaves the data folder"
    with pytest.raises(DataError, match=rf"line 3: file 'images/b.png' {leaves}"):
        read(root)
    (root / "images" / "b.png").unlink()
    (root / "more").symlink_to(tmp_path / "aside")
    table(root, {}, {"folder": "more", "filename": "b.png"})
    with pytest.raises(DataError, match=rf"line 3: file 'more/b.png' {leaves}"):
        read(root)
    # Found under another spelling than the table's.
    composed, apart = (unicodedata.normalize(form, "ü.png") for form in ("NFC", "NFD"))
    (root / "images" / apart).symlink_to(tmp_path / "secret.png")
    table(root, {}, {"filename": composed})
    with pytest.raises(DataError, match=leaves):
        read(root)
    (root / "images" / apart).unlink()
    # A link inside it is a file like any other.
    (root / "images" / "b.png").symlink_to(root / "images" / "a.png")
    table(root, {}, {"filename": "b.png"})
    assert len(read(root)) == 2


def test_rows_of_one_image_must_agree(tmp_path):
    films(tmp_path, "images/a.png")
    index = read(table(tmp_path, {}, {"offset": "3", "finding": "COVID-19, ARDS"}))
    assert len(index) == 1 and index.notes["left_out"] == {"repeated": 1}
    for change in ({"patientid": "3"}, {"finding": "No Finding"}, {"finding": "todo"}):
        table(tmp_path, {}, change)
        with pytest.raises(DataError, match=r"1 images stand twice .*images/a.png in lines 2, 3"):
            read(tmp_path)


def test_names_are_compared_in_composed_unicode(tmp_path):
    composed, apart = (unicodedata.normalize(form, "Zürich 1.png") for form in ("NFC", "NFD"))
    films(tmp_path, f"images/{apart}", "images/ok.png")
    index = read(table(tmp_path, {"filename": composed}, {"filename": "ok.png"}))
    assert list(index.image_ids) == [f"images/{composed}", "images/ok.png"]
    assert index.path(0).is_file()
    films(tmp_path / "a", f"images/{composed}")
    assert read(table(tmp_path / "a", {"filename": apart})).image_ids == [f"images/{composed}"]
    films(tmp_path, f"images/{composed}")
    if len(list((tmp_path / "images").iterdir())) == 3:  # some file systems compose by themselves
        with pytest.raises(DataError, match="are one name in unicode"):
            read(tmp_path)
    # As the names of screenshots on a Mac have it.
    films(tmp_path / "b", "images/at 9.00\u202fPM.png")
    assert len(read(table(tmp_path / "b", {"filename": "at 9.00\u202fPM.png"}))) == 1


def test_a_partial_download_keeps_the_parts_of_the_whole(tmp_path):
    findings = ["COVID-19"] * 3 + ["SARS"] * 2 + ["todo"] * 5
    rows = [
        {"patientid": str(n // 2), "filename": f"{n}.png", "finding": findings[n // 2 % 10]}
        for n in range(60)
    ]
    films(tmp_path, *(f"images/{n}.png" for n in range(60)))
    whole = read(table(tmp_path, *rows))
    assert whole.strata is None and whole.notes["coverage"]["complete"]
    for n in (3, 4, 5, 17, 40, 41):
        (tmp_path / "images" / f"{n}.png").unlink()
    part = read(tmp_path)
    assert part.notes["coverage"] == {"present": 54, "promised": 60, "complete": False}
    assert part.notes["missing"] == [f"images/{n}.png" for n in (3, 4, 5, 17, 40, 41)]
    told = [p for p in Covid.check(part) if "no file" in p.what]
    assert [(p.severity, p.count) for p in told] == [("warning", 6)]
    for name in Covid.splits:
        cut = Covid.make_split(name, whole).assignment
        assert Covid.make_split(name, part).assignment.equals(cut)
    for n in range(60):
        (tmp_path / "images" / f"{n}.png").unlink(missing_ok=True)
    with pytest.raises(
        MissingInputError, match=r"none of its 60 films .*images/0.png.*get the images"
    ):
        read(tmp_path)


def test_images_without_a_row_are_counted(tmp_path):
    films(tmp_path, "images/a.png", "images/b.png", "images/c.jpg", "annotations/a_mask.png")
    index = read(table(tmp_path, {}, {"filename": "c.jpg", "view": "L"}))
    assert index.notes["images_without_row"] == 1
    assert [p.count for p in Covid.check(index) if "no row" in p.what] == [1]


def test_the_table_is_found_below_the_root_but_two_are_refused(tmp_path):
    films(tmp_path, "covid-chestxray-dataset-master/images/a.png")
    table(tmp_path / "covid-chestxray-dataset-master", {})
    index = read(tmp_path)
    assert index.path(0).is_file() and list(index.image_ids) == ["images/a.png"]
    films(tmp_path, "other/images/a.png")
    table(tmp_path / "other", {}, name="manifest.csv")
    with pytest.raises(
        DataError, match=r"2 label files: .*master/metadata.csv.*other/manifest.csv"
    ):
        read(tmp_path)
    with pytest.raises(MissingInputError, match=r"no metadata.csv or manifest.csv .*github.com"):
        read(tmp_path / "other" / "images")


def test_a_table_of_something_else_names_the_column(tmp_path):
    table(tmp_path, {}, drop=("view",))
    with pytest.raises(DataError, match=r"metadata.csv: no column 'view'"):
        read(tmp_path)
    (tmp_path / "metadata.csv").write_text("patientid,view,View,finding,filename\n1,PA,L,x,y\n")
    with pytest.raises(DataError, match=r"the columns \['view'\] stand twice but for case"):
        read(tmp_path)


def test_a_manifest_and_its_groups(tmp_path):
    films(tmp_path, "x/a.png", "x/b.png", "x/c.png")
    (tmp_path / "manifest.csv").write_text(
        "file,patient_id,group,labels,licence,view,offset_days,licence_url\n"
        "x/a.png,1,g1,COVID-19,CC BY,PA,3,https://example.org\n"
        "x/b.png,2,g1,Tuberculosis,,AP Supine,,\n"
        "x/c.png,3,,Tuberculosis,,AP,,\n"
    )
    index = read(tmp_path)
    assert index.notes["layout"] == "manifest"
    assert index.frame["group_id"].tolist() == ["g1", "g1", ""]
    assert index.frame["licence"].tolist() == ["CC BY", "unknown", "unknown"]
    assert index.frame["url"].tolist()[0] == "https://example.org"
    assert index.targets[:, 0].tolist() == [1, 0, 0]


@pytest.mark.parametrize("variant", Covid.variants)
def test_every_miniature_holds_its_traps(tmp_path, variant):
    Covid.fake(tmp_path, images=60, size=32, variant=variant)
    index = read(tmp_path)
    assert len(index) == 60
    assert index.notes["layout"] == variant
    assert index.notes["coverage"]["promised"] == 61
    assert index.notes["left_out"]["ct"] == 4 and index.notes["left_out"]["other_view"] == 1
    assert index.notes["left_out"]["repeated"] == 1
    headers = Counter()
    for row in range(60):
        path = index.path(row)
        assert min(decode(path).shape) >= 16
        with Image.open(path) as image:
            headers[image.format, image.mode, path.suffix] += 1
    assert {("PNG", "RGBA", ".png"), ("PNG", "P", ".png"), ("PNG", "L", ".jpg")} <= set(headers)
    assert {("JPEG", "RGB", ".jpeg"), ("JPEG", "L", ".JPG")} <= set(headers)
    assert any(" " in name and not name.isascii() for name in index.image_ids)
    assert {"PA", "AP", "AP Supine", "AP Erect", "APS"} == set(index.frame["view_position"])
    assert "" in set(index.frame["sex"]) and index.frame["age"].isna().any()
    assert index.frame["offset_days"].isna().any() and index.frame["offset_days"].min() < 0
    assert {"todo", "Unknown"} <= set(index.frame["finding"][np.isnan(index.targets[:, 0])])
    assert ("COVID-19, ARDS" in set(index.frame["finding"])) == (variant == "manifest")
    assert {"unknown", "CC BY 3.0"} <= set(index.notes["licences"])
    data = next(tmp_path.glob("*.csv")).read_bytes()
    assert data.startswith(b"\xef\xbb\xbf") == (b"\r\n" in data) == (variant == "manifest")
    everything = read(tmp_path, view="all")
    assert len(everything) == (62 if variant == "repository" else 61)
    assert len(read(tmp_path, view="pa")) < 60


@pytest.mark.parametrize("variant", Covid.variants)
@pytest.mark.parametrize("task", ["covid", "pneumonia"])
def test_the_miniature_is_verified_and_split(tmp_path, variant, task):
    root = tmp_path / "d"
    root.mkdir()
    Covid.fake(root, images=60, size=32, variant=variant)
    index = read(root, task=task)
    assert index.labels == (task,)
    assert {p.severity for p in verify_dataset(Covid, index)} <= {"warning", "info"}
    for name in Covid.splits:
        split, facts = find_split(Covid, index, name, index.revision([""] * 60), Store(tmp_path))
        assert facts["complete"]
        assert task == "pneumonia" or not facts.get("warnings")
        for fold in range(split.folds):
            assert set(split.parts(index, fold)) == {"train", "val", "test"}


def test_an_unknown_miniature_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="use repository, manifest"):
        Covid.fake(tmp_path, variant="kaggle")


@pytest.mark.data
def test_the_real_sample(samples):
    root = samples / "covid_cxr"
    if not root.is_dir():
        pytest.skip(f"no {root}")
    index = read(root)
    assert (len(index), len(set(index.patient_ids))) == (156, 81)
    assert index.targets.sum() == 106
    assert index.frame["view_position"].value_counts().to_dict() == {
        "PA": 102,
        "AP Supine": 45,
        "AP": 9,
    }
    assert index.notes["left_out"] == {} and index.notes["coverage"]["complete"]
    assert sum(index.notes["licences"].values()) == 156 and "unknown" not in index.notes["licences"]
    other = read(root, task="pneumonia")
    assert np.nansum(other.targets) == 147 and int((other.targets == 0).sum()) == 6
    assert other.notes["findings_unknown"] == {"ARDS": 3}
    assert len(read(root, view="pa")) == 102
    for row in range(0, 156, 13):
        assert min(decode(index.path(row)).shape) > 200
