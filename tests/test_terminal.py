"""A real terminal: what a person types and sees, Ctrl-C among it."""

import os
import pty
import select
import subprocess
import sys
import time

import pytest

from hf_lm.models.gpt2 import new_gpt2


class Terminal:
    """A command on a terminal of its own."""

    def __init__(self, *command: str) -> None:
        self.own, theirs = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "hf_lm.cli", *command],
            stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True, close_fds=True,
            preexec_fn=lambda: __import__("fcntl").ioctl(0, __import__("termios").TIOCSCTTY, 0),
        )  # fmt: skip
        os.close(theirs)
        self.seen = ""

    def until(self, words: str, seconds: float = 200) -> str:
        """What was shown up to these words."""
        end = time.monotonic() + seconds
        while words not in self.seen:
            assert time.monotonic() < end, f"no {words!r} in {self.seen!r}"
            if select.select([self.own], [], [], 0.2)[0]:
                try:
                    self.seen += os.read(self.own, 2**16).decode(errors="replace")
                except OSError:  # the other side is closed
                    assert words in self.seen, f"no {words!r} in {self.seen!r}"
        found, self.seen = self.seen.split(words, 1)
        return found + words

    def type(self, text: str) -> None:
        os.write(self.own, text.encode())


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_chat_on_a_terminal(tokenizer, tmp_path):
    new_gpt2(tokenizer, n_layer=1, n_head=1, n_embd=16, block_size=128).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    chat = Terminal("chat", str(tmp_path), "--template", "plain", "--max_new_tokens", "4")
    try:
        chat.until("/quit leaves")
        chat.until("> ")
        chat.type("春眠\n")
        chat.until("春眠")
        chat.until("> ")
        chat.type("/undo\n")
        chat.until("(removed: 春眠)")
        chat.until("> ")
        chat.type("\x03")
        chat.until("Ctrl-C once more leaves")
        chat.until("> ")
        chat.type("\x03")
        assert chat.process.wait(timeout=200) == 130
        assert "Traceback" not in chat.seen
    finally:
        chat.process.kill()
        chat.process.wait()
        os.close(chat.own)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_ctrl_c_in_a_text_that_is_written_ends_the_command(tokenizer, tmp_path):
    long = new_gpt2(tokenizer, n_layer=1, n_head=1, n_embd=16, block_size=4000)  # long enough to be interrupted
    long.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    writing = Terminal("generate", str(tmp_path), "The", "--max_new_tokens", "3900")
    try:
        writing.until("\033[1mThe\033[0m")
        writing.until(" ")
        writing.type("\x03")
        assert writing.process.wait(timeout=200) == 130
        while select.select([writing.own], [], [], 0.2)[0]:
            try:
                writing.seen += os.read(writing.own, 2**16).decode(errors="replace")
            except OSError:
                break
        assert "Traceback" not in writing.seen
        assert writing.seen.endswith("\n")  # the shell's prompt begins a line of its own
    finally:
        writing.process.kill()
        writing.process.wait()
        os.close(writing.own)
