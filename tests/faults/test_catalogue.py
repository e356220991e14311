"""docs/reliability.md names tests that exist, and every fault of the catalogue."""

import ast
import re
from pathlib import Path

import pytest

from cxrbench.core.spec import Execution
from cxrbench.runner.determinism import noted_operations, promise

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "reliability.md").read_text()
NAMED = sorted(set(re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", TEXT)))
COUNTS = {"R": 16, "D": 21, "M": 8, "H": 8, "W": 5, "S": 14}


@pytest.mark.parametrize(("file", "name"), NAMED)
def test_the_tests_of_the_document_exist(file: str, name: str) -> None:
    tree = ast.parse((ROOT / file).read_text())
    assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_the_document_has_every_line() -> None:
    rows = [line.split("|") for line in TEXT.splitlines() if re.match(r"\| [RDMHWS]\d\d ", line)]
    ids = [row[1].strip() for row in rows]
    wanted = {
        f"{kind}{number:02d}" for kind, count in COUNTS.items() for number in range(1, count + 1)
    }
    assert set(ids) == wanted
    for row in rows:
        admitted = re.search(r"\bnot (promised|tested|looked at)\b", row[3])
        assert "::" in row[4] or admitted, f"{row[1]} shows nothing and does not say so"


def test_operations_without_a_fixed_order_are_noted_and_other_warnings_shown() -> None:
    import warnings

    words = "does not have a deterministic implementation, but you set 'torch...'"
    with pytest.warns(UserWarning, match="another") as shown, noted_operations() as found:
        warnings.warn(f"grid_sampler_2d_backward_cuda {words}", stacklevel=1)
        warnings.warn("another warning", stacklevel=1)
    assert found == {"grid_sampler_2d_backward_cuda"} and len(shown) == 1
    said = promise(Execution(accelerator="gpu", deterministic=True), found)
    assert said["operations"] == ["grid_sampler_2d_backward_cuda"]
    assert "timing" in promise(Execution(accelerator="gpu"), set())["again"]
    assert promise(Execution(), set()) == {"again": "the same bits", "operations": []}
