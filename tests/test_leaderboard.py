"""Records to tables: who may be compared with whom, by hand-made numbers, and what may be published."""

import csv
import html
import io
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cxrbench.core.errors import DataError
from cxrbench.core.record import Record, read_record, read_records, write_record
from cxrbench.core.store import Store, write_json
from cxrbench.leaderboard.collect import Table, collect
from cxrbench.leaderboard.files import write_tables
from cxrbench.leaderboard.markdown import HEADER, cells, pairs_to_csv, to_csv, to_markdown
from cxrbench.runner.publish import publish

Make = Callable[..., Record]


def folds(
    make: Make, *values: float | None, method: str = "densenet121", **fields: Any
) -> list[Record]:
    """One record a fold, with these AUCs."""
    count = fields.pop("folds", len(values))
    return [
        make(auc, method=method, fold=fold, folds=count, **fields)
        for fold, auc in enumerate(values)
    ]


def only(records: list[Record]) -> Table:
    tables = collect(records)
    assert len(tables) == 1
    return tables[0]


def read_csv(tables: list[Table]) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(to_csv(tables))))


# --- what shares a table


@pytest.mark.parametrize(
    "change",
    [
        {"dataset": "other"}, {"dataset_version": 2}, {"dataset_params": {"task": "etiology"}},
        {"revision": "q" * 64}, {"split": "official", "split_digest": "6" * 64},
        {"split_digest": "6" * 64}, {"labels": ["Pneumonia"]}, {"labels": ["pneumonia", "other"]},
    ],
    ids=str,
)  # fmt: skip
def test_what_cannot_be_compared_never_shares_a_table(
    make_record: Make, change: dict[str, Any]
) -> None:
    tables = collect([make_record(0.9), make_record(0.8, **change)])
    assert len(tables) == 2
    assert [len(table.rows) for table in tables] == [1, 1]


@pytest.mark.parametrize(
    "change",
    [
        {"benchmark": "other"}, {"method": "vgg16"}, {"fold": 1}, {"seed": 1}, {"preset": "tuned"},
        {"params": {"recipe": {"epochs": 9}}}, {"method_version": 2}, {"provenance": {}},
    ],
    ids=str,
)  # fmt: skip
def test_what_can_be_compared_shares_a_table(make_record: Make, change: dict[str, Any]) -> None:
    assert len(collect([make_record(0.9), make_record(0.8, **change)])) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"method": "vgg16"}, {"preset": "tuned"}, {"params": {"recipe": {"epochs": 9}}},
        {"method_version": 2},
    ],
    ids=str,
)  # fmt: skip
def test_another_setting_is_another_row(make_record: Make, change: dict[str, Any]) -> None:
    table = only([make_record(0.9), make_record(0.8, fold=1), make_record(0.7, **change)])
    assert sorted(len(row.records) for row in table.rows) == [1, 2]


# --- ranks, means, differences


def test_means_and_deviations_by_hand(make_record: Make) -> None:
    row = only(folds(make_record, 0.8, 0.9, 0.7)).rows[0]
    value = row.values["auc"]
    assert value is not None
    assert value.mean == pytest.approx(0.8)
    assert value.sd == pytest.approx(math.sqrt((0.0 + 0.01 + 0.01) / 2))
    assert value.n == 3
    assert value.interval is None


def test_seeds_count_like_folds(make_record: Make) -> None:
    records = folds(make_record, 0.8, 0.9) + folds(make_record, 0.7, 0.6, seed=1)
    row = only(records).rows[0]
    assert row.values["auc"].mean == pytest.approx(0.75)  # type: ignore[union-attr]
    assert row.values["auc"].n == 4  # type: ignore[union-attr]
    assert (row.done, row.complete) == (2, True)
    row = only(records[:3]).rows[0]
    assert (row.done, row.complete) == (1, False)


def test_one_fold_has_an_interval_instead_of_a_deviation(make_record: Make) -> None:
    record = make_record(0.8, folds=1, macro={"auc_interval": [0.75, 0.85]})
    row = only([record]).rows[0]
    assert row.values["auc"].sd is None  # type: ignore[union-attr]
    assert cells(row)[HEADER.index("AUC")] == "0.8000 [0.750, 0.850]"
    two = only(folds(make_record, 0.8, 0.9, macro={"auc_interval": [0.75, 0.85]})).rows[0]
    assert "[" not in cells(two)[HEADER.index("AUC")]
    assert cells(two)[HEADER.index("AUC")] == "0.8500 ± 0.0707"


def test_rows_are_ranked_by_auc_and_incomplete_ones_are_not(make_record: Make) -> None:
    table = only(
        [
            *folds(make_record, 0.80, 0.82),
            *folds(make_record, 0.85, 0.83, method="aecnn"),
            *folds(make_record, 0.99, method="vgg16", folds=2),
            *folds(make_record, None, None, method="undefined"),
        ]
    )
    assert [(row.method, row.rank) for row in table.rows[:2]] == [("aecnn", 1), ("densenet121", 2)]
    assert {row.method: row.rank for row in table.rows[2:]} == {"vgg16": None, "undefined": None}
    vgg = next(row for row in table.rows if row.method == "vgg16")
    assert cells(vgg)[:3] == ["–", vgg.name, "1/2"]


def test_rows_on_the_same_part_of_the_folds_are_ranked_with_a_note(make_record: Make) -> None:
    table = only([make_record(0.8), make_record(0.9, method="aecnn")])
    assert [(row.method, row.rank) for row in table.rows] == [("aecnn", 1), ("densenet121", 2)]
    assert table.warnings == ["preliminary: ranked on fold 0; the split has 2"]
    table = only([*folds(make_record, 0.8, 0.7), make_record(0.9, method="aecnn")])
    assert [(row.method, row.rank) for row in table.rows] == [("densenet121", 1), ("aecnn", None)]
    assert table.warnings == []


def test_a_repeat_of_the_same_stages_counts_once_and_the_newest_stands(make_record: Make) -> None:
    first = make_record(0.8, folds=1, final="f" * 64, created="2026-01-01T00:00:00Z")
    second = make_record(0.7, folds=1, final="f" * 64, created="2026-01-02T00:00:00Z")
    for records in ([first, second], [second, first]):
        row = only(records).rows[0]
        assert [record.id for record in row.records] == [second.id]
        assert row.values["auc"].mean == 0.7  # type: ignore[union-attr]


def test_differences_are_paired_over_the_folds_that_both_have(make_record: Make) -> None:
    table = only(
        [
            *folds(make_record, 0.80, 0.70, 0.60),
            *folds(make_record, 0.83, 0.71, method="aecnn", folds=3),
            *folds(make_record, 0.5, 0.5, 0.5, seed=7, method="vgg16"),
        ]
    )
    rows = {row.method: row for row in table.rows}
    difference = rows["aecnn"].against["densenet121"]
    assert difference is not None
    assert difference.mean == pytest.approx((0.03 + 0.01) / 2)
    assert difference.sd == pytest.approx(math.sqrt(2 * 0.01**2))
    assert difference.n == 2
    # The means over all folds of each would say something else.
    assert difference.mean != pytest.approx((0.83 + 0.71) / 2 - (0.8 + 0.7 + 0.6) / 3)
    assert rows["aecnn"].against["vgg16"] is None, "no fold with the same seed"
    assert rows["densenet121"].against["densenet121"] is None


def test_the_baseline_has_the_preset_and_the_changes_of_the_row(make_record: Make) -> None:
    short = {"changed": {"recipe.epochs": 1}, "params": {"recipe": {"epochs": 1}}}
    table = only(
        [
            make_record(0.80, folds=1),
            make_record(0.60, folds=1, **short),
            make_record(0.50, folds=1, preset="quick"),
            make_record(0.70, folds=1, method="aecnn", **short),
            make_record(0.90, folds=1, method="aecnn"),
            make_record(0.40, folds=1, method="aecnn", preset="tuned"),
        ]
    )
    found = {
        (row.preset, bool(row.changed)): row.against["densenet121"]
        for row in table.rows
        if row.method == "aecnn"
    }
    assert found["paper", True].mean == pytest.approx(0.1)  # type: ignore[union-attr]
    assert found["paper", False].mean == pytest.approx(0.1)  # type: ignore[union-attr]
    assert found["tuned", False] is None


def test_tables_do_not_hang_on_the_order_of_records(make_record: Make) -> None:
    records = [
        *folds(make_record, 0.8, 0.7),
        *folds(make_record, 0.9, 0.6, method="aecnn"),
        *folds(make_record, 0.5, 0.5, method="vgg16", split_digest="7" * 64),
    ]
    for index, record in enumerate(records):
        records[index] = record.model_copy(update={"created": f"2026-01-01T00:00:{index:02d}Z"})
    expected = to_csv(collect(records)), to_markdown(collect(records), [])
    assert (to_csv(collect(records[::-1])), to_markdown(collect(records[::-1]), [])) == expected


def test_nothing_gives_no_table() -> None:
    assert collect([]) == []
    assert "# Leaderboard" in to_markdown([], ["x: retracted"])


# --- what is written


def test_names_say_the_preset_and_each_change_once(make_record: Make) -> None:
    changed = {"classifier.recipe.epochs": 2, "recipe.epochs": 2, "bce_weight": 0.8}
    row = only([make_record(0.8, method="aecnn", preset="quick", changed=changed)]).rows[0]
    assert row.name == "aecnn (quick, epochs=2, bce_weight=0.8)"


def test_null_metrics_are_a_dash(make_record: Make) -> None:
    record = make_record(
        None, folds=1, cost={}, macro={"floor": None, "pr_auc": None, "auc_interval": None}
    )
    table = only([record])
    found = dict(zip(HEADER, cells(table.rows[0]), strict=True))
    assert found["AUC"] == found["PR-AUC"] == found["Δ vgg16"] == found["params"] == "–"
    assert found["#"] == found["paper AUC"] == "–"
    text = to_markdown([table], [])
    assert "AUC –, PR-AUC –" in text
    assert "None" not in text
    assert "nan" not in text
    assert read_csv([table])[0]["auc_mean"] == ""


def test_the_paper_s_number_stands_beside_ours(make_record: Make) -> None:
    reported = {"split": "official", "source": "x", "macro": {"auc": 0.8216}, "labels": {}}
    table = only([make_record(0.8, folds=1, reported=reported)])
    paper = HEADER.index("paper AUC")
    assert cells(table.rows[0])[paper] == "0.8216 (different split)"
    same = {"split": "official", "reported": reported, "macro": {"auc_interval": [0.79, 0.83]}}
    for auc, says in ((0.8216, "reproduced"), (0.84, "not reproduced")):
        reported["macro"] = {"auc": auc}
        row = only([make_record(0.8, folds=1, **same)]).rows[0]
        assert cells(row)[paper] == f"{auc:.4f} ({says})"
    assert read_csv([table])[0]["paper_auc"] == "0.8216"


def test_costs_are_summed_over_folds(make_record: Make) -> None:
    table = only(folds(make_record, 0.8, 0.7))
    assert dict(zip(HEADER, cells(table.rows[0]), strict=True))["hours"] == "0.50 CPU"
    assert dict(zip(HEADER, cells(table.rows[0]), strict=True))["params"] == "7.00 M"
    assert float(read_csv([table])[0]["device_hours"]) == 0.5


def test_a_partial_download_is_never_called_official(make_record: Make) -> None:
    facts = {"images": 10, "patients": 5, "complete": False, "coverage": 0.1}
    table = only([make_record(0.8, split="official", data_facts=facts)])
    assert "part of official" in table.title
    assert "part of official" in to_markdown([table], [])
    assert read_csv([table])[0]["split"] == "part of official"


def test_the_csv_has_full_precision(make_record: Make) -> None:
    rows = read_csv(collect(folds(make_record, 1 / 3, 2 / 3)))
    assert float(rows[0]["auc_mean"]) == 0.5
    assert float(rows[0]["auc_sd"]) == pytest.approx(math.sqrt(2) / 6, rel=1e-15)
    assert rows[0]["complete"] == "True"
    assert rows[0]["rank"] == "1"


HOSTILE = [
    "a|b", "a\\|b", "<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "=HYPERLINK(1)",
    "+1", "-1", "@x", "\tx", "a\nb", "a\r| x |", "a\u2028b", "[x](javascript:alert(1))",
    "![](http://example.invalid/x.png)", "`a`", "&lt;",
]  # fmt: skip


def unescaped_pipes(line: str) -> int:
    """Cell borders as GitHub's table scanner counts them: a backslash escapes what follows."""
    return len(re.findall(r"\|", re.sub(r"\\.", "", line)))


@pytest.mark.parametrize("hostile", HOSTILE)
def test_hostile_texts_stay_texts(make_record: Make, hostile: str) -> None:
    plain = make_record(0.8, folds=1)
    texts = {
        "method": hostile, "dataset": hostile, "split": hostile, "preset": hostile,
        "changed": {"x": hostile}, "warnings": [hostile], "cost": {"device": hostile},
        "data_facts": {"images": hostile, "patients": hostile},
    }  # fmt: skip
    record = plain.model_copy(update=texts)  # without the checks of reading
    text = to_markdown(collect([record]), [hostile])
    same = {"warnings": ["w"], "changed": {"x": "y"}}
    expected = to_markdown(collect([plain.model_copy(update=same)]), ["x"])
    assert len(re.split("[\n\r\u2028\x0b\x0c]", text)) == len(expected.split("\n"))
    table = [line for line in text.split("\n") if line.startswith("|")]
    assert {unescaped_pipes(line) for line in table} == {len(HEADER) + 1}
    assert "<" not in text
    assert not re.search(r"\][(:]", text), "a link or an image"
    assert not re.search(r"(?<!\\)`", text)
    if hostile == "&lt;":
        assert "&amp;lt;" in text
    rows = read_csv(collect([record]))
    assert len(rows) == 1
    for name in ("method", "dataset", "preset", "split", "device"):
        assert not rows[0][name].startswith(("=", "+", "-", "@", "\t", "\r", "\n")), name
        assert rows[0][name].lstrip("'").strip() == hostile.strip()


def test_html_of_ordinary_texts_is_readable(make_record: Make) -> None:
    text = to_markdown(collect([make_record(0.8, folds=1, warnings=["a & b's 5 % < 6"])]), [])
    assert "- a &amp; b's 5 % &lt; 6" in text
    assert html.unescape("a &amp; b") == "a & b"


def five(make: Make, **methods: float) -> list[Record]:
    """Five folds of each method, which differ from the next by more than they spread."""
    return [
        record
        for method, auc in methods.items()
        for record in folds(
            make, *(auc + by for by in (0.0, 0.01, -0.01, 0.003, -auc / 500)), method=method
        )
    ]


def test_the_statistics_stand_in_the_cells(make_record: Make) -> None:
    table = only(five(make_record, densenet121=0.8, vgg16=0.6, aecnn=0.8001, fmix=0.9))
    found = {row.method: dict(zip(HEADER, cells(row), strict=True)) for row in table.rows}
    assert {method: of["#"].split()[0] for method, of in found.items()} == {
        "fmix": "1", "aecnn": "2-3", "densenet121": "2-3", "vgg16": "4",
    }  # fmt: skip
    assert found["fmix"]["#"] == "1 [1, 1]"
    assert re.fullmatch(r"\+0\.1000 \[\+0\.\d{3}, \+0\.\d{3}\] ▲", found["fmix"]["Δ densenet121"])
    assert found["vgg16"]["Δ densenet121"].endswith("▼")
    assert found["aecnn"]["Δ densenet121"].endswith("≈")
    assert found["densenet121"]["Δ densenet121"] == "–"


def test_markdown_says_how_and_has_the_matrix(make_record: Make) -> None:
    records = five(make_record, densenet121=0.8, vgg16=0.6, fmix=0.9)
    text = to_markdown(collect([r.model_copy(update={"changed": {"x": 1}}) for r in records]), [])
    for says in (
        "Nadeau and Bengio", "Rows share a place", "One seed", "open recipe: settings",
        "No critical-difference diagram", "same corrected t-distribution",
    ):  # fmt: skip
        assert text.count(says) == 1, says
    matrix = text.split("corrected p:")[1].split("\n\n")[1].splitlines()
    assert len(matrix) == 4
    assert {line.count("|") for line in matrix} == {4}
    assert "▲ p &lt; 0.001" in matrix[2]
    rough = {"densenet121": 0.8, "vgg16": 0.795, "aecnn": 0.81}
    records = [
        make_record(auc + 0.01 * math.sin(7 * fold + auc * 900), method=m, fold=fold, folds=5)
        for m, auc in rough.items()
        for fold in range(5)
    ]
    assert re.search(r"○ p [01]\.\d{3} \|", to_markdown(collect(records), []))
    seeds = five(make_record, fmix=0.9) + folds(make_record, *[0.9] * 5, method="fmix", seed=1)
    assert "over seeds within a fold 0.0" in to_markdown(collect(seeds), [])


def test_the_csv_has_what_the_statistics_say(make_record: Make) -> None:
    tables = collect(five(make_record, densenet121=0.8, vgg16=0.6, fmix=0.9))
    first, second, _ = read_csv(tables)
    assert (first["method"], first["place_first"], first["place_last"]) == ("fmix", "1", "1")
    found = tables[0].rows[0].comparisons["densenet121"]
    assert found is not None
    assert float(first["densenet121_p_adjusted"]) == found.p_adjusted
    assert first["densenet121_verdict"] == "better"
    assert second["densenet121_verdict"] == second["paper_split"] == ""
    assert float(first["auc_low"]) < float(first["auc_mean"]) < float(first["auc_high"])
    pairs = list(csv.DictReader(io.StringIO(pairs_to_csv(tables))))
    assert [p["first"].split()[0] + p["second"].split()[0] for p in pairs] == [
        "fmixdensenet121", "fmixvgg16", "densenet121vgg16",
    ]  # fmt: skip
    assert float(pairs[0]["difference"]) == pytest.approx(0.1, abs=1e-3)
    assert "Nadeau" in pairs[0]["how"]


def test_files_are_written_together(tmp_path: Path, make_record: Make) -> None:
    paths = write_tables(collect([make_record(0.8)]), ["x: torn"], tmp_path / "board")
    names = ["LEADERBOARD.md", "leaderboard.csv", "pairwise.csv", "leaderboard.tex",
             "leaderboard.parquet", "leaderboard.json"]  # fmt: skip
    assert [path.name for path in paths] == names
    assert "- x: torn" in paths[0].read_text()
    assert paths[1].read_text().startswith("dataset,split,")


def test_what_is_left_out_says_why(tmp_path: Path, make_record: Make) -> None:
    good, gone, torn = (write_record(tmp_path, make_record()) for _ in range(3))
    write_json(gone.with_name(gone.stem + ".retracted.json"), {"reason": "x"})
    torn.write_text("{")
    records, excluded = read_records(tmp_path)
    assert [record.id for record in records] == [read_record(good).id]
    text = to_markdown(collect(records), excluded)
    assert "## Left out" in text
    assert text.count("retracted") == 1
    assert text.count("not JSON") == 1


# --- publishing


def fill(store: Store, records: list[Record]) -> None:
    for record in records:
        write_record(store.root / "records", record)


def test_clean_and_complete_records_are_published_once(
    store: Store, tmp_path: Path, make_record: Make
) -> None:
    records = folds(make_record, 0.8, 0.7)
    fill(store, [*records, make_record(0.9, dataset="other", folds=1)])
    target = tmp_path / "results"
    written = publish(store, target, dataset="kermany", methods=[])
    assert {read_record(path).id for path in written} == {record.id for record in records}
    assert {path.parent for path in written} == {target / "kermany" / "densenet121"}
    before = {path: path.read_bytes() for path in written}
    assert publish(store, target, dataset="kermany", methods=[]) == []
    written[0].write_text(json.dumps({"edited": True}))
    assert publish(store, target, dataset="kermany", methods=["densenet121"]) == []
    assert written[0].read_text() == '{"edited": true}'
    assert written[1].read_bytes() == before[written[1]]


def test_pictures_that_show_no_single_film_are_published_with_their_captions(
    store: Store, tmp_path: Path, make_record: Make
) -> None:
    (record,) = folds(make_record, 0.8)
    with store.building("compute-windows-1") as out:
        for name in ("films", "means", "unsaid"):
            (out / f"{name}.png").write_bytes(name.encode())
        write_json(out / "gallery.json", [
            {"file": "films.png", "caption": "Films.", "films": True},
            {"file": "means.png", "caption": "Mean of 40 films.", "films": False},
            {"file": "unsaid.png", "caption": "Nobody says."},
            {"file": "../stage.json", "caption": "", "films": False},
        ])  # fmt: skip
        store.publish("compute-windows-1", out, {})
    analysis = {"key": "compute-windows-1", "digest": "d", "kind": "compute", "name": "windows", "version": 1}  # fmt: skip
    record = Record.parse(record.model_dump() | {"analyses": {"regions": analysis}}, where="test")
    fill(store, [record])
    target = tmp_path / "results"
    written = publish(store, target, dataset="kermany", methods=[])
    folder = written[0].with_suffix("")
    assert written[1:] == [folder / "windows-means.png"]
    assert {path.name for path in folder.iterdir()} == {"windows-means.png", "PICTURES.md"}
    assert "![Mean of 40 films.](windows-means.png)" in (folder / "PICTURES.md").read_text()
    assert publish(store, target, dataset="kermany", methods=[]) == []
    assert [r.id for r in read_records(target)[0]] == [record.id]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"data_facts": {"phantom": True}}, "phantom data"),
        ({"provenance": {"code": {"commit": "c", "dirty": True}}}, "not a clean commit"),
        ({"provenance": {"code": {"commit": None, "dirty": None}}}, "not a clean commit"),
        ({"provenance": {}}, "not a clean commit"),
        ({"folds": 3}, "2 of 3 folds are there"),
        (
            {
                "stages": [
                    {
                        "key": "k", "digest": "d", "kind": "fit", "name": "n", "version": 1,
                        "provenance": {"code": {"commit": "c", "dirty": True}},
                    }
                ]
            },
            "not a clean commit",
        ),
    ],
    ids=lambda value: str(value)[:40],
)  # fmt: skip
def test_what_must_not_stand_in_public_is_refused_whole(
    store: Store, tmp_path: Path, make_record: Make, change: dict[str, Any], says: str
) -> None:
    fill(
        store, [*folds(make_record, 0.8, 0.7), *folds(make_record, 0.9, 0.9, method="m", **change)]
    )
    with pytest.raises(DataError, match=says) as error:
        publish(store, tmp_path / "out", dataset="kermany", methods=[])
    assert "m on kermany/cv5" in str(error.value)
    assert not (tmp_path / "out").exists()
    assert len(publish(store, tmp_path / "out", dataset="kermany", methods=["densenet121"])) == 2


def test_nothing_to_publish_is_an_error(store: Store, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no record of kermany aecnn"):
        publish(store, tmp_path, dataset="kermany", methods=["aecnn"])


def test_a_retracted_record_is_not_published(
    store: Store, tmp_path: Path, make_record: Make
) -> None:
    records = folds(make_record, 0.8, 0.7)
    fill(store, records)
    path = next((store.root / "records").rglob(f"*{records[0].id}.json"))
    write_json(path.with_name(path.stem + ".retracted.json"), {})
    with pytest.raises(DataError, match="1 of 2 folds"):
        publish(store, tmp_path / "out", dataset="kermany", methods=[])


def test_home_folders_and_names_are_taken_out(
    store: Store, tmp_path: Path, make_record: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/cluster/people/jdoe")
    texts = [
        "/home/alice/data/x.png", "/Users/bob/w.pth", "/root/secret/w.pth", "at /home/carol",
        "/cluster/people/jdoe/w.pth", "/mnt/home/alice/y",
    ]  # fmt: skip
    record = make_record(
        0.8, folds=1, warnings=texts, changed={"pretrained": texts[0]},
        params={"classifier": {"pretrained": texts}}, data_facts={"images": 3, "root": texts[4]},
    )  # fmt: skip
    fill(store, [record])
    (path,) = publish(store, tmp_path / "out", dataset="kermany", methods=[])
    text = path.read_text()
    assert not re.search(r"alice|bob|carol|jdoe|/root/|/home/|/Users/", text)
    assert ".../x.png" in text and "/data" not in text
    assert read_record(path).data_facts["images"] == 3
