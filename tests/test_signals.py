"""A signal ends a program with its exit code and one line that says how to continue, wherever the program is."""

import os
import pty
import signal
import subprocess
import sys
import time

import pytest

START = "import sys, os, time, signal\nfrom hf_lm.signals import *\nend_on_signals()\nprint('ready', flush=True)\n"
WAIT = "time.sleep(60)\n"
DEAF = "import hashlib; hashlib.pbkdf2_hmac('sha256', b'', b'', 10**9)\n"  # does not come back to Python


def start(code, preexec_fn=lambda: None, **options):
    def before():
        for name in ("SIGINT", "SIGHUP"):  # which a shell's background and nohup ignore
            signal.signal(getattr(signal, name), signal.SIG_DFL)
        preexec_fn()

    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "preexec_fn": before} | options
    process = subprocess.Popen([sys.executable, "-c", code], **options)
    if process.stdout:
        assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_has_its_exit_code_and_one_line_that_says_how_to_continue(name):
    process = start(START + WAIT)
    process.send_signal(getattr(signal, name))
    _, error = process.communicate(timeout=60)
    assert process.returncode == 128 + getattr(signal, name)
    (line,) = error.split("\n")[1:-1]
    assert line.startswith(f"ended by {name}. Continue with the same command and --resume_from_checkpoint latest")


def test_a_main_thread_that_does_not_come_back_to_python_is_ended_too():
    process = start(START + DEAF)
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 143
    assert "ended by SIGTERM" in error


SWALLOWS = """
class Slow:
    def __del__(self):  # Python ignores what is raised in here
        time.sleep(5)
Slow()
time.sleep(5)
print('went on', flush=True)
"""


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_that_arrives_in_a_finalizer_ends_the_program_too(name):
    process = start(START + SWALLOWS)
    process.send_signal(getattr(signal, name))
    output, error = process.communicate(timeout=60)
    assert (process.returncode, output) == (128 + getattr(signal, name), "")
    assert [line[:8] for line in error.split("\n") if line] == ["ended by"]


def test_a_signal_in_a_finalizer_ends_a_main_thread_that_does_not_come_back_to_python():
    process = start(START + SWALLOWS.replace("time.sleep(5)\nprint('went on', flush=True)\n", DEAF))
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 143
    assert error.count("ended by SIGTERM") == 1


KEPT = "with end_afterwards():\n    os.kill(os.getpid(), signal.SIGTERM)\n    print('whole', flush=True)\n"


def test_a_signal_that_has_to_wait_ends_the_program_afterwards():
    # Not by `start`, which may read "whole" together with "ready", and communicate() would not see it.
    code = START + KEPT + "print('went on', flush=True)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (143, "ready\nwhole\n"), done.stderr
    assert [line[:8] for line in done.stderr.split("\n") if line] == ["ended by"]


def test_a_signal_does_not_wait_longer_than_the_patience_and_a_second_ends_at_once():
    long = KEPT.replace("print", "time.sleep(60); print")
    process = start(START + long)
    assert process.wait(timeout=30) == 143
    process = start(START + long)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=2) == -signal.SIGINT


def test_nohup_is_respected():
    process = start(
        START + "time.sleep(0.5)\nprint('went on')", preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)
    )
    process.send_signal(signal.SIGHUP)
    output, error = process.communicate(timeout=60)
    assert (output, error, process.returncode) == ("went on\n", "", 0)


def test_a_signal_to_a_forked_process_is_its_own():
    code = "child = os.fork()\nif not child:\n    time.sleep(60)\n"
    code += "time.sleep(0.2)\nos.kill(child, signal.SIGTERM)\nprint(os.waitpid(child, 0)[1])\ntime.sleep(PATIENCE + 1)"
    process = start(START + code)
    output, error = process.communicate(timeout=60)
    assert (output, error, process.returncode) == (f"{signal.SIGTERM.value}\n", "", 0)


def test_a_program_whose_terminal_is_closed_comes_to_its_end(tmp_path):
    ended = tmp_path / "ended"
    begin, ready = START.rsplit("print", 1)  # said within the try: a signal before it would end the program there
    code = f"{begin}try:\n    print{ready}    time.sleep(60)\nfinally:\n    time.sleep(0.3)\n"
    code += "    print('x' * 9999, flush=True)\n"
    main, terminal = pty.openpty()
    process = start(
        code + f"    open({str(ended)!r}, 'w').close()",
        stdin=terminal, stdout=None, stderr=None, start_new_session=True,
        preexec_fn=lambda: (__import__("fcntl").ioctl(terminal, __import__("termios").TIOCSCTTY, 0),
                            os.dup2(terminal, 1), os.dup2(terminal, 2)),
    )  # fmt: skip
    os.close(terminal)
    assert b"ready" in os.read(main, 100)
    os.close(main)
    assert process.wait(timeout=60) == 128 + signal.SIGHUP
    assert ended.exists()


@pytest.mark.parametrize(
    ("environment", "ends"),
    [
        ({"ACCELERATE_DYNAMO_USE_FULLGRAPH": "False"}, True),
        ({"TORCHELASTIC_RUN_ID": "1"}, True),
        ({"ACCELERATE_DYNAMO_USE_FULLGRAPH": "False", "HF_LM_IN_PLACE": "1"}, False),
        ({"ACCELERATE_MIXED_PRECISION": "no"}, False),  # which transformers sets in its own process
    ],
)
def test_a_program_ends_with_its_launcher_if_it_has_one(environment, ends):
    child = START + "end_with_launcher()\ntime.sleep(3)\nprint('went on', flush=True)\n"
    launcher = f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {child!r}])"
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("ACCELERATE", "TORCHELASTIC"))}
    process = start(launcher, env=clean | environment)
    time.sleep(0.3)
    process.kill()
    output, error = process.communicate(timeout=60)  # of the child, which holds the pipes
    assert ("ended by SIGTERM" in error, "went on" in output) == (ends, not ends)
