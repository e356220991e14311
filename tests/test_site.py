"""The leaderboard's pages: what stands on them, what must not, and that a browser can use them."""

import html
import json
import math
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from hashlib import sha256
from html.parser import HTMLParser
from pathlib import Path
from threading import Thread
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn.metrics import average_precision_score, brier_score_loss, roc_auc_score

from cxrbench.core.errors import ConfigError, UsageError
from cxrbench.core.record import Record
from cxrbench.core.store import Store, write_json
from cxrbench.leaderboard.collect import collect
from cxrbench.leaderboard.predictions import predictions_in
from cxrbench.leaderboard.site import curves, figures, subgroups
from cxrbench.leaderboard.site.build import MARKER, write_site
from cxrbench.leaderboard.site.command import reproduction
from cxrbench.leaderboard.site.facts import fact_tables
from cxrbench.leaderboard.site.predictions import Part, read_part
from cxrbench.leaderboard.site.runs import read_log, run_path
from cxrbench.leaderboard.site.serve import make_server
from cxrbench.metrics.report import score_predictions

Make = Callable[..., Record]
LABELS = ["Mass", "Edema"]
LOG = "epoch,step,lr,train_loss,val_loss,val_auc\n0,5,0.1,0.7,0.6,0.5\n1,9,0.1,nan,0.5,0.6\n"


class Page(HTMLParser):
    """A page's elements: (tag, attributes), and its text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    def links(self) -> list[str]:
        """Everything that the page refers to."""
        names = ("href", "src", "srcset", "data", "action", "poster")
        return [str(attrs[n]) for _, attrs in self.found for n in names if n in attrs]


def predicted(seed: int = 0, images: int = 240, shift: float = 1.0) -> pd.DataFrame:
    """A prediction's file: test images of patients with three films each, and a few of validation."""
    rng = np.random.default_rng(seed)
    target = (rng.random((images, 2)) < 0.3).astype(float)
    target[:5, 1] = np.nan
    score = rng.normal(size=(images, 2)) + shift * np.nan_to_num(target)
    table: dict[str, Any] = {
        "image_id": [f"i{n}" for n in range(images)],
        "patient_id": [f"p{n // 3}" for n in range(images)],
        "part": ["test"] * (images - 20) + ["val"] * 20,
        "sex": ["F", "M"] * (images // 2),
        "age": [20.0 + n % 60 for n in range(images)],
    }
    for k, label in enumerate(LABELS):
        table[f"target:{label}"] = target[:, k]
        table[f"probability:{label}"] = 1 / (1 + np.exp(-score[:, k]))
    return pd.DataFrame(table)


def built(store: Store, make: Make, *, fold: int = 0, folds: int = 2, shift: float = 1.0, **fields: Any) -> Record:  # fmt: skip
    """A record whose artefacts lie in the store: a training's log, predictions, an analysis with a picture."""
    method = fields.setdefault("method", "densenet121")
    stages = []
    for kind in ("fit", "predict", "score"):
        digest = sha256(f"{kind} {method} {fold}".encode("utf-8", "replace")).hexdigest()
        key = f"{kind}-m-{digest[-16:]}"
        stages.append({"key": key, "digest": digest, "kind": kind, "name": "m", "version": 1,
                       "provenance": {"code": {"commit": "c" * 40, "dirty": False}}})  # fmt: skip
        write_json(store.artefact(key) / "stage.json", {"nodes": []})
    (store.artefact(stages[0]["key"]) / "log.csv").write_text(LOG)
    table = predicted(fold, shift=shift)
    table.to_parquet(store.artefact(stages[1]["key"]) / "predictions.parquet")
    test = table[table["part"] == "test"]
    scores = score_predictions(
        labels=LABELS,
        target=test[[f"target:{label}" for label in LABELS]].to_numpy(),
        probability=test[[f"probability:{label}" for label in LABELS]].to_numpy(),
        patient_id=test["patient_id"].to_numpy(dtype=object),
        replicates=0,
    )
    gallery = store.artefact(f"compute-shown-{fold}")
    write_json(gallery / "stage.json", {})
    Image.fromarray(np.arange(600 * 700, dtype=np.uint32).view(np.uint8).reshape(600, 700, 4)[..., :3]).save(gallery / "gallery.png")  # fmt: skip
    write_json(gallery / "gallery.json", [{"file": "gallery.png", "caption": "films & boxes"}])
    shown = {"key": gallery.name, "digest": "d", "kind": "compute", "name": "shown", "version": 1,
             "facts": {"films": 3, "psnr": {"unet": {"a": 1.5}, "wiener": {"a": 2.5}}}}  # fmt: skip
    return make(fold=fold, folds=folds, labels=LABELS, stages=stages, final=stages[2]["digest"],
                analyses={"what is shown": shown}, **fields).model_copy(update={"scores": scores})  # fmt: skip


def site(store: Store, records: list[Record], folder: Path, excluded: list[str] = []) -> Path:  # noqa: B006
    tables = collect(records, predictions_in(store))
    return write_site(tables, records, excluded, folder, store).parent


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, module_make: Make) -> Path:
    """A site of three methods on two folds, one of them incomplete."""
    root = tmp_path_factory.mktemp("whole")
    store = Store(root / "store")
    records = [
        built(store, module_make, method=method, fold=fold, shift=shift)
        for method, shift, folds in (("densenet121", 1.0, 2), ("aecnn", 1.6, 2), ("vgg16", 0.2, 1))
        for fold in range(folds)
    ]
    return site(store, records, root / "site", ["x.json: retracted"])


@pytest.fixture(scope="module")
def module_make() -> Make:
    from conftest import RECORD

    count = iter(range(1, 10**6))

    def make(**fields: Any) -> Record:
        n = next(count)
        scores = {"macro": {"auc": 0.8, "floor": {"auc": 0.5}}}
        return Record.parse(
            {**RECORD, "id": f"{n:012x}", "final": f"{n:064x}", "scores": scores, **fields}, where="test"
        )  # fmt: skip

    return make


@pytest.mark.parametrize(
    "labels",
    [[1], "x", 5, {"a": [1]}, {"a": {"precision_at_validation_threshold": [1]}},
     {"a": {"precision_at_95_recall": "x"}}],
)  # fmt: skip
def test_a_record_with_odd_scores_by_label_is_left_out(module_make: Make, labels: Any) -> None:
    with pytest.raises(ConfigError, match=r"scores\.labels"):
        module_make(scores={"macro": {"auc": 0.8}, "labels": labels})


def test_odd_numbers_by_label_break_no_page(tmp_path: Path, module_make: Make) -> None:
    odd = {"auc": "x", "images": [], "precision_at_95_recall": {"precision": "y"},
           "precision_at_validation_threshold": {"recall": {}, "precision": None}}  # fmt: skip
    record = module_make(
        folds=1, labels=["a"], scores={"macro": {"auc": 0.8}, "labels": {"a": odd}}
    )
    assert site(Store(tmp_path / "store"), [record], tmp_path / "site").is_dir()


def test_processes_draw_the_same_figures(
    tmp_path: Path, module_make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path / "store")
    tables = collect(
        [built(store, module_make, method="densenet121", fold=0)], predictions_in(store)
    )
    one = write_site(tables, [], [], tmp_path / "one", store).parent / "figures"
    two = write_site(tables, [], [], tmp_path / "two", store, processes=2).parent / "figures"
    names = sorted(path.name for path in one.iterdir())
    assert len(names) > 3
    assert [path.name for path in sorted(two.iterdir())] == names
    assert all((one / name).read_bytes() == (two / name).read_bytes() for name in names)
    # What fails in a process fails the site, and leaves nothing behind.
    monkeypatch.setattr("cxrbench.leaderboard.site.tasks.figures.fold_scatter", math.sqrt)
    with pytest.raises(TypeError):
        write_site(tables, [], [], tmp_path / "three", store, processes=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "store", "two"]


def task_page(folder: Path) -> Page:
    (path,) = (folder / "tasks").glob("*.html")
    return Page(path)


# --- what stands on the pages


def test_every_link_of_every_page_is_there_and_nothing_is_remote(whole: Path) -> None:
    pages = sorted(whole.rglob("*.html"))
    assert len(pages) == 1 + 1 + 5
    linked = set()
    for path in pages:
        page = Page(path)
        ids = {attrs.get("id") for _, attrs in page.found}
        for link in page.links():
            assert not re.match(r"[a-z]+:|//", link), f"{path}: {link}"
            file, _, anchor = link.partition("#")
            target = (path.parent / file).resolve() if file else path
            assert target.is_file(), f"{path}: {link}"
            assert not anchor or file or anchor in ids, f"{path}: {link}"
            linked.add(target)
    assert set(pages) <= linked | {whole / "index.html"}, "a page that nothing leads to"
    assert set((whole / "figures").iterdir()) <= linked
    assert set((whole / "pictures").iterdir()) <= linked


def test_every_page_forbids_what_is_remote_and_runs_no_script_of_its_own(whole: Path) -> None:
    for path in whole.rglob("*.html"):
        page = Page(path)
        policies = [a["content"] for t, a in page.found if t == "meta" and a.get("http-equiv")]
        assert len(policies) == 1
        assert "default-src 'none'" in str(policies[0])
        assert "unsafe" not in str(policies[0]) and "http" not in str(policies[0])
        assert not [a for t, a in page.found if t == "script" and "src" not in a]
        assert not [a for t, a in page.found if "style" in a or any(k.startswith("on") for k in a)]


def test_a_task_shows_every_row_its_numbers_and_its_runs(whole: Path) -> None:
    page = task_page(whole)
    for text in ("aecnn (paper)", "densenet121 (paper)", "vgg16 (paper)", "1/2", "2/2", "incomplete",
                 "A constant classifier reaches AUC 0.5000", "Δ densenet121", "films & boxes",
                 "x.json: retracted"):  # fmt: skip
        assert text in page.text, text
    methods = page.source[page.source.index('data-sortable="methods"') :]
    body = methods[methods.index("<tbody>") : methods.index("</tbody>")]
    assert body.count("<tr") == 3
    assert body.count("../runs/") == 5
    names = re.findall(r'<th scope="row">([a-z0-9]+) ', body)
    assert names == ["aecnn", "densenet121", "vgg16"], "by rank, without JavaScript"


def test_a_run_shows_its_scores_command_curves_and_analysis(whole: Path, module_make: Make) -> None:
    pages = [Page(path) for path in (whole / "runs").iterdir()]
    page = next(p for p in pages if "aecnn (paper), fold 0" in p.text)
    for text in ("cxrbench run", "--method aecnn", "Nothing differs from the preset paper", "what is shown",
                 "films & boxes", "psnr", "wiener", "commit c", "Losses of m by epoch"):  # fmt: skip
        assert text in page.text, text
    images = [str(a["src"]) for t, a in page.found if t == "img"]
    assert sorted(Path(i).suffix for i in images) == [".svg", ".svg", ".webp"]
    assert all(a.get("alt") for t, a in page.found if t == "img")


def test_figures_are_whole_svg_without_anything_remote(whole: Path) -> None:
    files = list((whole / "figures").glob("*.svg"))
    assert len(files) == 2 * 3 + 1 + 2 + 5 * 2, [f.name for f in files]
    for path in files:
        text = path.read_text()
        ElementTree.fromstring(text)
        assert not re.search(r'(?:href|src)="(?!#)', text)
        assert "prefers-color-scheme" in text
        assert not re.search(r"#[0-3]a[0-3]b", text), "a colour's stand-in is left"


def test_two_sites_of_the_same_records_are_the_same(store: Store, module_make: Make, tmp_path: Path) -> None:  # fmt: skip
    records = [built(store, module_make, fold=fold) for fold in (0, 1)]
    one, two = (site(store, records, tmp_path / name) for name in ("one", "two"))
    files = sorted(path.relative_to(one) for path in one.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(two) for path in two.rglob("*") if path.is_file())
    when = re.compile(rb"Made \S+ from")
    for name in files:
        assert when.sub(b"", (one / name).read_bytes()) == when.sub(b"", (two / name).read_bytes()), name  # fmt: skip


def test_nothing_gives_a_page_that_says_so(store: Store, tmp_path: Path) -> None:
    folder = site(store, [], tmp_path / "site", ["a.json: not JSON"])
    text = Page(folder / "index.html").text
    assert "No record is here yet" in text
    assert "a.json: not JSON" in text


def test_without_a_store_pages_say_what_they_lack(store: Store, make_record: Make, tmp_path: Path) -> None:  # fmt: skip
    stage = {"key": "fit-x-1", "digest": "d", "kind": "fit", "name": "x", "version": 1}
    records = [make_record(0.8, stages=[stage]), make_record(None, method="m", fold=1)]
    folder = site(store, records, tmp_path / "site")
    text = task_page(folder).text
    assert (
        "No curves, for want of predictions in the store: densenet121 (paper) (0 of 1 runs)" in text
    )
    assert "Calibration needs the predictions" in text
    runs = " ".join(Page(path).text for path in (folder / "runs").iterdir())
    assert "No learning curves: its log is not in the store" in runs
    assert not re.search(r".{30}\b(?:None|nan)\b.{30}", text + runs)


def test_repeats_are_said(store: Store, make_record: Make, tmp_path: Path) -> None:
    old = make_record(0.8, final="f" * 64, created="2026-01-01T00:00:00Z")
    new = make_record(0.7, final="f" * 64, created="2026-01-02T00:00:00Z")
    text = Page(site(store, [old, new], tmp_path / "s") / "index.html").text
    assert f"1 record of stages that a newer record repeats: {old.id}" in text
    assert "from 1 record." in text


# --- strangers' texts

HOSTILE = ['<script>alert(1)</script>', '"><img src=x onerror=alert(1)>', "'; alert(1); '", "$\\frac{1}{2$",
           "javascript:alert(1)", "\x00\x1b[31m\u202e", "{{ 7*7 }}", "{% raw %}", "&lt;b&gt;", "\ud800",
           "</title></style>", "a" * 500]  # fmt: skip


@pytest.mark.parametrize("hostile", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_texts_stay_texts(store: Store, module_make: Make, tmp_path: Path, hostile: str) -> None:  # fmt: skip
    stage = {"key": hostile, "digest": hostile, "kind": "fit", "name": hostile, "version": 1,
             "facts": {hostile: {hostile: hostile}, "epochs": hostile}}  # fmt: skip
    plain = built(store, module_make)
    texts: dict[str, Any] = {
        "method": hostile, "preset": hostile, "dataset": hostile, "split": hostile, "paper": hostile,
        "id": hostile, "benchmark": hostile, "created": hostile, "revision": hostile,
        "warnings": [hostile], "changed": {hostile: hostile}, "params": {hostile: {hostile: hostile}},
        "views": [{"name": hostile, "preset": hostile, "changed": {hostile: hostile}}],
        "data_facts": {"images": hostile, hostile: [hostile]}, "provenance": {hostile: hostile},
        "cost": {"device": hostile, hostile: hostile},
    }  # fmt: skip
    if hostile == "\ud800":  # it has no digest, so it cannot be what tells tables and rows apart
        texts = {key: texts[key] for key in ("paper", "benchmark", "created", "warnings", "changed", "cost")}  # fmt: skip
    record = plain.model_copy(update=texts)
    analysis = plain.analyses["what is shown"].model_copy(update={"name": hostile, "facts": stage["facts"]})  # fmt: skip
    bad = analysis.model_copy(update={"key": f"../{hostile}"})
    record = record.model_copy(update={"analyses": {hostile: analysis, "b" + hostile: bad}})
    write_json(store.artefact(analysis.key) / "gallery.json", [
        {"file": "gallery.png", "caption": hostile.encode("utf-8", "replace").decode()},
        {"file": "../x.png", "caption": ""}])  # fmt: skip
    folder = site(store, [record], tmp_path / "site", [hostile])
    allowed = {tag for path in Path(curves.__file__).parent.glob("templates/*.html")
               for tag in re.findall(r"<([a-z][a-z0-9]*)", path.read_text())}  # fmt: skip
    for path in folder.rglob("*.html"):
        page = Page(path)
        assert {tag for tag, _ in page.found} <= allowed
        assert not [a for _, a in page.found if any(name.startswith("on") for name in a)]
        assert [t for t, _ in page.found].count("script") == 1
        assert not [link for link in page.links() if re.match(r"\s*[a-z]+:|//", link)]
        assert "49" not in page.source or "7*7" not in hostile or "{{ 7*7 }}" in page.text
    shown = hostile.encode("utf-8", "replace").decode()
    assert " ".join(html.unescape(shown).split())[:5] in html.unescape(task_page(folder).text)
    for path in folder.rglob("*.svg"):
        ElementTree.parse(path)


def test_pictures_of_single_films_are_left_out_when_asked(
    store: Store, make_record: Make, tmp_path: Path
) -> None:
    record = built(store, make_record, folds=1)
    gallery = store.artefact("compute-shown-0")
    Image.new("L", (40, 40), 90).save(gallery / "means.png")
    write_json(gallery / "gallery.json", [
        {"file": "gallery.png", "caption": "one", "films": True},
        {"file": "means.png", "caption": "all", "films": False}])  # fmt: skip
    tables = collect([record], predictions_in(store))
    folder = write_site(tables, [record], [], tmp_path / "site", store, films=False).parent
    assert len(list((folder / "pictures").iterdir())) == 1
    page = next((folder / "runs").glob("*.html")).read_text()
    assert "gallery.png: left out, it shows single films" in page
    assert 'alt="all"' in page
    assert 'alt="one"' not in page


@pytest.mark.parametrize("key", ["..", "../up", "/etc", "a/b", "", ".hidden"])
def test_no_key_leads_out_of_the_store(store: Store, make_record: Make, tmp_path: Path, key: str) -> None:  # fmt: skip
    outside = tmp_path / "up"
    for folder in (outside, store.root / "up", store.root):
        write_json(folder / "stage.json", {})
        write_json(folder / "gallery.json", [{"file": "gallery.png", "caption": "secret"}])
        Image.new("L", (8, 8)).save(folder / "gallery.png")
        (folder / "log.csv").write_text(LOG)
    (store.root / "artefacts").mkdir()
    stage = {"key": key, "digest": "d", "kind": "fit", "name": "x", "version": 1}
    record = make_record(stages=[stage], analyses={"a": {**stage, "kind": "compute"}})
    folder = site(store, [record], tmp_path / "site")
    assert not (folder / "pictures").exists()
    assert not [p for p in (folder / "figures").iterdir() if "losses" in p.name]


@pytest.mark.parametrize(
    ("file", "says"),
    [("missing.png", "no file"), ("../gallery.png", "no file"), ("link.png", "no file"),
     ("torn.png", "no readable picture"), ("text.svg", "no readable picture"), ("huge.png", "too many")],
)  # fmt: skip
def test_pictures_that_are_none_are_said(
    store: Store, module_make: Make, tmp_path: Path, file: str, says: str
) -> None:
    record = built(store, module_make)
    folder = store.artefact("compute-shown-0")
    picture = (folder / "gallery.png").read_bytes()
    (folder / "torn.png").write_bytes(picture[: len(picture) // 2])
    (folder / "text.svg").write_text("<svg onload='alert(1)'/>")
    (folder.parent / "gallery.png").write_bytes(picture)
    (folder / "link.png").symlink_to(folder.parent / "gallery.png")
    Image.new("1", (9000, 8000)).save(folder / "huge.png")
    write_json(folder / "gallery.json", [{"file": file, "caption": "c"}, {"file": "gallery.png", "caption": "good"}])  # fmt: skip
    out = site(store, [record], tmp_path / "site")
    (run,) = (out / "runs").iterdir()
    assert says in Page(run).text
    assert "good" in Page(run).text
    assert len(list((out / "pictures").iterdir())) == 2


def test_pictures_have_a_budget_and_are_written_anew(
    store: Store, module_make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cxrbench.leaderboard.site import output

    record = built(store, module_make)
    path = store.artefact("compute-shown-0") / "gallery.png"
    path.write_bytes(path.read_bytes() + b"<script>alert(1)</script>")
    folder = site(store, [record], tmp_path / "one")
    files = list((folder / "pictures").iterdir())
    assert len(files) == 2
    assert not any(b"script" in each.read_bytes() for each in files)
    sizes = sorted(each.stat().st_size for each in files)
    made = output.Galleries
    monkeypatch.setattr(output, "Galleries", lambda *a: made(*a, budget=sizes[0]))
    folder = site(store, [record], tmp_path / "two")
    assert [each.stat().st_size for each in (folder / "pictures").iterdir()] == sizes[:1]
    assert "1 are here as thumbnails only, 0 are left out" in Page(folder / "index.html").text


# --- the folder


def test_a_folder_with_other_files_is_left_alone(store: Store, make_record: Make, tmp_path: Path) -> None:  # fmt: skip
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.tex").write_text("x")
    with pytest.raises(UsageError, match="other files"):
        site(store, [make_record()], other)
    assert [path.name for path in other.iterdir()] == ["thesis.tex"]


def test_a_site_is_replaced_whole(store: Store, make_record: Make, tmp_path: Path) -> None:
    first = make_record(0.8)
    folder = site(store, [first], tmp_path / "site")
    assert (folder / run_path(first)).is_file()
    site(store, [make_record(0.9)], folder)
    assert not (folder / run_path(first)).exists()
    assert (folder / MARKER).is_file()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".site")] == []


# --- numbers, beside other implementations


def part(seed: int = 0, fold: int = 0, **fields: Any) -> Part:
    table = predicted(seed, **fields)
    test = table[table["part"] == "test"]
    return Part(
        fold, LABELS,
        test[[f"target:{label}" for label in LABELS]].to_numpy(copy=True),
        test[[f"probability:{label}" for label in LABELS]].to_numpy(copy=True),
        np.unique(test["patient_id"], return_inverse=True)[1], test["patient_id"].nunique(),
        {name: test[name].to_numpy(object, copy=True) for name in ("sex", "age")},
    )  # fmt: skip


def test_predictions_are_read_with_their_attributes(store: Store, module_make: Make) -> None:
    record = built(store, module_make)
    found = read_part(record, store, predictions_in(store))
    assert found is not None
    mean = np.mean([curves.auc_of(found, np.ones(220, bool), k) for k in range(2)])
    assert mean == pytest.approx(record.scores["macro"]["auc"], abs=1e-12)
    table = predicted(0).set_index("image_id")
    assert found.patients == 74 and found.patient.max() == 73
    assert sorted(found.attributes) == ["age", "sex"]
    assert sorted(found.attributes["age"]) == sorted(table[table["part"] == "test"]["age"])
    alone = store.artefact(record.stages[1].key) / "predictions.parquet"
    predicted(1).to_parquet(alone)
    assert read_part(record, store, predictions_in(store)) is None, "another run's predictions"


@pytest.mark.parametrize("label", [0, 1])
def test_curves_have_the_areas_that_scikit_learn_gives(label: int) -> None:
    one = part(images=1220)
    found = curves.label_curves([one], label)
    assert found is not None
    known = ~np.isnan(one.target[:, label])
    y, p = one.target[known, label], one.probability[known, label]
    assert np.trapezoid(found.roc.y, curves.GRID) == pytest.approx(roc_auc_score(y, p), abs=0.004)
    assert np.mean(found.pr.y) == pytest.approx(average_precision_score(y, p), abs=0.012)
    assert found.prevalence == pytest.approx(y.mean())
    best = max(
        (y[p >= t].mean() for t in p if y[p >= t].sum() >= 0.95 * y.sum() - 1e-9), default=math.nan
    )
    assert found.precision_at_95 == pytest.approx(best, abs=1e-12)


def test_bands_lie_around_their_curve_and_widen_with_fewer_patients() -> None:
    wide, narrow = (curves.label_curves([part(images=n)], 0) for n in (140, 2420))
    assert wide and narrow
    inner = slice(10, 90)
    for found in (wide, narrow):
        assert (found.roc.low[inner] <= found.roc.y[inner] + 1e-9).all()
        assert (found.roc.high[inner] >= found.roc.y[inner] - 1e-9).all()
    spread = [np.mean((f.roc.high - f.roc.low)[inner]) for f in (wide, narrow)]
    assert spread[0] > 2.5 * spread[1]


def test_curves_of_folds_are_averaged_and_not_pooled() -> None:
    low, high = part(0), part(1, fold=1)
    low.probability[:] *= 0.01  # another scale: pooling would mix the folds up
    found = curves.label_curves([low, high], 0)
    alone = [curves.label_curves([each], 0) for each in (low, high)]
    assert found and alone[0] and alone[1]
    np.testing.assert_allclose(found.roc.y, (alone[0].roc.y + alone[1].roc.y) / 2)
    assert found.folds == 2


def test_a_label_without_both_classes_has_no_curve() -> None:
    one = part()
    one.target[:, 0] = 0
    assert curves.label_curves([one], 0) is None


def test_calibration_by_hand() -> None:
    one = part(images=620)
    found = curves.reliability([one], 0)
    assert found is not None
    y, p = one.target[:, 0], one.probability[:, 0]
    assert found.brier == pytest.approx(brier_score_loss(y, p))
    assert found.brier_of_prevalence == pytest.approx(brier_score_loss(y, np.full(len(y), y.mean())))  # fmt: skip
    groups = np.array_split(np.argsort(p, kind="stable"), 10)
    expected = sum(len(g) * abs(p[g].mean() - y[g].mean()) for g in groups) / len(y)
    assert found.ece == pytest.approx(expected)
    assert (found.low <= found.share).all() and (found.share <= found.high).all()


def test_subgroups_by_hand() -> None:
    parts = [part(0, images=620), part(1, fold=1, images=620)]
    found = {split.attribute: split for split in subgroups.splits(parts)}
    assert sorted(found) == ["age", "sex"]
    expected = {}
    for sex in "FM":
        values = []
        for k in range(2):
            for each in parts:
                rows = (each.attributes["sex"] == sex) & ~np.isnan(each.target[:, k])
                values.append(roc_auc_score(each.target[rows, k], each.probability[rows, k]))
        expected[sex] = np.mean(values)
    assert {g.name: g.auc for g in found["sex"].groups} == pytest.approx(expected)
    assert found["sex"].gap == pytest.approx(abs(expected["F"] - expected["M"]))
    assert found["sex"].worst.name == min(expected, key=expected.__getitem__)
    assert [group.name for group in found["age"].groups] == ["18 to 39", "40 to 59", "60 to 79"]


def test_small_groups_are_left_out_and_said() -> None:
    one = part(images=620)
    one.attributes["sex"][:590] = "M"
    one.attributes["sex"][590:] = "F"
    one.attributes["age"][:] = None
    assert subgroups.splits([one]) == [], "one group is no comparison"
    one.attributes["sex"][:300] = "X"
    (split,) = subgroups.splits([one])
    assert ([group.name for group in split.groups], split.left_out) == (["M", "X"], ["F"])


def test_names_are_drawn_as_they_are() -> None:
    """A dollar begins no mathematics, and a control character breaks no file."""
    for text in (r"$\frac{1}{2$", "$x$ & <b>", "a\x1bb"):
        root = ElementTree.fromstring(figures.pareto([(text, 1.0, 0.7), ("b", 2.0, 0.8)], "hours"))
        drawn = {each.text for each in root.iter("{http://www.w3.org/2000/svg}text")}
        assert text.replace("\x1b", " ") in drawn


def test_the_frontier_is_what_nothing_beats() -> None:
    points = [("a", 1.0, 0.7), ("b", 2.0, 0.8), ("c", 2.0, 0.75), ("d", 3.0, 0.8), ("e", 9.0, 0.9)]
    assert {points[i][0] for i in figures.frontier(points)} == {"a", "b", "e"}


def test_a_figure_does_not_hang_on_the_one_before() -> None:
    lines = {"train_loss": [0.5, 0.4], "val_loss": [0.6, math.nan]}
    first = figures.learning_curves([0, 1], lines)
    figures.learning_curves(list(range(50)), {"val_auc": [100.0 + n for n in range(50)]})
    assert figures.learning_curves([0, 1], lines) == first


def test_logs_are_read_with_gaps() -> None:
    epochs, columns = read_log(LOG)
    assert epochs == [0, 1]
    assert math.isnan(columns["train_loss"][1])
    assert read_log("") == ([], {})
    assert read_log("epoch,x\n0,hello\n")[1]["x"] != [0.0]


def test_facts_become_tables() -> None:
    facts = {"films": 3, "psnr": {"unet": {"a": 1.5, "b": None}, "wiener": {"a": 2.25}}, "deep": {"x": {"y": 1}}}  # fmt: skip
    tables = fact_tables(facts)
    assert [(t.caption, t.header, t.rows) for t in tables] == [
        ("", ["", "value"], [["films", "3"]]),
        ("psnr", ["", "a", "b"], [["unet", "1.5", "–"], ["wiener", "2.25", ""]]),
        ("deep · x", ["", "value"], [["y", "1"]]),
    ]


# --- the command that does it again


def test_the_command_says_what_differs_and_quotes_it(make_record: Make) -> None:
    record = make_record(
        fold=3, seed=7, changed={"recipe.epochs": 2, "a.note": "x; rm -rf $HOME"},
        params={"recipe": {"epochs": 2, "precision": "bf16-mixed"}}, dataset_params={"task": "pneumonia", "root": None},
    )  # fmt: skip
    again = reproduction(record, [])
    words = again.command.split()
    assert "--fold 3 --seed 7" in again.command
    assert "--precision bf16-mixed" in again.command
    assert "params.recipe.epochs=2" in words and "data.task=pneumonia" in words
    assert "'params.a.note=x; rm -rf $HOME'" in again.command
    assert "root" not in again.command
    assert again.specification == ""


def test_trainings_of_different_precision_are_said_one_by_one(make_record: Make) -> None:
    params = {"recipe": {"precision": "bf16-mixed"}, "unet": {"recipe": {"precision": "32-true"}}}
    words = reproduction(make_record(params=params), []).command.split()
    assert "--precision" not in words
    assert "params.recipe.precision=bf16-mixed" in words
    assert "params.unet.recipe.precision=32-true" in words


def test_what_the_options_cannot_say_becomes_a_file(make_record: Make) -> None:
    views = [{"name": "deblur", "preset": "tuned", "changed": {"sigma": 1.5}}]
    again = reproduction(make_record(views=views), [{"kind": "fit", "data": {"dataset": "lung-masks", "external": True}}])  # fmt: skip
    spec = json.loads(again.specification)
    assert again.command == "cxrbench bench run.yaml"
    assert spec["views"] == [{"name": "deblur", "preset": "tuned", "params": {"sigma": 1.5}}]
    assert spec["externals"] == [{"name": "lung-masks"}]


@pytest.mark.slow
def test_the_command_plans_the_same_run(
    store: Store, make_record: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    """What a planned run becomes as a record gives a command that plans the same stages."""
    import shlex

    from typer.testing import CliRunner

    from cxrbench.cli import app

    asked = ["run", "--method", "densenet121", "--preset", "quick", "--dataset", "phantom", "--gpus", "0",
             "--set", "data.images=60", "--set", "recipe.learning_rate=1e-5", "--fold", "0", "--seed", "3",
             "--dry-run", "--json"]  # fmt: skip
    first = json.loads(CliRunner().invoke(app, asked).stdout)
    run = first["runs"][0]
    record = make_record(
        **{k: run[k] for k in ("method", "preset", "params", "changed", "dataset", "split", "fold", "seed")},
        dataset_params={"images": 60}, data_facts={"phantom": True},
    )  # fmt: skip
    command = reproduction(record, []).command.replace("\\\n", " ")
    words = [*shlex.split(command)[1:], "--gpus", "0", "--dry-run", "--json"]
    again = json.loads(CliRunner().invoke(app, words).stdout)
    assert again["runs"][0]["final"] == run["final"]


# --- served on localhost


def test_the_server_answers_for_this_machine_and_this_folder_alone(tmp_path: Path) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "index.html").write_text("<p>here")
    (tmp_path / "secret").write_text("x")
    with make_server(tmp_path / "site") as server:
        Thread(target=server.serve_forever, daemon=True).start()
        home = f"http://127.0.0.1:{server.server_port}"

        def status(path: str, host: str = f"localhost:{server.server_port}") -> int:
            request = urllib.request.Request(home + path, headers={"Host": host})
            try:
                with urllib.request.urlopen(request, timeout=10) as answer:
                    return int(answer.status)
            except urllib.error.HTTPError as error:
                return error.code

        try:
            assert server.server_address[0] == "127.0.0.1"
            assert status("/") == 200
            assert status("/../secret") == 404
            assert status("/%2e%2e/secret") == 404
            assert status("/", host="evil.example:80") == 403
        finally:
            server.shutdown()


def test_the_command_line_writes_pages_without_torch(store: Store, module_make: Make, tmp_path: Path) -> None:  # fmt: skip
    from cxrbench.core.record import write_record

    write_record(store.root / "records", built(store, module_make))
    code = (
        "import sys\n"
        "from cxrbench.cli import app\n"
        f"sys.argv = ['cxrbench', 'leaderboard', '--html', {str(tmp_path / 'site')!r}]\n"
        "try: app()\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "heavy = {'torch', 'lightning', 'wandb', 'matplotlib.pyplot'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == str(tmp_path / "site" / "index.html")
    assert (tmp_path / "site" / "index.html").is_file()


# --- in a browser


class Browser:
    """A headless Chromium, spoken to over its debugging pipe; what it complains of is kept."""

    def __init__(self, program: str, profile: Path) -> None:
        there, self._send = os.pipe()
        self._receive, back = os.pipe()
        flags = ["--headless=new", "--remote-debugging-pipe", "--no-first-run", "--disable-gpu",
                 f"--user-data-dir={profile}", *(["--no-sandbox"] if os.geteuid() == 0 else [])]  # fmt: skip
        null = os.open(os.devnull, os.O_RDWR)
        actions = [(os.POSIX_SPAWN_DUP2, source, target)
                   for source, target in ((there, 3), (back, 4), (null, 1), (null, 2))]  # fmt: skip
        self._process = os.posix_spawn(program, [program, *flags], os.environ, file_actions=actions)
        for descriptor in (there, back, null):
            os.close(descriptor)
        self._rest, self._number, self._session, self._context = b"", 0, "", ""
        self.events: list[dict[str, Any]] = []

    def begin(self) -> None:
        """A new window that shares nothing with earlier ones, of which nothing is kept."""
        self._session, last = "", self._context
        if last:
            self.call("Target.disposeBrowserContext", browserContextId=last)
        self._context = self.call("Target.createBrowserContext")["browserContextId"]
        window = {"url": "about:blank", "browserContextId": self._context}
        target = self.call("Target.createTarget", **window)["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        self.events = []
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def close(self) -> None:
        os.kill(self._process, signal.SIGTERM)
        os.waitpid(self._process, 0)
        os.close(self._send)
        os.close(self._receive)

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._send, json.dumps(message).encode() + b"\0")
        while (answer := self._next()).get("id") != self._number:
            self.events.append(answer)
        assert "error" not in answer, answer
        return dict(answer["result"])

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._receive], [], [], 60)
            assert ready, "the browser is silent"
            read = os.read(self._receive, 1 << 20)
            assert read, "the browser has gone"
            self._rest += read
        first, _, self._rest = self._rest.partition(b"\0")
        return dict(json.loads(first))

    def open(self, address: str) -> None:
        self.wait_for_load(lambda: self.call("Page.navigate", url=address))

    def wait_for_load(self, act: Callable[[], Any]) -> None:
        seen = len(self.events)
        act()
        while not any(e.get("method") == "Page.loadEventFired" for e in self.events[seen:]):
            self.events.append(self._next())

    def run(self, script: str) -> Any:
        answer = self.call(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def press(self, key: str, code: int) -> None:
        text = {"text": "\r"} if key == "Enter" else {}
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key,
                      windowsVirtualKeyCode=code, **(text if kind == "keyDown" else {}))  # fmt: skip

    def click(self, selector: str) -> None:
        x, y = self.run(
            f"(() => {{ const e = document.querySelector({selector!r}); e.scrollIntoView({{block: 'center', inline: 'center'}});"
            " const r = e.getBoundingClientRect(); return [r.x + 5, r.y + r.height / 2]; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def complaints(self) -> list[Any]:
        """Errors, warnings, dialogs, and requests for anything but files of the page."""
        bad = {"Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded",
               "Page.javascriptDialogOpening"}  # fmt: skip
        found: list[Any] = [e["params"] for e in self.events if e.get("method") in bad]
        return found + [url for url in self.requests() if not url.startswith(("file://", "about:"))]

    def requests(self) -> list[str]:
        sent = [e["params"] for e in self.events if e.get("method") == "Network.requestWillBeSent"]
        return [each["request"]["url"] for each in sent]


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")  # fmt: skip
    if program is None:
        pytest.skip("no chromium on the path: the pages are not tried in a browser")
    made = Browser(program, tmp_path_factory.mktemp("profile"))
    yield made
    made.close()


@pytest.fixture
def browser(chromium: Browser) -> Browser:
    """A window of its own."""
    chromium.begin()
    return chromium


VISIBLE = (
    "Array.from(document.querySelectorAll('[data-sortable=methods] tbody tr'))"
    ".filter(row => !row.hidden).map(row => row.cells[1].textContent.trim().split(' ')[0])"
)


def test_a_browser_sorts_filters_and_follows_links(whole: Path, browser: Browser) -> None:
    (task,) = (whole / "tasks").glob("*.html")
    browser.open(task.as_uri())
    assert browser.run(VISIBLE) == ["aecnn", "densenet121", "vgg16"]
    browser.click("th[data-key=method] button")
    assert browser.run(VISIBLE) == ["aecnn", "densenet121", "vgg16"]
    browser.click("th[data-key=method] button")
    assert browser.run(VISIBLE) == ["vgg16", "densenet121", "aecnn"]
    assert browser.run("document.querySelector('th[data-key=method]').ariaSort") == "descending"
    # By keyboard: the heads are buttons.
    browser.run("document.querySelector('th[data-key=auc] button').focus()")
    browser.press("Enter", 13)
    assert browser.run(VISIBLE) == ["aecnn", "densenet121", "vgg16"]
    browser.press("Enter", 13)
    assert browser.run(VISIBLE) == ["vgg16", "densenet121", "aecnn"]
    assert (
        browser.run("document.querySelectorAll('[data-sortable=methods] [aria-sort]').length") == 1
    )
    browser.run("document.querySelector('.tools input[type=search]').focus()")
    browser.call("Input.insertText", text="paper SE")
    assert browser.run(VISIBLE) == ["densenet121"]
    state = browser.run("location.hash")
    assert "sort=auc%3Aasc" in state and "q=paper" in state

    browser.open("about:blank")
    browser.open(task.as_uri() + state)
    assert browser.run(VISIBLE) == ["densenet121"], "the address keeps what was chosen"
    assert (
        browser.run("document.querySelector('.tools [role=status]').textContent") == "1 of 3 rows"
    )

    browser.wait_for_load(
        lambda: browser.click("[data-sortable=methods] tbody tr:not([hidden]) td a")
    )
    assert "/runs/" in browser.run("location.pathname")
    browser.wait_for_load(lambda: browser.click("a.brand"))
    assert browser.run("location.pathname").endswith("/index.html")
    assert browser.complaints() == []
    assert any(url.endswith("board.js") for url in browser.requests())
    assert any(url.endswith("style.css") for url in browser.requests())


def test_a_column_that_is_hidden_can_be_called_in(whole: Path, browser: Browser) -> None:
    (task,) = (whole / "tasks").glob("*.html")
    browser.open(task.as_uri() + "#toggle=params")
    assert browser.run("document.querySelector('th[data-key=params]').hidden") is True
    box = "Array.from(document.querySelectorAll('.tools label')).find(l => l.textContent.includes('params')).firstChild"
    browser.run(f"{box}.click()")
    assert browser.run("document.querySelector('th[data-key=params]').hidden") is False
    assert browser.run("location.hash") == "#table"
    assert browser.complaints() == []


def test_pages_fit_a_phone_follow_dark_mode_and_show_every_picture(whole: Path, browser: Browser) -> None:  # fmt: skip
    (task,) = (whole / "tasks").glob("*.html")
    pages = [whole / "index.html", task, next((whole / "runs").iterdir())]
    browser.call("Emulation.setDeviceMetricsOverride", width=400, height=800, deviceScaleFactor=1, mobile=True)  # fmt: skip
    for page in pages:
        grounds = []
        for scheme in ("light", "dark"):
            media = [{"name": "prefers-color-scheme", "value": scheme}]
            browser.call("Emulation.setEmulatedMedia", features=media)
            browser.open(page.as_uri())
            grounds.append(browser.run("getComputedStyle(document.body).backgroundColor"))
        assert grounds == ["rgb(255, 255, 255)", "rgb(13, 17, 23)"]
        assert browser.run("document.documentElement.scrollWidth") <= 400, page
        broken = browser.run(
            "(async () => { document.querySelectorAll('details').forEach(d => d.open = true);"
            " const all = Array.from(document.images); all.forEach(i => i.loading = 'eager');"
            " await Promise.allSettled(all.map(i => i.decode()));"
            " return all.filter(i => !i.naturalWidth).map(i => i.src); })()"
        )
        assert broken == []
    assert browser.complaints() == []


def test_the_policy_stops_scripts_and_requests(whole: Path, browser: Browser) -> None:
    browser.open((whole / "index.html").as_uri())
    browser.run(
        "(async () => { const s = document.createElement('script'); s.textContent = 'window.ran = 1';"
        " document.body.append(s); const i = new Image(); i.src = 'http://127.0.0.1:9/x.png';"
        " await i.decode().catch(() => 0); await fetch('http://127.0.0.1:9/').catch(() => 0); })()"
    )
    assert browser.run("window.ran") is None
    stopped = [
        e["params"]["entry"]["text"] for e in browser.events if e.get("method") == "Log.entryAdded"
    ]
    assert len(stopped) >= 3
    assert all("Content Security Policy" in text for text in stopped), stopped


@pytest.mark.parametrize("number", [0, 1, 2, 6])
def test_hostile_texts_do_nothing_in_a_browser(
    store: Store, module_make: Make, tmp_path: Path, browser: Browser, number: int
) -> None:
    text = HOSTILE[number]
    record = built(store, module_make).model_copy(
        update={"method": text, "dataset": text, "warnings": [text], "changed": {text: text}}
    )
    folder = site(store, [record], tmp_path / "site", [text])
    for page in sorted(folder.rglob("*.html")):
        browser.open(page.as_uri())
        assert text in browser.run("document.body.textContent")
    assert browser.complaints() == []
