"""Where a site's files are written: pages from templates that escape, figures and pictures once each."""

import shutil
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from cxrbench.core.store import Store
from cxrbench.leaderboard.site.galleries import Galleries

HERE = Path(__file__).parent
ASSETS = ("style.css", "board.js")
# Nothing leaves the page: no request but for the site's own files. `file:` is for pages opened from
# disk, where browsers do not agree on what 'self' is.
POLICY = (
    "default-src 'none'; style-src 'self' file:; script-src 'self' file:; img-src 'self' file:; "
    "base-uri 'none'; form-action 'none'"
)


@dataclass
class Output:
    """A site that is being written to a folder."""

    folder: Path
    store: Store
    facts: dict[str, Any] = field(default_factory=dict)  # what every page says
    processes: int = 1  # that draw figures
    films: bool = True  # pictures that show single films, too
    _figures: dict[str, "Future[None] | None"] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("tasks", "runs", "figures"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        for name in ASSETS:
            shutil.copyfile(HERE / name, self.folder / name)

    @cached_property
    def galleries(self) -> Galleries:
        """The pictures of all pages."""
        return Galleries(self.folder / "pictures", self.store, self.films)

    @cached_property
    def _templates(self) -> Environment:
        return Environment(
            loader=FileSystemLoader(HERE / "templates"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )

    def page(self, path: str, template: str, **values: Any) -> None:
        """Write a page; `path` is below the site."""
        root = "../" * path.count("/")
        text = self._templates.get_template(template).render(
            **values, **self.facts, root=root, policy=POLICY
        )
        # A lone surrogate, which JSON can hold, has no UTF-8.
        (self.folder / path).write_bytes(text.encode("utf-8", errors="replace"))

    def figure(self, name: str, draw: Callable[..., str], *what: Any) -> str:
        """The path of a figure, drawn unless one of this name is; it is there after `finish`."""
        path = f"figures/{name}.svg"
        if name not in self._figures:
            job = (self.folder / path, draw, *what)
            if self._pool:
                self._figures[name] = self._pool.submit(_draw, *job)
            else:
                self._figures[name] = None
                _draw(*job)
        return path

    @cached_property
    def _pool(self) -> ProcessPoolExecutor | None:
        if self.processes < 2:
            return None
        # Of a process with many threads (pandas, torch) no copy can be made safely.
        return ProcessPoolExecutor(self.processes, mp_context=get_context("spawn"))

    def finish(self, *, whole: bool = True) -> None:
        """Wait for the figures, or give up those that were not begun; raises what went wrong in one."""
        if self._pool:
            self._pool.shutdown(cancel_futures=not whole)
        for future in self._figures.values() if whole else ():
            if future is not None:
                future.result()


def _draw(path: Path, draw: Callable[..., str], *what: Any) -> None:
    path.write_bytes(draw(*what).encode("utf-8", errors="replace"))
