"""Offline runs of Weights & Biases read back, as `wandb sync` reads them: by wandb's own messages."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BLOCK, HEAD = 32768, 7  # of the log format of LevelDB, which wandb writes behind a header as long


def messages(data: bytes) -> Iterator[bytes]:
    """The messages of a run's file: whole (1), or begun (2), gone on with (3) and ended (4)."""
    assert data[:4] == b":W&B"
    place, parts = HEAD, b""
    while place + HEAD <= len(data):
        if BLOCK - place % BLOCK < HEAD:  # a block's end is filled with zeros
            place += BLOCK - place % BLOCK
            continue
        _, length, kind = struct.unpack("<IHB", data[place : place + HEAD])
        parts += data[place + HEAD : place + HEAD + length]
        place += HEAD + length
        if kind in (1, 4):
            yield parts
            parts = b""


def read_back(folder: Path, run: str = "*") -> list[Any]:
    """The records of the one offline run of this id below a folder."""
    import wandb
    from wandb.proto.wandb_internal_pb2 import Record

    wandb.teardown()  # its service goes on writing for a moment after a run's end
    [path] = folder.glob(f"wandb/offline-run-*-{run}/run-*.wandb")
    return [Record.FromString(message) for message in messages(path.read_bytes())]


def of_kind(records: list[Any], kind: str) -> list[Any]:
    """The records of a kind: `run`, `artifact`, ..."""
    return [getattr(record, kind) for record in records if record.WhichOneof("record_type") == kind]


def summary(records: list[Any]) -> dict[str, Any]:
    """A run's summary."""
    return values(records, "summary", lambda record: record.update)


def config(records: list[Any]) -> dict[str, Any]:
    """A run's configuration as it was opened with."""
    [run] = of_kind(records, "run")
    return {item.key: json.loads(item.value_json) for item in run.config.update}


def values(records: list[Any], kind: str, items: Any) -> dict[str, Any]:
    """What the records of a kind say, by name; of a nested one by its whole path."""
    return {
        item.key or "/".join(item.nested_key): json.loads(item.value_json)
        for record in records
        if record.WhichOneof("record_type") == kind
        for item in items(getattr(record, kind))
    }
