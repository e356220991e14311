"""YAML without its traps: safe, no duplicate keys, `1e-4` is a number, `no` is not False."""

import re
from pathlib import Path
from typing import Any

import yaml

from cxrbench.core.errors import ConfigError, MissingInputError

MAX_BYTES = 1_000_000


class _Loader(yaml.SafeLoader):
    """SafeLoader with the YAML 1.2 readings of floats and booleans, and no dates."""


_Loader.yaml_implicit_resolvers = {
    first: [
        (tag, pattern)
        for tag, pattern in resolvers
        if not tag.endswith((":bool", ":float", ":timestamp"))
    ]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]+)?$"),
    list("-+0123456789."),
)


def _text(loader: _Loader, node: yaml.ScalarNode) -> str:
    text = str(loader.construct_scalar(node))
    if not text.isascii():
        try:
            text.encode()
        except (
            UnicodeEncodeError
        ):  # an escape like \\ud800: half a character, which no file can hold
            raise yaml.constructor.ConstructorError(
                None, None, f"{text!a} is no Unicode text", node.start_mark
            ) from None
    return text


_Loader.add_constructor("tag:yaml.org,2002:str", _text)


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: set[Any] = set()
    for key_node, _ in node.value:
        if key_node.tag == "tag:yaml.org,2002:merge":
            continue
        if not isinstance(key_node, yaml.ScalarNode):
            raise yaml.constructor.ConstructorError(
                None, None, "a key must be a plain word", key_node.start_mark
            )
        key = loader.construct_object(key_node)
        if key in seen:
            raise yaml.constructor.ConstructorError(
                None, None, f"the key {key!r} stands twice", key_node.start_mark
            )
        seen.add(key)
    loader.flatten_mapping(node)
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor("tag:yaml.org,2002:map", _mapping)


def parse_yaml(text: str, *, where: str) -> Any:
    """The value of a YAML text; a syntax error or a duplicate key raises ConfigError."""
    try:
        return yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{where}: {error}") from None


def read_yaml(path: Path) -> Any:
    """The value of a YAML file of at most 1 MB."""
    if not path.is_file():
        raise MissingInputError(f"{path}: no such file")
    if path.stat().st_size > MAX_BYTES:
        raise ConfigError(f"{path}: larger than {MAX_BYTES:,} bytes, which no specification is")
    try:
        return parse_yaml(path.read_text(encoding="utf-8-sig"), where=str(path))
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 ({error}); save it as UTF-8") from None
