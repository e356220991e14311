"""LaTeX, Parquet and JSON of leaderboards: the tables' numbers, typed, escaped and the same each time."""

import csv
import io
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pyarrow.parquet as pq
import pytest

from cxrbench.core.record import Record
from cxrbench.leaderboard.collect import Table, collect
from cxrbench.leaderboard.export.document import SCHEMA, schema, to_json
from cxrbench.leaderboard.export.latex import escape, to_latex
from cxrbench.leaderboard.export.longform import to_parquet
from cxrbench.leaderboard.files import write_tables
from cxrbench.leaderboard.markdown import to_csv

Make = Callable[..., Record]
LABELS = ["Mass", "Edema"]
HOSTILE = [
    r"\input{/etc/passwd}", r"\\[1em] \end{table}", "100% & more $x_1^2$ #1 {", "a\nb\r\\write18{id}",
    "[x]", "*", "--``'' ?`!`", "<b>|\"", "~^", "é ö ñ ŝ ő č Ç ß ø Ł ą ħ", "中 \U0001f600 \u202e \x1b[31m",
    "=1+1", "–·→Δ±", "\u2028x", "\\",
]  # fmt: skip


def label(auc: float, images: int = 50, positives: int = 10, **more: Any) -> dict[str, Any]:
    at = {"precision": auc / 2, "recall": 0.95, "interval": [auc / 4, auc]}
    return {"auc": auc, "pr_auc": auc / 3, "auc_interval": [auc - 0.1, auc + 0.05], "images": images,
            "positives": positives, "precision_at_95_recall": at, **more}  # fmt: skip


def with_labels(record: Record, *aucs: float) -> Record:
    labels = {name: label(auc) for name, auc in zip(LABELS, aucs, strict=True)}
    scores = {**record.scores, "labels": labels}
    return record.model_copy(update={"scores": scores, "labels": LABELS})


def five(make: Make, **methods: float) -> list[Record]:
    """Five folds of each method, which differ from the next by more than they spread."""
    return [
        with_labels(make(auc + by, method=method, fold=fold, folds=5), auc + by, auc - 0.1)
        for method, auc in methods.items()
        for fold, by in enumerate((0.0, 0.01, -0.01, 0.003, -auc / 500))
    ]


@pytest.fixture
def tables(make_record: Make) -> list[Table]:
    facts = {"split": "official", "source": "Müller & Søn", "macro": {"auc": 0.82}, "labels": {}}
    return collect([
        *five(make_record, densenet121=0.8, vgg16=0.6, aecnn=0.8001),
        *five(make_record, fmix=0.75)[:3],
        make_record(0.9, folds=1, split="official", split_digest="9" * 64, reported=facts,
                    macro={"auc_interval": [0.85, 0.93], "pr_auc": None}),
    ])  # fmt: skip


def hostile(make: Make) -> list[Table]:
    """One table whose every free text is each of HOSTILE in turn."""
    records = []
    for number, text in enumerate(HOSTILE):
        texts = {
            "method": f"{text}", "preset": text, "changed": {text: text}, "warnings": [text], "dataset": HOSTILE[0],
            "split": HOSTILE[1], "cost": {"device": text}, "data_facts": {"images": text, "patients": text},
            "reported": {"macro": {"auc": 0.5}, "split": text, "source": text},
            "views": [{"name": text}],
        }  # fmt: skip
        records.append(make(0.5 + number / 100, folds=1).model_copy(update=texts))
    return collect(records)


def compiled(text: str, folder: Path) -> str:
    """The text of the PDF's log; fails where LaTeX does."""
    (folder / "leaderboard.tex").write_text(text, encoding="ascii")
    (folder / "paper.tex").write_text(
        "\\documentclass{article}\\usepackage{booktabs}\\usepackage{graphicx}\n"
        "\\begin{document}\\input{leaderboard}\\end{document}\n"
    )
    words = [
        "pdflatex",
        "-interaction=nonstopmode",
        "-halt-on-error",
        "-no-shell-escape",
        "paper.tex",
    ]
    done = subprocess.run(words, cwd=folder, capture_output=True, timeout=120, check=False)
    log = (folder / "paper.log").read_text(errors="replace")
    assert done.returncode == 0, log[-3000:]
    return log


# --- JSON


def test_the_document_keeps_its_published_schema(tables: list[Table], make_record: Make) -> None:
    published = json.loads(SCHEMA.read_text(encoding="utf-8"))
    assert published == schema(), "run python -m cxrbench.leaderboard.export.document"
    jsonschema.Draft202012Validator.check_schema(published)
    check = jsonschema.Draft202012Validator(published)
    for found in (tables, hostile(make_record), []):
        document = json.loads(to_json(found, ["x: retracted"]))
        check.validate(document)
    assert document["schema_version"] == 1
    with pytest.raises(jsonschema.ValidationError):
        check.validate({**document, "schema_version": 2})
    with pytest.raises(jsonschema.ValidationError):
        check.validate({**document, "other": 1})


def test_the_document_has_the_tables_numbers(tables: list[Table]) -> None:
    document = json.loads(to_json(tables, []))
    assert [table["title"] for table in document["tables"]] == [table.title for table in tables]
    five_folds = next(table for table in document["tables"] if table["split"] == "cv5")
    rows = {row["method"]: row for row in five_folds["rows"]}
    assert rows["densenet121"]["tie"] == rows["aecnn"]["tie"] == [1, 2]
    assert (rows["fmix"]["rank"], rows["fmix"]["folds_done"]) == (None, 3)
    runs = [(run["fold"], run["seed"]) for run in rows["aecnn"]["runs"]]
    assert runs == [(fold, 0) for fold in range(5)]
    found = rows["aecnn"]["labels"]["Edema"]
    assert (found["images"], found["positives"]) == (250, 50)
    assert found["values"]["auc"]["mean"] == pytest.approx(0.7001)
    assert found["values"]["precision_at_95_recall"]["n"] == 5
    assert found["values"]["validation_minus_test_auc"] is None
    pair = five_folds["pairwise"][1]
    ours = next(t for t in tables if t.split == "cv5").pairwise[1].comparison
    assert pair["comparison"]["p_adjusted"] == ours.p_adjusted
    assert "Nadeau" in pair["comparison"]["how"]


# --- Parquet


def test_the_long_form_has_a_line_for_each_metric_and_label(tables: list[Table]) -> None:
    table = pq.read_table(io.BytesIO(to_parquet(tables)))
    assert table.num_rows == 6 * (4 * 3 + 1 * 2)
    types = {field.name: str(field.type) for field in table.schema}
    assert (types["mean"], types["rank"], types["complete"]) == ("double", "int32", "bool")
    lines = table.to_pylist()
    keys = [(x["table"], x["row"], x["label"], x["metric"]) for x in lines]
    assert len(set(keys)) == len(keys)
    of = {(x["method"], x["split"], x["label"], x["metric"]): x for x in lines}
    macro = of["aecnn", "cv5", None, "auc"]
    row = next(r for t in tables for r in t.rows if r.method == "aecnn")
    assert macro["mean"] == row.values["auc"].mean  # type: ignore[union-attr]
    assert (macro["low"], macro["high"]) == row.auc_interval
    assert (macro["place_first"], macro["place_last"], macro["runs"]) == (1, 2, 5)
    assert of["aecnn", "cv5", "Mass", "auc"]["mean"] == pytest.approx(
        0.8001 + (0.003 - 0.8001 / 500) / 5
    )
    assert of["aecnn", "cv5", "Mass", "auc"]["low"] is None
    single = of["densenet121", "official", None, "auc"]
    assert (single["low"], single["high"], single["sd"]) == (0.85, 0.93, None)
    assert of["densenet121", "official", None, "pr_auc"]["mean"] is None
    assert of["densenet121", "official", None, "pr_auc"]["runs"] == 0


def test_a_single_run_s_label_has_its_interval(make_record: Make) -> None:
    record = with_labels(make_record(0.8, folds=1), 0.8, 0.7)
    lines = pq.read_table(io.BytesIO(to_parquet(collect([record])))).to_pylist()
    of = {(line["label"], line["metric"]): line for line in lines}
    assert of["Mass", "auc"]["low"] == pytest.approx(0.7)
    assert of["Mass", "precision_at_95_recall"]["mean"] == 0.4
    assert of["Mass", "precision_at_95_recall"]["high"] == 0.8


@pytest.mark.parametrize(
    "torn", [None, [], {"Mass": 3}, {"Mass": {"auc": "x", "auc_interval": [1]}}]
)
def test_a_strangers_labels_are_unknown_and_no_crash(make_record: Make, torn: Any) -> None:
    record = make_record(0.8, folds=1)
    record = record.model_copy(
        update={"labels": LABELS, "scores": {**record.scores, "labels": torn}}
    )
    tables = collect([record])
    assert (
        json.loads(to_json(tables, []))["tables"][0]["rows"][0]["labels"]["Mass"]["images"] is None
    )
    lines = pq.read_table(io.BytesIO(to_parquet(tables))).to_pylist()
    assert {line["mean"] for line in lines if line["label"]} == {None}


# --- LaTeX


def test_bold_are_those_who_share_the_first_place(tables: list[Table], make_record: Make) -> None:
    text = to_latex([table for table in tables if table.split == "cv5"])
    assert text.count(r"\begin{table}") == text.count(r"\bottomrule") == 1
    rows = {line.split(" & ")[1]: line for line in text.splitlines() if r" \\" in line}
    assert r"1--2 & \textbf{densenet121 (paper)}" in text
    assert r"\textbf{0.800} $\pm$ 0.007" in rows[r"\textbf{aecnn (paper)}"]
    assert "3 & vgg16 (paper) & 5/5 & 0.600 $\\pm$" in text
    assert r"$-$0.200$^{\downarrow}$" in text
    assert "-- & fmix (paper)\\textsuperscript{a} & 3/5 & 0.750" in text
    assert r"\textsuperscript{a}\,incomplete: " in text
    assert " & constant classifier &  & 0.500 & -- & --" in text
    assert text.count("Nadeau and Bengio") == 1
    alone = to_latex(collect([make_record(0.9, folds=1, macro={"auc_interval": [0.85, 0.93]})]))
    assert r"\textbf" not in alone
    assert "no two methods could be tested" in alone
    assert "0.900 {[}0.850, 0.930{]}" in alone


@pytest.mark.parametrize("text", HOSTILE)
def test_latex_sees_no_command_in_a_text(text: str) -> None:
    shown = escape(text)
    assert shown.isascii()
    assert "\n" not in shown
    known = r"\\(?:text(?:backslash|ascii\w+|less|greater|bar)|char34|cdot|rightarrow|Delta|pm|ss|ae|AE|o|O|l|L|i|j)\b"
    bare = re.sub(r"\\[\\{}$&#%_]|" + known + r"|\\[`'^~\"=.uvcrH](?=\{)", "", shown)
    assert "\\" not in bare
    assert not re.search(
        r"(?<!\\)[%&#_^~]", re.sub(known, "", shown).replace(r"\^{", "").replace(r"\~{", "")
    )


def test_what_has_no_letter_shows_its_number() -> None:
    assert escape("中") == "{[}U+4E2D{]}"
    assert escape("é") == r"\'{e}"
    assert escape("ï") == r"\"{\i}"
    assert escape("a--b") == "a-{}-b"
    assert escape("[*]") == "{[}{*}{]}"


@pytest.mark.skipif(not shutil.which("pdflatex"), reason="no TeX here")
def test_latex_compiles(tables: list[Table], make_record: Make, tmp_path: Path) -> None:
    many = collect([make_record(0.5, folds=1, method=f"m{n}") for n in range(90)])
    text = to_latex([*tables, *many])
    log = compiled(text, tmp_path)
    assert "Overfull" not in log
    assert "multiply defined" not in log
    assert text.count("(continued)") == 2
    assert "Float too large" not in log
    compiled(to_latex(hostile(make_record)), tmp_path)


# --- all files


def test_files_are_the_same_each_time_and_whatever_the_order(
    make_record: Make, tmp_path: Path
) -> None:
    records = [*five(make_record, densenet121=0.8, aecnn=0.8), make_record(0.9, split="official")]
    one = write_tables(collect(records), ["x"], tmp_path / "one")
    two = write_tables(collect(records[::-1]), ["x"], tmp_path / "two")
    assert [path.name for path in one] == [path.name for path in two]
    for first, second in zip(one, two, strict=True):
        assert first.read_bytes() == second.read_bytes(), first.name
    assert sorted(tmp_path.glob("one/*")) == sorted(one), "a temporary file is left"


def test_no_cell_of_the_csv_is_a_formula_and_numbers_stay_numbers(make_record: Make) -> None:
    for row in csv.reader(io.StringIO(to_csv(hostile(make_record)))):
        for cell in row:
            if cell.startswith(("=", "+", "-", "@", "\t", "\r")):
                float(cell)
    (first, _) = csv.DictReader(
        io.StringIO(to_csv(collect(five(make_record, densenet121=0.8, vgg16=0.6))))
    )
    assert float(first["auc_minus_vgg16"]) > 0
    (_, second) = csv.DictReader(
        io.StringIO(to_csv(collect(five(make_record, densenet121=0.8, vgg16=0.6))))
    )
    assert float(second["auc_minus_densenet121"]) == pytest.approx(-0.2, abs=1e-3)
