"""Walks over data folders, and their cheap fingerprints."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from cxrbench.core.digest import digest_lines


def scan_files(root: Path, suffixes: tuple[str, ...]) -> Iterator[tuple[str, os.stat_result]]:
    """Files below `root` with one of the suffixes, as (path with `/`, stat), in sorted order.

    Symbolic links to folders are followed once per real folder, so that a loop ends; hidden files and
    `__MACOSX` folders are passed over.
    """
    seen: set[tuple[int, int]] = set()

    def walk(folder: Path, prefix: str) -> Iterator[tuple[str, os.stat_result]]:
        here = folder.stat()
        if (here.st_dev, here.st_ino) in seen:
            return
        seen.add((here.st_dev, here.st_ino))
        for item in sorted(os.scandir(folder), key=lambda item: item.name):
            if item.name.startswith(".") or item.name == "__MACOSX":
                continue
            try:
                info = item.stat()
            except FileNotFoundError:
                continue  # a dangling link: absent, and reported as missing by who needs it
            if stat.S_ISDIR(info.st_mode):
                yield from walk(Path(item.path), f"{prefix}{item.name}/")
            elif item.name.lower().endswith(suffixes):
                yield prefix + item.name, info

    yield from walk(root, "")


def tree_fingerprint(root: Path) -> str:
    """A hash of names, sizes and times of all files below `root`: cheap, changes with any edit."""
    files = scan_files(root, ("",)) if root.is_dir() else [(root.name, root.stat())]
    return digest_lines(f"{name} {info.st_size} {info.st_mtime_ns}" for name, info in files)
