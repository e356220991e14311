"""list, verify and doctor."""

import json
from typing import Annotated

import typer

from cxrbench.cli import common
from cxrbench.core.errors import UsageError


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    app.command(name="list")(list_names)
    app.command()(verify)
    app.command()(doctor)


def list_names(
    what: Annotated[str, typer.Argument(help="methods, datasets or presets")] = "",
    plugin: common.Plugin = [],  # noqa: B006
    as_json: common.Json = False,
) -> None:
    """What can be named: methods, data sets, presets."""
    kinds = ("methods", "datasets", "presets")
    if what and what not in kinds:
        raise UsageError(f"list {what}: choose {', '.join(kinds)}")
    registry = common.registry_of(plugin)
    methods = registry.entries("methods")
    found: dict[str, dict[str, str]] = {}
    if what in ("", "methods"):
        found["methods"] = {name: entry.summary for name, entry in methods.items()}
    if what in ("", "datasets"):
        found["datasets"] = {n: entry.summary for n, entry in registry.entries("datasets").items()}
    if what in ("", "presets"):
        found["presets"] = {
            preset: ", ".join(n for n, entry in methods.items() if preset in entry.presets)
            for preset in dict.fromkeys(p for entry in methods.values() for p in entry.presets)
        }
    if as_json:
        print(json.dumps(found, indent=1, ensure_ascii=False))
        return
    width = max(len(name) for group in found.values() for name in group)
    for title, group in found.items():
        print(f"{title}:")
        for name, text in group.items():
            print(f"  {name.ljust(width)}  {text}")


def verify(
    name: Annotated[str, typer.Argument(help="A method or data set.")],
    plugin: common.Plugin = [],  # noqa: B006
) -> None:
    """Check that a method or data set keeps the rules."""
    from cxrbench.runner.conformance import verify_name

    failed = 0
    for check in verify_name(common.registry_of(plugin), name):
        print(f"{'ok  ' if check.passed else 'FAIL'}  {check.name}", flush=True)
        if not check.passed:
            print(f"      {check.detail}")
            failed += 1
    if failed:
        raise typer.Exit(1)


def doctor(as_json: common.Json = False) -> None:
    """Check this machine.

    Versions, GPU, disk, the store's file system, W&B.
    """
    from cxrbench.runner.doctor import examine

    findings = examine()
    if as_json:
        print(json.dumps([f.__dict__ for f in findings], indent=1, ensure_ascii=False))
    else:
        marks = {"ok": "ok  ", "warning": "WARN", "error": "FAIL"}
        for finding in findings:
            print(f"{marks[finding.level]}  {finding.what}: {finding.detail}")
    if any(finding.level == "error" for finding in findings):
        raise typer.Exit(1)
