"""At which sides a plan reads the raw images of each data set, so that one decode can make them all."""

from collections.abc import Iterable
from typing import Any

from cxrbench.core.contract import reading_of
from cxrbench.core.digest import digest
from cxrbench.core.errors import ConfigError
from cxrbench.core.registry import load_target
from cxrbench.core.stage import DataView, Stage

Sides = dict[str, list[int]]  # by `images_key`, in pixels


def images_key(view: DataView) -> str:
    """What tells the raw images of two views apart; neither split nor fold."""
    return digest(view.pixels())[:16]


def sides_of(stages: Iterable[Stage]) -> Sides:
    """The sides at which stages read raw images; asks their classes, which for methods imports torch."""
    found: dict[str, set[int]] = {}
    keys: dict[int, str] = {}
    asked: dict[tuple[str, int], int | None] = {}
    for stage in stages:
        view = stage.data
        if stage.kind == "score" or view.images is not None:
            continue
        if id(view) not in keys:
            keys[id(view)] = images_key(view)
        one = (stage.target, id(stage.params))
        if one not in asked:
            asked[one] = side_of(stage)
        side = asked[one]
        if side is not None:
            found.setdefault(keys[id(view)], set()).add(side)
    return {key: sorted(sides) for key, sides in found.items()}


def side_of(stage: Stage) -> int | None:
    """The side to which a stage has films squeezed, None where it keeps their shape; ConfigError where its class does not say."""
    cls: Any = load_target(stage.target)
    params = cls.Params.parse(dict(stage.params), where=stage.key)
    try:
        if stage.kind in ("compute", "transform"):
            reader = cls(params)
            return int(reader.image_size()) if reading_of(reader) == "squeeze" else None
        side = int(cls.image_size(params)[0])
        return side if cls.reading(params) == "squeeze" else None
    except (NotImplementedError, AttributeError) as error:
        raise ConfigError(
            f"{stage.target}: needs a method image_size that gives the side in pixels at which it reads images "
            f"({type(error).__name__}: {error})"
        ) from error
