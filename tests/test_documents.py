"""The programs in the documents work as they stand."""

import re
from pathlib import Path

import pytest

from cxrbench.core.registry import Registry
from cxrbench.runner.conformance import verify_dataset_class, verify_method

ROOT = Path(__file__).resolve().parents[1]


def programs(document: str) -> list[str]:
    """The Python blocks of a document that define a class."""
    found = re.findall(r"```python\n(.*?)```", (ROOT / document).read_text(), re.DOTALL)
    return [text for text in found if "\nclass " in text]


@pytest.mark.parametrize(
    ("document", "number", "name"),
    [
        ("README.md", 0, "my-method"),
        ("CONTRIBUTING.md", 0, "my-method"),
        ("CONTRIBUTING.md", 1, "my-data"),
    ],
)
def test_example_keeps_the_rules(tmp_path: Path, document: str, number: int, name: str) -> None:
    plugin = tmp_path / "example.py"
    plugin.write_text(programs(document)[number])
    registry = Registry([plugin])
    if name == "my-data":
        checks = list(verify_dataset_class(registry.load("datasets", name)))
    else:
        checks = list(verify_method(registry, name, train=False))
    assert checks
    for check in checks:
        assert check.passed, f"{check.name}: {check.detail}"


def test_commands_of_the_readme_exist() -> None:
    from typer.main import get_command

    from cxrbench.cli import app

    known = set(get_command(app).commands)  # type: ignore[attr-defined]
    words = re.findall(r"^cxrbench ([a-z]+)", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert set(words) >= {"run", "bench", "plan", "leaderboard", "data", "splits"}
    assert set(words) <= known


@pytest.mark.parametrize("name", sorted(Registry().entries("datasets")))
def test_every_data_set_is_described(name: str) -> None:
    """Its section in docs/datasets.md names its splits and options."""
    cls = Registry().load("datasets", name)
    text = (ROOT / "docs" / "datasets.md").read_text()
    sections = re.split(r"^## ", text, flags=re.MULTILINE)
    (section,) = [s for s in sections if s.splitlines()[0].strip("` ").startswith(cls.name)]
    (row,) = [line for line in text.splitlines() if line.startswith(f"| [`{cls.name}`]")]
    assert [split for split in cls.splits if f"`{split}`" not in row] == []
    assert [option for option in cls.Params.model_fields if option not in section] == []
