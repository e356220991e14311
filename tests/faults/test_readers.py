"""Readers of what may come from anyone: any bytes give a value or an error of ours, never another."""

import copy
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cxrbench.core.errors import ConfigError, CxrbenchError, DataError
from cxrbench.core.record import Record, read_record, read_records
from cxrbench.core.spec import BenchSpec
from cxrbench.core.store import Store
from cxrbench.core.yamlfile import read_yaml
from cxrbench.data.csvfile import read_csv
from cxrbench.data.splits import read_split, verify_split, write_split
from cxrbench.data.table import Table, TableParams
from cxrbench.leaderboard.collect import collect
from cxrbench.leaderboard.markdown import to_csv, to_markdown
from cxrbench.runner import worker
from cxrbench.runner.bind import open_dataset
from cxrbench.runner.job import Job
from cxrbench.runner.score import score
from cxrbench.runner.status import read_status

from jobs import planned, stage_of, write_job  # isort: skip

RECORD = next((Path(__file__).parents[1] / "data" / "records").rglob("*.json"))
EXAMPLES = os.environ.get("CXRBENCH_FUZZ")  # so many, and others each time
FEW = settings(
    max_examples=int(EXAMPLES or 120),
    deadline=None,
    derandomize=not EXAMPLES,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8),
    st.sampled_from(["", "../../x", "/etc/passwd", "\0", "=1+1", "<script>", "\ud800", "NaN", 10**400]),
)  # fmt: skip
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of everything inside a JSON value."""
    inner = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    return [path, *(p for key, item in inner for p in places(item, (*path, key)))]


def edited(value: Any, path: tuple[Any, ...], new: Any, drop: bool) -> Any:
    """The value with something else, or nothing, at a path."""
    if not path:
        return new
    value = copy.deepcopy(value)
    node = value
    for key in path[:-1]:
        node = node[key]
    if drop:
        del node[path[-1]]
    else:
        node[path[-1]] = new
    return value


def survives(read: Callable[[Path], Any], path: Path, content: bytes) -> Any:
    """What a reader gives for the content; None for an error of ours, which names the file."""
    path.write_bytes(content)
    try:
        return read(path)
    except CxrbenchError as error:
        assert path.name in str(error), error
        return None


BYTES = st.one_of(
    st.binary(max_size=200),
    st.sampled_from([b"", b"[" * 100_000, b"\xff\xfe{}", b"null", b"{" * 50_000, b'{"a":' * 50_000, b"\0" * 9]),
)  # fmt: skip


def a_job(store: Store) -> Any:
    plan, registry = planned(store)
    return json.loads(write_job(plan, registry, store).read_text())


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return a_job(Store(tmp_path_factory.mktemp("job")))


@FEW
@given(content=BYTES)
@pytest.mark.parametrize("read", [read_record, Job, read_csv, read_yaml, Table.read_index])
def test_any_bytes_are_a_value_or_an_error_of_ours(
    tmp_path: Path, read: Callable[..., Any], content: bytes
) -> None:
    path = tmp_path / "labels.csv"
    reader = read if read != Table.read_index else lambda p: Table.read_index(p, TableParams())
    survives(reader, path, content)


@FEW
@given(data=st.data())
def test_an_edited_record_is_a_record_or_left_out(tmp_path: Path, data: st.DataObject) -> None:
    value = json.loads(RECORD.read_text())
    path = data.draw(st.sampled_from(places(value)))
    new = edited(value, path, data.draw(VALUES), data.draw(st.booleans()))
    folder = tmp_path / "data" / "method"
    folder.mkdir(parents=True, exist_ok=True)
    found = survives(read_record, folder / "x.json", json.dumps(new).encode())
    records, excluded = read_records(tmp_path)
    assert (len(records), len(excluded)) == ((1, 0) if isinstance(found, Record) else (0, 1))
    tables = collect(records)
    assert to_markdown(tables, excluded) and to_csv(tables)


@FEW
@given(data=st.data())
def test_an_edited_job_is_a_job_or_an_error_that_names_it(
    tmp_path: Path, job: Any, data: st.DataObject
) -> None:
    path = data.draw(st.sampled_from(places(job)))
    new = edited(job, path, data.draw(VALUES), data.draw(st.booleans()))
    survives(Job, tmp_path / "job.json", json.dumps(new).encode())


@FEW
@given(
    rows=st.lists(st.lists(st.text("ab1,;\"'\r\n\t\0=@é -", max_size=6), max_size=5), max_size=5),
    ends=st.sampled_from(["\n", "\r\n", "\r", ",\n"]),
    mark=st.sampled_from([b"", b"\xef\xbb\xbf", b"\xff\xfe"]),
)
def test_any_table_is_an_index_or_an_error_that_names_it(
    tmp_path: Path, rows: list[list[str]], ends: str, mark: bytes
) -> None:
    text = ends.join(["path,patient_id,Edema", *(",".join(row) for row in rows)])
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(b"x")
    survives(lambda p: Table.read_index(p, TableParams()), tmp_path / "t.csv", mark + text.encode())


@FEW
@given(place=st.integers(0, 10_000), new=st.binary(min_size=1, max_size=4))
def test_a_damaged_parquet_table_is_read_or_named(tmp_path: Path, place: int, new: bytes) -> None:
    whole = tmp_path / "whole.bin"
    if not whole.exists():
        table = {"path": ["a", "b"], "patient_id": ["1", "2"], "Edema": [1.0, 0.0]}
        pd.DataFrame(table).to_parquet(whole)
        for name in ("a", "b"):
            (tmp_path / name).write_bytes(b"x")
    content = bytearray(whole.read_bytes())
    place %= len(content)
    content[place : place + len(new)] = new
    survives(lambda p: Table.read_index(p, TableParams()), tmp_path / "t.parquet", bytes(content))


SPLIT_ODD = [*[None, "x", [], {}, -1.5, True, ["a", 1], {"a": None}], "\0", 10**400]


def test_an_edited_split_is_as_promised_or_named(tmp_path: Path) -> None:
    """Every place of a split's JSON with something of another type, and its table with bytes of another kind."""
    root, folder = tmp_path / "films", tmp_path / "split"
    root.mkdir()
    Table.fake(root, images=30, size=32)
    opened = open_dataset(Table, root, {}, "holdout", Store(tmp_path / "store"))
    write_split(opened.split, opened.index, folder)
    promises, table = folder / "holdout.json", folder / "holdout.csv.gz"
    whole, packed = promises.read_text(), table.read_bytes()

    def read(path: Path) -> None:
        split, facts = read_split(folder, "holdout")
        verify_split(split, facts, opened.index)

    value = json.loads(whole)
    for place in places(value):
        for odd in SPLIT_ODD:
            survives(read, promises, json.dumps(edited(value, place, odd, False)).encode())
    promises.write_text(whole)
    for place in range(0, len(packed), 3):
        content = packed[:place] + b"\xff\x00\xf0" + packed[place + 3 :]
        survives(read, table, content)
        survives(read, table, packed[:place])


@pytest.mark.parametrize(
    ("column", "value"),
    [("probability:", "x"), ("probability:", 2.0), ("probability:", None), ("image_id", [[1]]), ("target:", 7.0),
     ("part", None), ("image_id", "same"), ("probability:", "drop")],
)  # fmt: skip
def test_predictions_that_no_run_writes_are_named(
    tmp_path: Path, store: Store, column: str, value: Any
) -> None:
    stage = stage_of(planned(store)[0], "score")
    label, count = stage.data.labels[0], 12
    fields: dict[str, Any] = {
        "image_id": [f"i{n}" for n in range(count)],
        "patient_id": ["p"] * count,
    }
    fields["part"] = ["val", "test"] * (count // 2)
    for each in stage.data.labels:
        fields |= {f"target:{each}": [0.0, 0.0, 1.0] * 4, f"probability:{each}": [0.5] * count}
    table, path = pd.DataFrame(fields), tmp_path / "predictions.parquet"
    table.to_parquet(path)
    assert score(stage, path, path, tmp_path)["images"] == 6
    name = column + label if column.endswith(":") else column
    if value == "drop":
        table = table.drop(columns=name)
    else:
        table[name] = value * count if isinstance(value, list) else value
    table.to_parquet(path)
    with pytest.raises(DataError, match=re.escape(str(path))):
        score(stage, path, path, tmp_path)


@pytest.mark.parametrize("text", ["5", "[1]", '{"done": [], "of": {}}', '{"seconds": []}', "null"])
def test_odd_notes_of_progress_are_none(store: Store, text: str) -> None:
    work = store.partial("fit-x-0123456789abcdef")
    (work / "states").mkdir()
    (work / "progress.json").write_text(text)
    artefact = store.folder("artefacts", "fit-x-0123456789abcdef")
    (artefact / "stage.json").write_text('{"name": "x", "version": "new", "source": "s"}')
    [found] = read_status(store)["unfinished"]
    assert found["progress"] == "no step yet"
    assert worker._spent_before(work) == 0


def test_half_a_character_in_yaml_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text('name: "\\ud800"\n')
    with pytest.raises(ConfigError, match="no Unicode text"):
        read_yaml(path)
    path.write_text('name: "\\u00e9\\U0001F600"\n')
    assert read_yaml(path) == {"name": "\u00e9\U0001f600"}


@FEW
@given(text=st.text("ab:-[]{}#&*!|>'\" \n0123.e", max_size=40))
def test_any_specification_is_one_or_an_error_of_ours(tmp_path: Path, text: str) -> None:
    survives(
        lambda p: BenchSpec.parse(read_yaml(p), where=str(p)), tmp_path / "s.yaml", text.encode()
    )


def test_a_field_ten_times_too_large_is_an_error_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text(f"path,patient_id,Edema\na.png,1,1\nb.png,2,{'x' * 1_310_720}\n")
    with pytest.raises(DataError, match=r"t\.csv: line 3: field larger"):
        read_csv(path)


ODD: list[Any] = [None, "x", [], {}, 5, True, -1.5, [None, None], ["a", "b"], {"a": None}]


def test_no_edit_of_a_record_breaks_the_tables(tmp_path: Path) -> None:
    """Every place of a record with something of another type: left out, or ranked."""
    value, read = json.loads(RECORD.read_text()), 0
    path = tmp_path / "x.json"
    for place in places(value):
        for odd in ODD:
            path.write_text(json.dumps(edited(value, place, odd, False)))
            try:
                tables = collect([read_record(path)])
            except DataError:
                continue
            read += 1
            assert to_markdown(tables, []) and to_csv(tables), (place, odd)
    assert read > 100
