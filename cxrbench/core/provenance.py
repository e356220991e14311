"""Who, where and with what: recorded beside every result, never part of an identity."""

import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

from cxrbench import __version__
from cxrbench.core.digest import PACKAGE, package_digest

PACKAGES = (
    "torch", "lightning", "torchvision", "torchmetrics", "timm", "albumentations", "numpy",
    "pandas", "pillow", "opencv-python-headless", "scikit-learn", "pydantic", "wandb",
)  # fmt: skip
# Only these variables are ever recorded: an allow-list keeps secrets out.
VARIABLES = ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "SLURM_JOB_ID", "CUBLAS_WORKSPACE_CONFIG")


def utc_now() -> str:
    """The time as ISO 8601 in UTC, to the second."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _git(*words: str) -> str | None:
    command = ["git", "-C", str(PACKAGE), *words]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


@lru_cache(maxsize=1)
def code_state() -> dict[str, Any]:
    """Version, source digest, commit and whether the checkout differs from that commit."""
    commit = _git("rev-parse", "HEAD")
    # Only this package's own sources count: results and notes may lie in the tree uncommitted.
    changes = _git("status", "--porcelain", "--", str(PACKAGE)) if commit else None
    return {
        "cxrbench": __version__,
        "source": package_digest(),
        "commit": commit,
        "dirty": bool(changes) if commit else None,
    }


@lru_cache(maxsize=1)
def machine() -> dict[str, Any]:
    """What decides how fast this machine computes, as far as it says so without a name."""
    return {"processor": _processor(), "cores": os.cpu_count()}


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _without_home(word: str) -> str:
    home = str(Path.home())
    return word.replace(home, "~") if len(home) > 1 else word


def collect_provenance() -> dict[str, Any]:
    """Code, versions and machine of this process; host and user names are left out on purpose."""
    return {
        "time": utc_now(),
        "code": code_state(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        **machine(),
        "packages": {name: found for name in PACKAGES if (found := _version(name))},
        "environment": {name: os.environ[name] for name in VARIABLES if name in os.environ},
        "command": [Path(sys.argv[0]).name, *map(_without_home, sys.argv[1:])],
    }
