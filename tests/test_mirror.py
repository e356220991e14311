"""Records and leaderboards at Weights & Biases, read back from the files that `wandb sync` uploads."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import Cli
from test_site import LABELS, built
from wandb_files import config, of_kind, read_back, summary

from cxrbench.core import mirror
from cxrbench.core.errors import CannotWriteError, UsageError
from cxrbench.core.mirror import open_run, sync_command, waiting
from cxrbench.core.mirror_record import COLUMNS, COSTS, identity, mirror_records, redacted, run_id
from cxrbench.core.record import Record, write_record
from cxrbench.core.store import Store
from cxrbench.leaderboard.collect import collect
from cxrbench.leaderboard.mirror import report as reports
from cxrbench.leaderboard.mirror.log import Logged, task_name
from cxrbench.leaderboard.mirror.points import charts
from cxrbench.leaderboard.predictions import predictions_in
from cxrbench.leaderboard.rows import Table

Make = Callable[..., Record]
KEY = "0123456789abcdef0123456789abcdef01234567"
SECRET_FOLDER = "/home/dr-who/films"


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No test knows what another found, and none writes to a real home folder."""
    monkeypatch.setattr(mirror, "_gave_up", [])
    monkeypatch.setenv("HOME", str(tmp_path / "dr-who"))
    for name in ("WANDB_PROJECT", "WANDB_ENTITY", "NETRC"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def records(store: Store, make_record: Make) -> list[Record]:
    """Three methods on two folds, one of them incomplete; what they say of folders must not get out."""
    extra = {
        "warnings": [f"{SECRET_FOLDER}/x.png is odd"],
        "params": {"recipe": {"epochs": 2}, "pretrained": f"{SECRET_FOLDER}/w.pt"},
        "provenance": {
            "code": {"commit": "c" * 40, "dirty": False},
            "command": ["cxrbench", "--data", SECRET_FOLDER],
        },
    }
    made = [
        built(store, make_record, method=method, fold=fold, shift=shift, **extra)
        for method, shift, folds in (("densenet121", 1.0, 2), ("aecnn", 1.6, 2), ("vgg16", 0.2, 1))
        for fold in range(folds)
    ]
    for record in made:
        write_record(store.root / "records", record)
    return made


def board_of(store: Store, records: list[Record]) -> Table:
    [table] = collect(records, predictions_in(store))
    return table


def logged_table(store: Store, run: Path, key: str) -> dict[str, Any]:
    """A `wandb.Table` of a run, as its file holds it."""
    records = read_back(store.root, run.name.split("-", 3)[-1])
    path = summary(records)[f"{key}/path"]
    value: dict[str, Any] = json.loads((run / "files" / path).read_text())
    return value


# --- a record


def test_a_record_is_a_row_of_the_run_table(store: Store, records: list[Record]) -> None:
    import wandb

    record = records[1].model_copy(update={"seed": 3, "benchmark": "sweep"})
    assert mirror_records(wandb, [record], "offline", store, print) == 1
    back = read_back(store.root)
    [run] = of_kind(back, "run")
    assert (run.run_id, run.run_group, run.job_type) == (run_id(record), "sweep", "record")
    assert run.display_name == "densenet121/kermany/fold-1/seed-3"
    assert {"densenet121", "kermany", "cv5", "fold-1", "seed-3", "paper"} == set(run.tags)
    shown, macro = summary(back), record.scores["macro"]
    assert shown["AUC"] == macro["auc"] and shown["PR-AUC"] == macro["pr_auc"]
    assert shown["P@95R"] == macro["precision_at_95_recall"]
    for label in LABELS:
        score = record.scores["labels"][label]
        assert shown[f"label/{label}/AUC"] == score["auc"]
        assert shown[f"label/{label}/P@95R"] == score["precision_at_95_recall"]["precision"]
    assert shown["device hours"] == 0.25 and shown["parameters"] == 7_000_000
    assert shown["floor AUC"] == 0.5
    assert shown["warnings"] == ".../x.png is odd" and shown["warning count"] == 1
    held = config(back)
    assert (held["method"], held["fold"], held["seed"]) == ("densenet121", 1, 3)
    assert held["params/recipe/epochs"] == 2 and held["params/pretrained"] == ".../w.pt"
    assert held["task"] == records[0].task[:16], "folds of one task share it"


def test_a_record_elsewhere_is_another_task_and_says_where(make_record: Make) -> None:
    home = make_record()
    test = {"dataset": "chexpert", "version": 1, "params": {}, "revision": "q", "split": "all",
            "split_digest": "e" * 64, "fold": 0, "label_map": {}, "unmatched_model": [], "unmatched_data": [],
            "overlap": "", "data_facts": {}}  # fmt: skip
    away = identity(make_record(tested_on=test, views=[{"name": "stn-align"}]))
    assert away["name"] == "densenet121/kermany→chexpert/fold-0/seed-0"
    assert {"tested-on-chexpert", "view-stn-align"} <= set(away["tags"])
    assert away["config"]["task"] != identity(home)["config"]["task"]
    assert away["config"]["views"] == "stn-align" and away["config"]["tested_on"] == "chexpert"


def test_a_label_that_looks_like_a_path_keeps_its_name(make_record: Make) -> None:
    record = make_record(labels=["Mass /Nodule"], warnings=["see /data/lab/x.csv"])
    clean = redacted(record)
    assert (clean.labels, clean.warnings) == (["Mass /Nodule"], ["see .../x.csv"])
    assert clean.task == record.task


def test_records_are_logged_once_and_again_when_their_files_are_gone(
    store: Store, make_record: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    import wandb

    two = [make_record(), make_record(method="vgg16")]
    assert mirror_records(wandb, two, "offline", store, print) == 2
    assert mirror_records(wandb, two, "offline", store, print) == 0
    first, second = waiting(store.root)
    first.rename(first.with_name("lost"))
    assert mirror_records(wandb, two, "offline", store, print) == 1
    monkeypatch.setenv("WANDB_PROJECT", "another")
    assert mirror_records(wandb, two, "offline", store, print) == 2, "another project has none"
    (second / f"run-{run_id(two[1])}.wandb.synced").touch()
    assert second not in waiting(store.root)


class Server:
    """`wandb` with a server that is there: what was asked of it is kept."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.ended: list[str] = []

    def login(self, *, prompt: bool, verify: bool) -> bool:
        return not prompt and not verify  # whoever would ask or wait is not let in

    def Settings(self, **fields: Any) -> dict[str, Any]:
        return fields

    def teardown(self) -> None:
        self.ended.append("teardown")

    def init(self, **words: Any) -> Any:
        self.asked.append(words)
        return SimpleNamespace(
            offline=words["mode"] == "offline",
            dir=f"{words['dir']}/wandb/run-1-{words['id']}/files",
            summary={},
            finish=lambda: None,
        )


class Silent(Server):
    """`wandb` whose server does not answer."""

    def init(self, **words: Any) -> Any:
        if words["mode"] == "online":
            self.asked.append(words)
            raise TimeoutError("no answer\nsecond line")
        return super().init(**words)


def test_online_a_record_is_resumed_by_its_id_and_not_logged_twice(
    store: Store, make_record: Make
) -> None:
    server, record = Server(), make_record()
    for expected in (1, 0):
        assert mirror_records(server, [record], "online", store, print) == expected
    [asked] = server.asked
    assert (asked["mode"], asked["resume"], asked["id"]) == ("online", "allow", run_id(record))
    assert mirror_records(server, [record], "offline", store, print) == 0, "the server has it"


def test_what_was_logged_offline_goes_online_unless_it_was_uploaded(
    store: Store, make_record: Make
) -> None:
    server, record = Server(), make_record()
    assert mirror_records(server, [record], "offline", store, print) == 1
    run = store.root / "wandb" / f"run-1-{run_id(record)}"
    run.mkdir(parents=True)
    (run / "run-1.wandb.synced").touch()
    assert mirror_records(server, [record], "online", store, print) == 0
    (run / "run-1.wandb.synced").unlink()
    assert mirror_records(server, [record], "online", store, print) == 1


def test_a_silent_server_is_asked_once_and_everything_is_offline(
    store: Store, make_record: Make
) -> None:
    silent, said = Silent(), []
    two = [make_record(), make_record(method="vgg16")]
    assert mirror_records(silent, two, "online", store, said.append) == 2
    assert [words["mode"] for words in silent.asked] == ["online", "offline", "offline"]
    assert silent.ended == ["teardown"], "its service would refuse the id"
    assert said == ["wandb online: TimeoutError: no answer; going on offline"]
    assert silent.asked[0]["settings"]["init_timeout"] < 20


def test_names_that_the_server_would_refuse_are_cut(tmp_path: Path) -> None:
    server = Server()
    open_run(server, "offline", tmp_path, print, id="x", name="n" * 999, group="g" * 999,
             tags=["t" * 99, "", "a", "a"], config={"path": f"{SECRET_FOLDER}/a"})  # fmt: skip
    [asked] = server.asked
    assert (len(asked["name"]), len(asked["group"])) == (128, 128)
    assert asked["tags"] == ["t" * 64, "a"]
    assert asked["config"] == {"path": ".../a"}


REAL = """
import sys
from pathlib import Path
import wandb
from cxrbench.core import mirror
mirror.INIT_SECONDS = 2
run = mirror.open_run(wandb, "online", Path(sys.argv[1]), print, id="same", name="n", group="g", tags=["t"], config={})
print("offline" if run.offline else "online", run.id)
run.summary["a"] = 1
mirror.finish_run(run, print)
"""


@pytest.mark.parametrize(
    ("key", "why"), [("", "not logged in"), (KEY, "going on offline")], ids=["no key", "no server"]
)
def test_without_key_or_server_the_run_is_offline_under_its_own_id(
    tmp_path: Path, key: str, why: str
) -> None:
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "WANDB_BASE_URL": "http://127.0.0.1:9",
                   **({"WANDB_API_KEY": key} if key else {})}  # fmt: skip
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", REAL, str(tmp_path)],
        env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said, opened = done.stdout.splitlines()
    assert why in said and opened == "offline same"
    assert time.monotonic() - started < 20
    assert summary(read_back(tmp_path, "same"))["a"] == 1
    assert not key or not holding(KEY, tmp_path)


def holding(text: str, folder: Path) -> list[Path]:
    """The files below a folder in which a text stands."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return [path for path in files if text.encode() in path.read_bytes()]


def test_the_document_names_every_column_of_the_run_table() -> None:
    text = (Path(__file__).parents[1] / "docs" / "wandb.md").read_text()
    assert [name for name in (*COLUMNS, *COSTS) if f"`{name}`" not in text] == []


# --- the leaderboard


def test_the_leaderboard_is_one_run_with_tables_curves_and_the_site(
    cli: Cli,
    store: Store,
    records: list[Record],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    code, out, err = cli("leaderboard", "--wandb", "offline")
    assert code == 0, err
    run = Path(out.splitlines()[-1])
    assert f"upload what is logged: {sync_command(store.root)}" in err
    assert "the leaderboard and 5 new record runs" in err
    back = read_back(store.root, run.name.split("-", 3)[-1])
    [opened] = of_kind(back, "run")
    assert (opened.job_type, opened.run_group) == ("leaderboard", "leaderboard")
    assert {"kermany", "cv5"} <= set(opened.tags)

    table = board_of(store, records)
    name = task_name(table)
    check_rows(logged_table(store, run, f"{name}/leaderboard"), table)
    check_curves(store, run, table)
    check_site(store, run, back)
    assert not holding(KEY, store.root)
    # Only the path by which `wandb sync` finds an artefact's files may name a folder of this machine.
    assert not holding("dr-who", store.root / "wandb")
    assert not opened.host and not of_kind(back, "environment")

    code, out, err = cli("leaderboard", "--wandb", "offline")
    assert code == 0 and "0 new record runs" in err
    assert len(list((store.root / "wandb").glob("offline-run-*-leaderboard-*"))) == 2


def check_rows(found: dict[str, Any], table: Table) -> None:
    rows = [dict(zip(found["columns"], row, strict=True)) for row in found["data"]]
    assert [row["method"] for row in rows] == [row.name for row in table.rows]
    for cells, row in zip(rows, table.rows, strict=True):
        auc = row.values["auc"]
        assert auc is not None
        assert (cells["AUC"], cells["AUC sd"]) == (auc.mean, auc.sd)
        assert (cells["AUC low"], cells["AUC high"]) == (row.auc_interval or (None, None))
        assert (cells["place"], cells["place first"], cells["place last"]) == (
            row.rank, *(row.tie or (row.rank, row.rank)))  # fmt: skip
        assert (cells["folds done"], cells["folds"]) == (row.done, 2)
        assert cells["marks"] == ", ".join(row.marks)
        assert cells["device hours"] == 0.25 * len(row.records)
        against, tested = row.against["densenet121"], row.comparisons["densenet121"]
        assert cells["AUC minus densenet121"] == (against.mean if against else None)
        assert cells["AUC minus densenet121 verdict"] == (tested.verdict if tested else None)
        assert cells["AUC minus densenet121 low"] == (tested.low if tested else None)
    assert rows[0]["AUC low"] is not None and rows[0]["AUC minus densenet121"] > 0
    assert rows[-1]["place"] is None and "incomplete" in rows[-1]["marks"]


def check_curves(store: Store, run: Path, table: Table) -> None:
    drawn, left_out = charts(table, store)
    assert not left_out and {(c.kind, c.label) for c in drawn} == {
        (kind, label) for kind in ("ROC", "PR") for label in LABELS
    }
    for chart in drawn:
        key = f"Custom Chart Tables/{task_name(table)}/{chart.kind} {chart.label}_table"
        found = logged_table(store, run, key)
        assert found["columns"] == chart.columns and found["data"] == chart.rows
    roc = next(c for c in drawn if c.kind == "ROC")
    assert roc.columns == ["method", "false positive rate", "true positive rate", "low", "high"]
    first = [row for row in roc.rows if row[0] == "densenet121 (paper)"]
    assert len(first) == 101 and first[-1][1:3] == [1.0, 1.0]
    assert all(low <= y <= high for _, _, y, low, high in first[20:80])


def check_site(store: Store, run: Path, back: list[Any]) -> None:
    [artefact] = [a for a in of_kind(back, "artifact") if a.type == "leaderboard-site"]
    held = {entry.path: Path(entry.local_path) for entry in artefact.manifest.contents}
    site = store.root / "leaderboard" / "site"
    files = {p.relative_to(site).as_posix() for p in site.rglob("*") if p.is_file()}
    assert set(held) == files and "index.html" in files and "style.css" in files
    assert held["index.html"].read_bytes() == (site / "index.html").read_bytes()
    assert held["index.html"].is_relative_to(store.root), "it waits beside the run, not in a home"
    page = (run / "files" / summary(back)["pages/first/path"]).read_text()
    assert "<h1>Leaderboards</h1>" in page and "<style>" in page
    assert "densenet121" in page or "aecnn" in page
    assert "href" not in page.replace('href="#main"', "") and "<script" not in page
    assert "http" not in page.replace("http-equiv", "")


def test_rows_without_predictions_are_named_beside_the_curves(
    store: Store, records: list[Record]
) -> None:
    for path in store.root.glob("artefacts/predict-*/predictions.parquet"):
        path.unlink()
    drawn, left_out = charts(board_of(store, records), store)
    assert not drawn
    assert "aecnn (paper): the store has predictions of 0 of 2 runs" in left_out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--wandb", "yes"], "choose online, offline or off"),
        (["--wandb", "offline", "--json"], "--json prints"),
        (["--report"], "needs --wandb online"),
        (["--wandb", "offline", "--report"], "needs --wandb online"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    cli: Cli,
    records: list[Record],
    words: list[str],
    says: str,
) -> None:
    code, out, err = cli("leaderboard", *words)
    assert code == 2 and says in err and not out


# --- the report


class Api:
    """What `wandb_workspaces` asks of the server, kept."""

    asked: list[dict[str, Any]] = []

    def __init__(self) -> None:
        answer = {"project": {"internalId": "p1"}}
        view = {"id": "v1", "name": "n", "displayName": "d", "spec": "{}", "description": "",
                "createdAt": None, "updatedAt": None, "project": {"name": "films", "entityName": "lab"}}  # fmt: skip

        def execute(query: str, variables: dict[str, Any]) -> dict[str, Any]:
            Api.asked.append(variables)
            return {**answer, "upsertView": {"view": view, "inserted": True}}

        self.default_entity = "lab"
        self._service_api = SimpleNamespace(execute_graphql=execute, app_url="https://wandb.ai")

    def projects(self, entity: str) -> list[Any]:
        return [SimpleNamespace(name="films")]


LOGGED = Logged("leaderboard-1", True, "lab", "films", "https://wandb.ai/lab/films", Path(), 5)


def test_the_report_has_a_section_for_each_table(
    store: Store, records: list[Record], monkeypatch: pytest.MonkeyPatch
) -> None:
    import wandb

    monkeypatch.setattr(wandb, "Api", Api)
    table = board_of(store, records)
    spec = reports.build_report([table], LOGGED)._to_model().spec
    text = spec.model_dump_json(by_alias=True, exclude_none=True)
    blocks = json.loads(text)["blocks"]
    assert table.title in [b["children"][0]["text"] for b in blocks if b["type"] == "heading"]
    board, rows = (b["metadata"] for b in blocks if b["type"] == "panel-grid")
    [only] = board["runSets"][0]["filters"]["filters"]
    assert (only["key"]["name"], only["value"]) == ("name", LOGGED.run)
    assert f'"val":"{task_name(table)}/leaderboard"' in text.replace('": "', '":"')
    [runs] = rows["runSets"]
    wanted = {(f["key"]["name"], f["value"]) for f in runs["filters"]["filters"]}
    assert wanted == {("jobType", "record"), ("task", records[0].task[:16])}
    assert runs["runFeed"]["columnOrder"][:4] == ["run:displayName", "summary:AUC", "summary:PR-AUC", "summary:P@95R"]  # fmt: skip
    assert [key["name"] for key in runs["grouping"]] == ["method.value", "preset.value"]
    assert runs["sort"]["keys"] == [{"key": {"section": "summary", "name": "AUC"}, "ascending": False}]  # fmt: skip
    # What a column of the report names, the records' runs have.
    known = {f"summary:{k}" for k in ("AUC", "device hours", "parameters", "warning count")}
    assert known <= set(reports.PINNED)
    held = identity(records[0])["config"]
    named = [c.removeprefix("config:").removesuffix(".value") for c in reports.PINNED if c.startswith("config:")]  # fmt: skip
    assert set(named) <= set(held)


def test_the_view_makes_the_run_table_a_leaderboard() -> None:
    spec = json.loads(reports.build_view(LOGGED)._to_model().model_dump_json(by_alias=True))["spec"]
    [runs] = spec["section"]["runSets"]
    assert [f["value"] for f in runs["filters"]["filters"]] == ["record"]
    assert [key["name"] for key in runs["grouping"]] == ["task.value", "method.value", "preset.value"]  # fmt: skip
    assert runs["runFeed"]["columnVisible"]["summary:AUC"]


def test_report_and_view_are_saved_in_the_project(
    store: Store, records: list[Record], monkeypatch: pytest.MonkeyPatch
) -> None:
    import wandb

    monkeypatch.setattr(wandb, "Api", Api)
    monkeypatch.setattr(Api, "asked", [])
    addresses = reports.save_report([board_of(store, records)], LOGGED)
    assert len(addresses) == 2
    assert all(address.startswith("https://wandb.ai/lab/films") for address in addresses)
    assert any("spec" in asked and "entityName" in asked for asked in Api.asked)


def test_no_report_offline_or_from_a_server_that_refuses(
    monkeypatch: pytest.MonkeyPatch, store: Store, records: list[Record]
) -> None:
    import wandb

    offline = Logged("x", False, "", "films", "", Path(), 0)
    with pytest.raises(CannotWriteError, match="logged offline"):
        reports.save_report([], offline)

    def refuse() -> None:
        raise PermissionError("read only")

    monkeypatch.setattr(wandb, "Api", refuse)
    with pytest.raises(CannotWriteError, match=r"read only.*all runs are logged"):
        reports.save_report([board_of(store, records)], LOGGED)


def test_a_report_without_its_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reports, "PACKAGE", "no_such_package")
    with pytest.raises(UsageError, match=r"cxrbench\[reports\]"):
        reports.check_package()
