"""Chains: a stage and the predictions and scores that only wait for it, which one worker does.

A worker's start costs ten seconds of imports, so every engine starts one a chain, by a job's file.
"""

from collections.abc import Callable
from pathlib import Path

from cxrbench.core.registry import Registry
from cxrbench.core.spec import Execution
from cxrbench.core.stage import Stage
from cxrbench.core.store import Store, write_json
from cxrbench.runner.graph import Graph, to_json
from cxrbench.runner.plan import Plan

Ready = Callable[[Stage, set[str]], bool]  # (stage, digests that the chain builds before it)


def chain_from(stage: Stage, pending: Graph, ready: Ready) -> list[Stage]:
    """The stage and those of `pending` that one worker does after it."""
    chain, soon = [stage], {stage.digest}
    for other in pending.values():
        follows = other.kind in ("predict", "score") and any(
            p.digest in soon for p in other.parents()
        )
        if follows and other.digest not in soon and ready(other, soon):
            chain.append(other)
            soon.add(other.digest)
    return chain


def all_chains(missing: Graph, store: Store) -> list[list[Stage]]:
    """All missing stages in chains before any of them runs; what a chain waits for stands before it."""
    pending, chains = dict(missing), []
    while pending:
        head = next(iter(pending.values()))
        before = head.ancestry()  # is there when the chain begins

        def ready(stage: Stage, soon: set[str], before: Graph = before) -> bool:
            return all(
                p.digest in soon or p.digest in before or store.has(p.key) for p in stage.parents()
            )

        chain = chain_from(head, pending, ready)
        for stage in chain:
            del pending[stage.digest]
        chains.append(chain)
    return chains


def write_job(
    path: Path,
    plan: Plan,
    store: Store,
    registry: Registry,
    execution: Execution,
    chain: list[Stage],
) -> Path:
    """The file that tells a worker to build a chain; the worker's log lies beside it."""
    nodes: Graph = {}
    for stage in chain:
        nodes.update(stage.ancestry())
    write_json(path, {
        "store": str(store.root),
        "todo": [stage.digest for stage in chain],
        "nodes": to_json(nodes),
        "roots": {k: str(v.expanduser().resolve()) if v else None for k, v in plan.roots.items()},
        "plugins": [str(path) for path in registry.plugins],
        "execution": execution.model_dump(mode="json"),
        "sides": plan.sides,
    })  # fmt: skip
    return path
