"""The floors: imports point down only, files stay short, and nothing unsafe is called."""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "cxrbench"
FILES = sorted(PACKAGE.rglob("*.py"))
MOST_LINES = 420
# What each floor may import of this package, itself included.
BELOW = {
    "core": {"core"},
    "nn": {"core", "nn"},
    "metrics": {"core", "metrics"},
    "data": {"core", "nn", "metrics", "data"},
    "methods": {"core", "nn", "metrics", "methods"},
    "runner": {"core", "nn", "metrics", "data", "methods", "runner"},
    "leaderboard": {"core", "nn", "metrics", "data", "methods", "leaderboard"},
    "perf": {"core", "nn", "metrics", "data", "methods", "runner", "perf"},
    "cli": {"core", "nn", "metrics", "data", "methods", "runner", "leaderboard", "perf", "cli"},
}
CORE_LIBRARIES = {"pydantic", "yaml"}
# Foreign modules that a floor must not import at all.
FORBIDDEN = {
    "nn": {"lightning", "pandas", "typer"},
    "metrics": {"torch", "lightning", "torchvision", "timm", "typer"},
    "data": {"typer", "rich"},
    "methods": {"typer", "rich"},
    "runner": {"typer", "rich"},
    "perf": {"typer", "rich"},
    "leaderboard": {"torch", "lightning", "typer"},
}
# Only the module of loaders may need Lightning: reading, splitting and verifying stay quick.
LIGHTNING_IN_DATA = {"module.py", "micro_batches.py", "resident.py"}
UNSAFE = {
    "pickle": r"^\s*(?:import|from)\s+(?:c?pickle|dill|shelve|marshal)\b",
    "joblib": r"\bjoblib\b",
    "eval or exec": r"(?<![\w.])(?:eval|exec)\(",
    "unsafe torch.load": r"weights_only\s*=\s*(?:False|None)",
    "np.load of objects": r"allow_pickle\s*=\s*True",
    "a shell": r"shell\s*=\s*True|os\.system\(|os\.popen\(",
}


def floor(path: Path) -> str:
    relative = path.relative_to(PACKAGE)
    return relative.parts[0] if len(relative.parts) > 1 else ""


def names(path: Path) -> str:
    return str(path.relative_to(PACKAGE))


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """(line, dotted module) of every import of a file, inside functions and TYPE_CHECKING too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            module = node.module or ""
            yield node.lineno, module
            if module.count(".") == 0 and module == "cxrbench":  # `from cxrbench import x`
                yield from ((node.lineno, f"cxrbench.{alias.name}") for alias in node.names)


def own_floors(path: Path) -> Iterator[tuple[int, str]]:
    for line, module in imports(path):
        parts = module.split(".")
        if parts[0] == "cxrbench" and len(parts) > 1 and (PACKAGE / parts[1]).is_dir():
            yield line, parts[1]


def test_every_folder_is_a_known_floor() -> None:
    found = {path.name for path in PACKAGE.iterdir() if path.is_dir() and any(path.glob("*.py"))}
    assert found == set(BELOW)


@pytest.mark.parametrize("path", FILES, ids=names)
def test_imports_point_down_only(path: Path) -> None:
    here = floor(path)
    if not here:
        assert path.name in ("__init__.py", "__main__.py")
        allowed = {"cli"} if path.name == "__main__.py" else set()
    else:
        allowed = BELOW[here]
    wrong = [f"{names(path)}:{line}: {to}" for line, to in own_floors(path) if to not in allowed]
    assert not wrong


def test_the_import_reader_sees_hidden_imports(tmp_path: Path) -> None:
    file = tmp_path / "x.py"
    file.write_text(
        "def f():\n    from cxrbench.runner import plan\n    import cxrbench.cli.bench\n"
    )
    assert [to for _, to in own_floors(file)] == ["runner", "cli"]


@pytest.mark.parametrize("path", [p for p in FILES if floor(p) == "core"], ids=names)
def test_core_needs_the_standard_library_pydantic_and_yaml_alone(path: Path) -> None:
    roots = {module.split(".")[0] for _, module in imports(path)}
    assert not roots - set(sys.stdlib_module_names) - CORE_LIBRARIES - {"cxrbench"}


@pytest.mark.parametrize("path", FILES, ids=names)
def test_floors_do_without_what_they_need_not(path: Path) -> None:
    roots = {module.split(".")[0] for _, module in imports(path)}
    assert not roots & FORBIDDEN.get(floor(path), set())
    if floor(path) == "data" and path.name not in LIGHTNING_IN_DATA:
        assert not roots & {"torch", "lightning", "torchvision"}


@pytest.mark.parametrize("path", FILES, ids=names)
def test_files_are_short(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) < MOST_LINES


@pytest.mark.parametrize("what", UNSAFE)
def test_nothing_unsafe_is_called(what: str) -> None:
    pattern = re.compile(UNSAFE[what], re.MULTILINE)
    assert not [names(p) for p in FILES if pattern.search(p.read_text(encoding="utf-8"))]


def test_yaml_is_read_in_one_place_and_safely() -> None:
    calls = [p for p in FILES if re.search(r"\byaml\.(?:\w*load\w*)\(", p.read_text("utf-8"))]
    assert [names(p) for p in calls] == ["core/yamlfile.py"]
    assert calls[0].read_text().count("yaml.load(text, Loader=_Loader)") == 1


def test_torch_load_and_np_load_always_say_that_they_are_safe() -> None:
    unsaid = []
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            called = ast.unparse(node.func)
            given = {k.arg: ast.unparse(k.value) for k in node.keywords}
            if called == "torch.load" and given.get("weights_only") != "True":
                unsaid.append(f"{names(path)}:{node.lineno}")
            if called == "np.load" and given.get("allow_pickle", "False") != "False":
                unsaid.append(f"{names(path)}:{node.lineno}")
    assert not unsaid


def test_images_are_opened_as_png_or_jpeg_only() -> None:
    opens = [
        (names(path), node)
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "Image.open"
    ]
    assert opens
    for where, call in opens:
        formats = [ast.literal_eval(k.value) for k in call.keywords if k.arg == "formats"]
        assert formats, where
        # JSRT's lung masks are GIFs.
        allowed = {"GIF"} if where == "data/lung_pixels.py" else {"PNG", "JPEG"}
        assert set(formats[0]) <= allowed, where
