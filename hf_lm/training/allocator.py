"""The C library's allocator, told to keep what a training step frees on a CPU."""

import contextlib
import ctypes
import sys

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # of mallopt(3)


def keep_freed_memory() -> None:
    """Let glibc keep freed memory for the next step, in this process, from now on.

    By default it gives blocks of some MB back to the kernel, which clears each page again when the next step asks for
    it: an eighth of the time of a small model's step (docs/experiments.md). Other C libraries stay as they are.
    """
    if not sys.platform.startswith("linux"):
        return
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        if not mallopt(MMAP_THRESHOLD, 2**30):
            mallopt(MMAP_THRESHOLD, 2**25)  # the most that older versions take
        mallopt(TRIM_THRESHOLD, 2**31 - 1)
