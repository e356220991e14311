"""Every method and data set keeps the rules: a new file is tested by existing."""

from pathlib import Path

import pytest

from cxrbench.core.errors import UsageError
from cxrbench.core.registry import Registry
from cxrbench.runner.conformance import verify_dataset_class, verify_method, verify_name

PLUGINS = Path(__file__).parent / "plugins"
BUILT_IN = Registry()


@pytest.mark.parametrize("name", BUILT_IN.entries("methods"))
def test_method(name: str) -> None:
    for check in verify_method(BUILT_IN, name, train=False):
        assert check.passed, f"{check.name}: {check.detail}"


@pytest.mark.slow
@pytest.mark.parametrize("name", BUILT_IN.entries("methods"))
def test_method_learns_by_real_workers(name: str) -> None:
    last = list(verify_method(BUILT_IN, name))[-1]
    assert last.passed, f"{last.name}: {last.detail}"


@pytest.mark.parametrize("name", BUILT_IN.entries("datasets"))
def test_dataset(name: str) -> None:
    for check in verify_dataset_class(BUILT_IN.load("datasets", name)):
        assert check.passed, f"{check.name}: {check.detail}"


def test_loose_files() -> None:
    registry = Registry([PLUGINS / "small.py", PLUGINS / "striped.py"])
    assert all(check.passed for check in verify_method(registry, "small", train=False))
    assert all(check.passed for check in verify_name(registry, "striped"))


BAD_METHOD = '''
import torch
from cxrbench.methods.base import Classifier
from cxrbench.core.spec import MethodParams, Recipe

class Bad(Classifier):
    """Half of it never learns, and it looks at another fold."""

    name = "bad"
    version = 1
    Params = MethodParams
    presets = {"quick": {"recipe": Recipe(size=32, load=32).model_dump()}}

    def __init__(self, params, labels):
        super().__init__(params, labels)
        self.used = torch.nn.Linear(1, len(labels))
        self.idle = torch.nn.Linear(1, 1)

    @classmethod
    def stages(cls, data, params):
        from cxrbench.core.stage import fit
        return fit(cls, data.at(fold=2), params)

    def forward(self, image):
        return self.used(image.mean(dim=(1, 2, 3))[:, None])
'''


def test_broken_rules_are_found(tmp_path: Path) -> None:
    plugin = tmp_path / "bad.py"
    plugin.write_text(BAD_METHOD)
    found = {c.name: c for c in verify_method(Registry([plugin]), "bad", train=False)}
    assert "fold 2" in found["preset quick plans without a leak"].detail
    assert "idle" in found["learns from a batch with 1 labels"].detail


def test_unknown_name_gets_the_nearest() -> None:
    with pytest.raises(UsageError, match="densenet121"):
        list(verify_name(BUILT_IN, "densenet"))
