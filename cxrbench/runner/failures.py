"""Why a stage failed: the file that says it."""

from pathlib import Path
from typing import Any

from cxrbench.core.errors import CxrbenchError
from cxrbench.core.stage import Stage
from cxrbench.core.store import Store, a_number, read_note


def failure_path(store: Store, stage: Stage) -> Path:
    """Where a failed stage says why."""
    return store.folder("jobs") / f"{stage.digest[:16]}.failure.json"


def read_failure(path: Path) -> dict[str, Any] | None:
    """Why a stage, or a rank of it, failed; None where nothing says it."""

    def failure(value: Any) -> dict[str, Any]:
        need = int(a_number(value.get("need", 0)))
        return {
            **value,
            "error": str(value["error"]),
            "exit_code": int(value["exit_code"]),
            "need": need,
        }

    return read_note(path, failure)


def message(error: BaseException) -> str:
    """An error in words; the kind of those that are not ours stands before them."""
    return str(error) if isinstance(error, CxrbenchError) else f"{type(error).__name__}: {error}"
