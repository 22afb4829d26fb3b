"""Signals that end a program: one line that says how to continue, and the exit code that shells know."""

import _thread
import contextlib
import os
import signal
import stat
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from types import FrameType
from typing import NoReturn

# SIGHUP: the terminal is closed. Windows has none.
ENDING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
PATIENCE = 3.0  # seconds that the main thread may take to notice a signal
BY_ACCELERATE = "ACCELERATE_DYNAMO_USE_FULLGRAPH"  # environment that only `accelerate launch` sets, always
IN_PLACE = "HF_LM_IN_PLACE"  # environment of a process that replaced its launcher: what started it is none

_ended = False  # whether `_end` received a signal
_kept: list[int] | None = None  # within `end_afterwards`, the signals received meanwhile


def endings() -> list[int]:
    """The signals that end this program: not those that whoever started it has switched off, as nohup does."""
    return [number for number in ENDING if signal.getsignal(number) is not signal.SIG_IGN]


def end_on_signals() -> None:
    """From now on SIGINT, SIGTERM and SIGHUP end the program with 128 + their number and one line; a second at once.

    Training, which saves a checkpoint first, has handlers of its own meanwhile (hf_lm.training.checkpoints). A main
    thread that does not come back to Python, as in a tokenizer's training, is ended from another. Processes that are
    forked have the handlers of before. Of several ranks the first does this; elsewhere than in a main thread nothing.
    """
    if threading.current_thread() is not threading.main_thread() or os.environ.get("RANK", "0") != "0":
        return
    before = {number: signal.signal(number, _end) for number in endings()}
    if _end in before.values():  # once is enough
        return
    if os.name == "posix":
        read, write = os.pipe()
        os.set_blocking(write, False)
        signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        threading.Thread(target=_end_if_deaf, args=(read,), daemon=True).start()

        def in_child() -> None:
            with contextlib.suppress(ValueError):
                signal.set_wakeup_fd(-1)
                for number, handler in before.items():
                    if signal.getsignal(number) is _end:
                        signal.signal(number, handler)

        os.register_at_fork(after_in_child=in_child)


@contextlib.contextmanager
def end_afterwards() -> Iterator[None]:
    """A signal that arrives meanwhile ends the program afterwards, or after PATIENCE seconds.

    For Python code that C++ calls: torch aborts where a fake tensor's or a dispatch mode's code raises SystemExit in
    some of the places from which it is called. Of a program without `end_on_signals` nothing changes.
    """
    global _kept
    if _kept is not None or threading.current_thread() is not threading.main_thread():
        yield
        return
    _kept = []
    try:
        yield
    finally:
        received, _kept = _kept, None
        for number in received:
            _end(number, None)


@contextlib.contextmanager
def time_limit(seconds: int, what: str) -> Iterator[None]:
    """Raise TimeoutError in what takes longer, also within a regular expression, which no thread can interrupt.

    There is no limit outside the main thread, and where there is no SIGALRM (Windows).
    """
    if not hasattr(signal, "SIGALRM") or threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> NoReturn:
        raise TimeoutError(f"{what} took more than {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def _end(number: int, frame: FrameType | None) -> None:
    global _ended
    for other in endings():
        signal.signal(other, signal.SIG_DFL)
    if _kept is not None:
        _kept.append(number)
        return
    _ended = True
    _report(number)
    sys.unraisablehook = partial(_end_again, number)
    raise SystemExit(128 + number)


def _end_again(number: int, ignored: "sys.UnraisableHookArgs") -> None:
    """End the program once more: the signal came within a finalizer, and Python ignores what is raised there."""
    if ignored.exc_type is not SystemExit or threading.current_thread() is not threading.main_thread():
        return sys.__unraisablehook__(ignored)

    left = threading.Event()

    def leave(*_: object) -> NoReturn:
        left.set()
        signal.signal(number, signal.SIG_DFL)
        raise SystemExit(128 + number)

    def interrupt() -> None:
        _thread.interrupt_main(signal.Signals(number))
        if not left.wait(PATIENCE):  # the main thread does not come back to Python
            os._exit(128 + number)

    signal.signal(number, leave)
    again = threading.Timer(0.1, interrupt)  # not in here: what is raised here is ignored too
    again.daemon = True
    again.start()


def _report(number: int) -> None:
    leave_closed_terminal()
    with contextlib.suppress(OSError):
        print(
            f"\nended by {signal.Signals(number).name}. Continue with the same command and --resume_from_checkpoint "
            "latest: it starts from the newest checkpoint, or from the beginning where there is none.",
            file=sys.stderr,
            flush=True,
        )


def _end_if_deaf(descriptor: int) -> None:
    while number := os.read(descriptor, 1):
        time.sleep(PATIENCE)
        if number[0] in ENDING and not _ended:
            _report(number[0])
            os._exit(128 + number[0])


def leave_closed_terminal() -> None:
    """Write to nothing where standard output or error is a terminal that is gone: each write would be an error."""
    for descriptor in (1, 2):
        with contextlib.suppress(OSError):
            if stat.S_ISCHR(os.fstat(descriptor).st_mode) and not os.isatty(descriptor):
                nothing = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nothing, descriptor)
                os.close(nothing)


def end_with_launcher() -> None:
    """Send this process SIGTERM once its launcher is gone: that of `accelerate launch` or torchrun, if it has one."""
    by_accelerate = BY_ACCELERATE in os.environ and IN_PLACE not in os.environ
    if os.name == "posix" and (by_accelerate or "TORCHELASTIC_RUN_ID" in os.environ):
        threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os.kill(os.getpid(), signal.SIGTERM)
