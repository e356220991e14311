"""What may be expected of the same training a second time, for the record."""

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from cxrbench.core.spec import Execution

# torch's words in the mode that only warns, after the name of the operation.
NAMED = re.compile(r"^(\S+) does not have a deterministic implementation")


@contextmanager
def noted_operations() -> Iterator[set[str]]:
    """The operations without a deterministic form that run inside; their warnings are kept back."""
    found: set[str] = set()
    show = warnings.showwarning

    def note(message: Any, *args: Any, **named: Any) -> None:
        known = NAMED.match(str(message))
        if known:
            found.add(known[1])
        else:
            show(message, *args, **named)

    with warnings.catch_warnings():
        warnings.filterwarnings("default", message=r"\S+ does not have a deterministic")
        warnings.showwarning = note
        yield found


def promise(execution: Execution, operations: set[str]) -> dict[str, Any]:
    """What a second training of the same digest on the same machine gives, and the operations that decide it."""
    if execution.accelerator == "cpu":
        same = "the same bits"
    elif not execution.deterministic:
        same = "the same distribution: kernels are chosen by timing them, and some sum in no fixed order"
    elif operations:
        same = "the same distribution: some operations sum in no fixed order"
    else:
        same = "the same distribution: other kernels may be chosen"
    return {"again": same, "operations": sorted(operations)}
