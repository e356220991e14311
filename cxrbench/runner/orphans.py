"""Processes that end with the one that started them."""

import contextlib
import ctypes
import signal


def die_with_parent(kernel: ctypes.CDLL) -> None:
    """Ask the kernel to kill this process when the one that started it is gone; nothing trains on unseen."""
    set_death_signal = 1
    with contextlib.suppress(AttributeError):  # Linux alone has it
        kernel.prctl(set_death_signal, signal.SIGKILL)
