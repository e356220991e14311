"""What a worker is asked to do: stages of a graph, where the data lie, and how to run."""

from pathlib import Path
from typing import Any

from cxrbench.core.errors import CxrbenchError, DataError
from cxrbench.core.registry import Registry
from cxrbench.core.spec import Execution
from cxrbench.core.store import MISFITS, Store, read_json
from cxrbench.runner.graph import Graph, from_json


class Job:
    """The file that `chains.write_job` writes. DataError where it is none."""

    def __init__(self, path: Path) -> None:
        self.path = path
        value = read_json(path)
        try:
            self.store = Store(Path(value["store"]))
            self.graph: Graph = from_json(value["nodes"])
            self.todo: list[str] = [self.graph[digest].digest for digest in value["todo"]]
            self.execution = Execution.parse(value["execution"], where=str(path))
            self.registry = Registry(Path(p) for p in value["plugins"])
            self.roots = {name: Path(p) if p else None for name, p in value["roots"].items()}
            self.sides = {key: [int(s) for s in of] for key, of in value.get("sides", {}).items()}
        except CxrbenchError as error:
            raise type(error)(f"{path}: {error}") from None
        except (*MISFITS, RuntimeError) as error:
            raise DataError(
                f"{path}: not a job of cxrbench ({type(error).__name__}: {error}); run the command that "
                f"made it again"
            ) from None

    def context(self) -> Any:
        """The context of stages that read data; imports NumPy and pandas."""
        from cxrbench.runner.context import Context

        return Context(self.store, self.registry, self.roots, self.execution, self.sides)
