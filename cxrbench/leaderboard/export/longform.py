"""`leaderboard.parquet`: one line for each table, row, label and metric, with typed columns."""

import io
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cxrbench.leaderboard.labels import label_values
from cxrbench.leaderboard.rows import Row, Table, Value

TEXT, WHOLE, REAL = pa.string(), pa.int32(), pa.float64()
# `label` is null for the macro mean over labels; `low` and `high` are the 95 % interval where there is one.
SCHEMA = pa.schema(
    [
        pa.field("table", TEXT, nullable=False),  # Table.identity
        pa.field("title", TEXT, nullable=False),
        pa.field("dataset", TEXT, nullable=False),
        pa.field("split", TEXT, nullable=False),
        pa.field("split_digest", TEXT, nullable=False),
        pa.field("tested_on", TEXT),
        pa.field("row", WHOLE, nullable=False),  # from 0, as the table lists them
        pa.field("name", TEXT, nullable=False),
        pa.field("method", TEXT, nullable=False),
        pa.field("preset", TEXT, nullable=False),
        pa.field("rank", WHOLE),
        pa.field("place_first", WHOLE),
        pa.field("place_last", WHOLE),
        pa.field("complete", pa.bool_(), nullable=False),
        pa.field("label", TEXT),
        pa.field("metric", TEXT, nullable=False),
        pa.field("mean", REAL),
        pa.field("sd", REAL),
        pa.field("runs", WHOLE, nullable=False),
        pa.field("low", REAL),
        pa.field("high", REAL),
    ]
)


def to_parquet(tables: Sequence[Table]) -> bytes:
    """The bytes of `leaderboard.parquet`; undefined metrics are lines with a null mean."""
    lines = [line for table in tables for line in _lines(table)]
    stream = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(lines, schema=SCHEMA), stream, compression="zstd")
    return stream.getvalue()


def _lines(table: Table) -> Iterator[dict[str, Any]]:
    home = {
        "table": table.identity,
        "title": table.title,
        "dataset": table.dataset,
        "split": table.split_name,
        "split_digest": table.split_digest,
        "tested_on": table.tested_on.dataset if table.tested_on else None,
    }
    for place, row in enumerate(table.rows):
        first, last = row.tie or (None, None)
        of_row = {
            **home, "row": place, "name": row.name, "method": row.method, "preset": row.preset,
            "rank": row.rank, "place_first": first, "place_last": last, "complete": row.complete,
        }  # fmt: skip
        for label in (None, *table.labels):
            values = row.values if label is None else label_values(row, label)
            for metric, value in values.items():
                yield {
                    **of_row,
                    "label": label,
                    "metric": metric,
                    **_cells(row, label, metric, value),
                }


def _cells(row: Row, label: str | None, metric: str, value: Value | None) -> dict[str, Any]:
    if value is None:
        return {"mean": None, "sd": None, "runs": 0, "low": None, "high": None}
    # Of the macro AUC alone the table knows an interval over folds, too.
    interval = row.auc_interval if (label, metric) == (None, "auc") else value.interval
    low, high = interval or value.interval or (None, None)
    return {"mean": value.mean, "sd": value.sd, "runs": value.n, "low": low, "high": high}
