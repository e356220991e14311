"""A look at the machine before it is trusted with a sweep."""

import os
import shutil
import sys
import uuid
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from cxrbench.core.errors import CannotWriteError
from cxrbench.core.provenance import PACKAGES
from cxrbench.core.store import Lock, Store, write_atomic

Level = Literal["ok", "warning", "error"]
MALWARE = {"lightning": {"2.6.2", "2.6.3"}}
GIB = 2**30
NETWORK_SYSTEMS = ("nfs", "nfs4", "cifs", "smb3", "lustre", "fuse.sshfs", "beegfs", "gpfs")


@dataclass
class Finding:
    """One thing looked at."""

    level: Level
    what: str
    detail: str


def examine() -> list[Finding]:
    """Everything a sweep will lean on."""
    store = Store.default()
    return [
        _python(),
        *_packages(),
        _gpu(),
        _shared_memory(),
        *_disk(store),
        _file_system(store),
        _wandb(),
    ]


def _python() -> Finding:
    text = sys.version.split()[0]
    return Finding("ok" if sys.version_info >= (3, 11) else "error", "python", text)


def _packages() -> list[Finding]:
    found = []
    for name in PACKAGES:
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            found.append(Finding("error", name, "not installed"))
            continue
        bad = version in MALWARE.get(name, set())
        detail = (
            f"{version} is known malware; remove it and change your passwords" if bad else version
        )
        found.append(Finding("error" if bad else "ok", name, detail))
    return found


def _gpu() -> Finding:
    from cxrbench.runner.devices import gpu_count

    count = gpu_count()
    if not count:
        return Finding("warning", "gpu", "none that torch can use; trainings run on the CPU")
    import torch

    names = ", ".join(torch.cuda.get_device_name(i) for i in range(count))
    return Finding("ok", "gpu", f"{count}: {names}")


def _shared_memory() -> Finding:
    try:
        free = shutil.disk_usage("/dev/shm").free
    except OSError:
        return Finding("warning", "/dev/shm", "absent; use --workers 0")
    level: Level = "ok" if free > GIB else "warning"
    hint = "" if level == "ok" else "; loader processes may fail, use --workers 0"
    return Finding(level, "/dev/shm", f"{free / GIB:.1f} GiB free{hint}")


def _disk(store: Store) -> list[Finding]:
    try:
        folder = store.folder()
    except CannotWriteError as error:
        return [Finding("error", "store", str(error))]
    usage = shutil.disk_usage(folder)
    level: Level = "ok" if usage.free > 10 * GIB else "warning"
    found = [Finding(level, "disk", f"{usage.free / GIB:.1f} GiB free at {folder}")]
    nodes = os.statvfs(folder)
    if nodes.f_files and nodes.f_favail < 10_000:
        found.append(Finding("warning", "inodes", f"{nodes.f_favail:,} left"))
    return found


def _file_system(store: Store) -> Finding:
    """Whether rename, fsync and locks do what the store relies on."""
    try:
        probe = store.folder() / f".doctor-{uuid.uuid4().hex[:8]}"
        write_atomic(probe, b"1")
        write_atomic(probe, b"2")
        first, second = Lock(probe), Lock(probe)
        held = first.acquire(wait=False) and not second.acquire(wait=False)
        first.release()
        second.release()
        whole = probe.read_bytes() == b"2"
        probe.unlink()
    except (CannotWriteError, OSError) as error:
        return Finding("error", "store", str(error))
    kind = _mount(store.root)
    if not (held and whole):
        return Finding(
            "error", "store", f"rename or locks do not hold on this file system ({kind})"
        )
    if kind in NETWORK_SYSTEMS:
        return Finding("warning", "store", f"{kind}: works, but a local disk is faster and safer")
    return Finding("ok", "store", f"write, fsync, rename and lock hold ({kind})")


def _mount(path: Path) -> str:
    best, kind = "", "unknown"
    try:
        for line in Path("/proc/mounts").read_text().splitlines():
            _, point, system, *_ = line.split()
            inside = path == Path(point) or Path(point) in path.parents
            if inside and len(point) >= len(best):
                best, kind = point, system
    except OSError:
        pass
    return kind


def _wandb() -> Finding:
    if os.environ.get("WANDB_API_KEY") or "api.wandb.ai" in _netrc():
        return Finding(
            "ok", "wandb", "logged in; stages are logged online unless --wandb says otherwise"
        )
    return Finding("ok", "wandb", "not logged in; off unless --wandb offline")


def _netrc() -> str:
    try:
        return (Path.home() / ".netrc").read_text()
    except OSError:
        return ""
