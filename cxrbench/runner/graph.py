"""Graphs of stages as JSON: what plans are cached as and what a worker is handed."""

from collections.abc import Iterable
from dataclasses import fields, replace
from typing import Any

from cxrbench.core.errors import DataError
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
    """The nodes, parents first, edges as digests."""
    nodes = []
    for digest, stage in graph.items():
        bare = replace(stage.data, images=None, externals={})
        # `asdict` would copy every parameter, most of the time that planning takes.
        data = {field.name: getattr(bare, field.name) for field in fields(bare)}
        data["params"] = dict(stage.data.params)
        del data["externals"]  # those that were used are stages of the graph themselves
        data["labels"] = list(stage.data.labels)
        data["images"] = stage.data.images.digest if stage.data.images else None
        nodes.append(
            {
                "digest": digest,
                "kind": stage.kind,
                "name": stage.name,
                "target": stage.target,
                "version": stage.version,
                "params": dict(stage.params),
                "data": data,
                "seed": stage.seed,
                "part": stage.part,
                "inputs": {name: parent.digest for name, parent in stage.inputs.items()},
            }
        )
    return nodes


def from_json(nodes: list[dict[str, Any]]) -> Graph:
    """The graph of `to_json`; a node whose digest is not its content's is refused."""
    try:
        return _read_nodes(nodes)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"not a graph of stages: {type(error).__name__}: {error}") from None


def _read_nodes(nodes: list[dict[str, Any]]) -> Graph:
    graph: Graph = {}
    for node in nodes:
        fields = dict(node)
        digest = fields.pop("digest")
        data = dict(fields.pop("data"))
        images = data.pop("images")
        view = DataView(
            **{
                **data,
                "labels": tuple(data["labels"]),
                "label_map": tuple((mine, theirs) for mine, theirs in data["label_map"]),
            },
            images=graph[images] if images else None,
        )
        inputs = {name: graph[parent] for name, parent in fields.pop("inputs").items()}
        stage = Stage(**fields, data=view, inputs=inputs)
        if stage.digest != digest:
            raise DataError(
                f"stage {stage.key}: the job's digest {digest[:16]} is not its content's"
            )
        graph[digest] = stage
    return graph
