"""The memory of a GPU: how much is free, how much others hold, and whether it was they who left too little."""

import os
import re
from dataclasses import dataclass

GIB = 2**30
# What a process takes of a GPU beside torch's tensors (CUDA's context, the libraries' workspaces), and what the
# driver keeps for itself: 0.1 to 0.9 GiB in five reports of full memory in public issues. Process ids would tell
# more, but in a container the driver's are not the process's own.
BESIDE = GIB
WITHOUT_FIGURES = "CUDA error: out of memory"
_UNITS = {"bytes": 1, "KiB": 2**10, "MiB": 2**20, "GiB": GIB, "TiB": 2**40}
_SIZE = r"([\d.]+) (bytes|KiB|MiB|GiB|TiB)"
# torch's report of an allocation that failed (since 2.1), made at that very moment.
_REPORT = re.compile(
    rf"Tried to allocate {_SIZE}.*total capac\w+ of {_SIZE} of which {_SIZE} is free"
    rf".*?{_SIZE} is allocated by PyTorch.*?{_SIZE} is reserved by PyTorch but unallocated",
    re.DOTALL,
)


@dataclass(frozen=True)
class Shortage:
    """What a process had of a GPU when its memory was full; all in bytes."""

    asked: int
    total: int
    free: int
    allocated: int
    reserved: int  # by torch, and not allocated

    @property
    def others(self) -> int:
        """Bytes that other processes held, as far as can be told."""
        mine = self.allocated + self.reserved + BESIDE
        return max(0, self.total - self.free - mine)

    @property
    def need(self) -> int:
        """Bytes that would have been enough for what was asked."""
        return self.allocated + self.asked + BESIDE

    @property
    def because_of_others(self) -> bool:
        """Whether others held memory without which it would have been enough."""
        return bool(self.others) and self.need <= self.total


def shortage(text: str) -> Shortage | None:
    """The figures in torch's report of full memory, or measured where CUDA itself had none; None for other texts."""
    found = _REPORT.search(text)
    if not found:
        return _measured() if WITHOUT_FIGURES in text else None
    words = found.groups()
    sizes = [
        int(float(number) * _UNITS[unit])
        for number, unit in zip(words[::2], words[1::2], strict=True)
    ]
    return Shortage(*sizes)


def _measured() -> Shortage:
    """What CUDA found too little, which gives no figures: a GPU so full that nothing can even begin on it, for one."""
    import torch

    device = int(os.environ.get("LOCAL_RANK", "0"))
    free, total = look(device)
    most, now = torch.cuda.max_memory_reserved(device), torch.cuda.memory_reserved(device)
    # A training has given back what it had by the time that its error is looked at.
    return Shortage(BESIDE, total, max(0, free - (most - now)), most, 0)


def look(device: int) -> tuple[int, int]:
    """(free, total) bytes of a GPU by its place among the visible ones; none is free where a process cannot even begin."""
    import torch

    try:
        return torch.cuda.mem_get_info(device)
    except RuntimeError as error:
        if "out of memory" not in str(error):
            raise
        return 0, int(torch.cuda.get_device_properties(device).total_memory)


def holders(device: int) -> str:
    """The other processes that hold memory of a GPU, where the driver's Python library (nvidia-ml-py) is there to ask."""
    import torch

    try:
        said = torch.cuda.list_gpu_processes(device)
    except Exception as error:  # of the driver's library; only names are lost
        return f"who they are is not known: {type(error).__name__}"
    found = re.findall(r"process +(\d+) uses +([\d.]+) MB", said)
    return ", ".join(
        f"process {number} {float(size) / 1024:.1f} GiB"
        for number, size in found
        if int(number) != os.getpid()
    )


def gib(size: float) -> str:
    """Bytes in GiB, for people."""
    return f"{size / GIB:.1f}"
