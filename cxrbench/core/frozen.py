"""The frozen pydantic base of every specification, and errors that name key and repair."""

import reprlib
import types
import typing
from functools import cached_property, lru_cache
from typing import Any, Self, Union

from pydantic import BaseModel, ConfigDict, ValidationError

from cxrbench.core.digest import canonical_json
from cxrbench.core.errors import ConfigError
from cxrbench.core.nearest import nearest

# What was given may be a whole file.
_BRIEF = reprlib.Repr()
_BRIEF.maxstring = _BRIEF.maxother = 120


def unless_set(value: Any) -> bool:
    """For `Field(exclude_if=...)` of what was added later: left at its default it is no part of an identity."""
    return not value


class Frozen(BaseModel):
    """An immutable specification in which an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def dumped(self) -> "Dumped":
        """This model as JSON; the same object each time, which nobody may change."""
        return _dumped(_Same(self))

    @classmethod
    def parse(cls, value: Any, *, where: str) -> Self:
        """Validate a value; `where` (a file or an option) leads the error message."""
        try:
            return cls.model_validate(value)
        except ValidationError as error:
            raise ConfigError(_explain(error, cls, where)) from None


class Dumped(dict[str, Any]):
    """A JSON object that stays as it is and keeps its canonical text: thousands of stages share one."""

    @cached_property
    def text(self) -> str:
        """Its canonical JSON."""
        return canonical_json(self)


class _Same:
    """A model under its identity: models that hold dicts or lists have no hash of their own."""

    def __init__(self, model: Frozen) -> None:
        self.model = model

    def __hash__(self) -> int:
        return id(self.model)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.model is other.model


@lru_cache(maxsize=256)  # keeps the models alive, so no other can have their identity
def _dumped(same: _Same) -> Dumped:
    return Dumped(same.model.model_dump(mode="json"))


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    """The pydantic models inside an annotation such as `list[A | None]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if typing.get_origin(annotation) in (Union, types.UnionType, list, tuple, dict):
        return [m for a in typing.get_args(annotation) for m in _models_in(a)]
    return []


def _fields_at(model: type[BaseModel], path: tuple[int | str, ...]) -> set[str]:
    models: list[type[BaseModel]] = [model]
    for part in path:
        if isinstance(part, int):
            continue
        fields = [m.model_fields[part] for m in models if part in m.model_fields]
        if fields:
            models = [m for field in fields for m in _models_in(field.annotation)]
    return {name for m in models for name in m.model_fields}


def _is_branch(part: int | str) -> bool:
    """Whether a part of a path is pydantic's name for a kind of value, such as `list[union[str,X]]`."""
    return isinstance(part, str) and part.startswith(("literal[", "list[", "[key]"))


def _is_of_another_kind(item: Any) -> bool:
    """Whether an error says only that a mapping or list is not the word that could have stood in its place."""
    last = str(item["loc"][-1]) if item["loc"] else ""
    return isinstance(item["input"], list | dict) and (last == "str" or last.startswith("literal["))


def _explain(error: ValidationError, model: type[BaseModel], where: str) -> str:
    lines = []
    for item in [e for e in error.errors() if not _is_of_another_kind(e)] or error.errors():
        path = item["loc"]
        key = ".".join(str(part) for part in path if not _is_branch(part))
        if item["type"] == "extra_forbidden":
            hint = nearest(str(path[-1]), _fields_at(model, path[:-1]))
            lines.append(f"{where}: unknown key '{key}'; {hint}")
        else:
            given = "" if item["type"] == "missing" else f" (given: {_BRIEF.repr(item['input'])})"
            lines.append(f"{where}: {key or 'value'}: {item['msg']}{given}")
    return "\n".join(lines)
