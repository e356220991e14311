"""Graphs of stages as JSON: what plans are cached as and what a worker is handed."""

from collections.abc import Iterable
from dataclasses import fields
from typing import Any

from cxrbench.core.errors import DataError
from cxrbench.core.frozen import Dumped
from cxrbench.core.stage import DataView, Stage

Graph = dict[str, Stage]  # by digest, parents first


def graph_of(stages: Iterable[Stage]) -> Graph:
    """All stages that the given ones depend on, and themselves; each once."""
    graph: Graph = {}
    for stage in stages:
        if stage.digest not in graph:
            graph.update(stage.ancestry())
    return graph


def to_json(graph: Graph) -> list[dict[str, Any]]:
    """The nodes, parents first, edges as digests; stages of one view share its object, as they do parameters."""
    nodes = []
    views: dict[int, dict[str, Any]] = {}
    for digest, stage in graph.items():
        if id(stage.data) not in views:
            views[id(stage.data)] = _view_to_json(stage.data)
        nodes.append(
            {
                "digest": digest,
                "kind": stage.kind,
                "name": stage.name,
                "target": stage.target,
                "version": stage.version,
                "params": stage.params,
                "data": views[id(stage.data)],
                "seed": stage.seed,
                "part": stage.part,
                "inputs": {name: parent.digest for name, parent in stage.inputs.items()},
            }
        )
    return nodes


# Those external views that were used are stages of the graph themselves.
_VIEW_FIELDS = [field.name for field in fields(DataView) if field.name != "externals"]


def _view_to_json(view: DataView) -> dict[str, Any]:
    # `asdict` would copy every parameter, most of the time that planning takes.
    data = {name: getattr(view, name) for name in _VIEW_FIELDS}
    return {
        **data,
        "labels": list(view.labels),
        "images": view.images.digest if view.images else None,
    }


def pack(nodes: list[dict[str, Any]]) -> dict[str, Any]:
    """The nodes of `to_json` with every view and all parameters written once, for files of thousands of runs."""
    params, views = Table(), Table()
    packed = [
        {**node, "params": params.number(node["params"]), "data": views.number(node["data"])}
        for node in nodes
    ]
    rows = [{**view, "params": params.number(view["params"])} for view in views.rows]
    return {"params": params.rows, "views": rows, "nodes": packed}


def unpack(value: dict[str, Any]) -> list[dict[str, Any]]:
    """The nodes of `pack`; those that were written once are one object again."""
    params = [Dumped(each) for each in value["params"]]
    views = [{**view, "params": params[view["params"]]} for view in value["views"]]
    return [
        {**node, "params": params[node["params"]], "data": views[node["data"]]}
        for node in value["nodes"]
    ]


class Table:
    """Objects by number, the same one once; what is equal but another object may stand twice."""

    def __init__(self) -> None:
        self.rows: list[Any] = []
        self._numbers: dict[int, int] = {}

    def number(self, row: Any) -> int:
        """The number of an object."""
        found = self._numbers.setdefault(id(row), len(self.rows))
        if found == len(self.rows):
            self.rows.append(row)  # kept, so that no other can have its identity
        return found


def from_json(nodes: list[dict[str, Any]]) -> Graph:
    """The graph of `to_json`; a node whose digest is not its content's is refused."""
    try:
        return _read_nodes(nodes)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"not a graph of stages: {type(error).__name__}: {error}") from None


def _read_nodes(nodes: list[dict[str, Any]]) -> Graph:
    graph: Graph = {}
    views: dict[int, DataView] = {}  # by the identity of the objects that they are read from
    for node in nodes:
        fields = dict(node)
        digest, data = fields.pop("digest"), fields.pop("data")
        if id(data) not in views:
            views[id(data)] = _read_view(data, graph)
        inputs = {name: graph[parent] for name, parent in fields.pop("inputs").items()}
        stage = Stage(**fields, data=views[id(data)], inputs=inputs)
        if stage.digest != digest:
            raise DataError(
                f"stage {stage.key}: the job's digest {digest[:16]} is not its content's"
            )
        graph[digest] = stage
    return graph


def _read_view(value: dict[str, Any], graph: Graph) -> DataView:
    images = value["images"]
    return DataView(
        **{
            **value,
            "labels": tuple(value["labels"]),
            "label_map": tuple((mine, theirs) for mine, theirs in value["label_map"]),
            "images": graph[images] if images else None,
        }
    )
