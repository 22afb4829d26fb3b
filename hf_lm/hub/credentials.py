"""Text that is safe to print: without tokens, keys and passwords, and without control characters."""

import os
import re
import sys
import traceback
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType

SECRETS = {
    "a Hugging Face token": r"hf_[A-Za-z0-9]{30,}",
    "an OpenAI key": r"sk-[A-Za-z0-9_-]{32,}",
    "a GitHub token": r"(?:gh[pousr]_[A-Za-z0-9]{36,}|github_pat_\w{40,})",
    "an AWS key": r"AKIA[0-9A-Z]{16}\b",
    "a Google key": r"AIza[0-9A-Za-z_-]{35}",
    "a Slack token": r"xox[abprs]-[0-9A-Za-z-]{20,}",
    "a web token": r"eyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{10,}",
    "a private key": r"-----BEGIN [A-Z ]*PRIVATE KEY-----",
    "a password in an address": r"(?<=://)[^\s/:@]+:[^\s/@]+(?=@)",
}
START = r"(?<![A-Za-z0-9])"  # a Chinese character may precede
SECRET = rf"{START}(?:{'|'.join(SECRETS.values())})"
# Control characters move the cursor and colour the screen, bidi controls reorder a line, surrogates cannot be encoded.
CONTROLS = {i: 0x2400 + i for i in range(32) if chr(i) not in "\n\t"} | {0x7F: 0x2421}
CONTROLS |= dict.fromkeys((*range(0x80, 0xA0), *range(0x2028, 0x202F), *range(0x2066, 0x206A)), 0xFFFD)
CONTROLS |= dict.fromkeys(range(0xD800, 0xE000), 0xFFFD)
LONGEST = 480  # characters of an error
# What gloo and NCCL raise where another process has ended.
ENDED = re.compile(
    r"Connection (reset|closed) by peer|Socket closed|remote process exited|NCCL communicator was aborted"
)
TEXT = (".json", ".jsonl", ".md", ".yaml", ".yml", ".txt", ".jinja", ".py", ".log", ".csv", ".tsv")


def find_secrets(folder: Path, files: Iterable[Path], *, known: str = "") -> list[str]:
    """Where files hold what looks like a secret, or `known`: `name:line (kind)`, never the secret itself."""
    places = []
    patterns = {kind: START + pattern for kind, pattern in SECRETS.items()}
    patterns |= {"the Hub token of this machine": re.escape(known)} if known else {}
    for path in files:
        if path.suffix not in TEXT:
            continue
        with path.open(encoding="utf-8", errors="replace") as file:
            for number, line in enumerate(file, 1):
                for kind, pattern in patterns.items():
                    if re.search(pattern, line):
                        places.append(f"{path.relative_to(folder)}:{number} ({kind})")
    return places


def names_secret(option: str) -> bool:
    """Whether an option's value is not for others to see: hub_token, --api-key."""
    return bool(re.search(r"(?:^|[_-])(?:token|key|password|secret)$", option, re.IGNORECASE))


def masked_arguments(arguments: Sequence[str]) -> list[str]:
    """A command's arguments with *** for the values of options such as --hub_token."""
    values = set(_values(arguments))
    return [
        f"{token.partition('=')[0]}=***" if token.partition("=")[2] in values else "***" if token in values else token
        for token in arguments
    ]


def printable(text: str) -> str:
    """Text of data or a model, inert in a terminal: controls become visible characters; line ends and tabs stay."""
    return text.translate(CONTROLS)


def masked(text: str) -> str:
    """`printable` text without what looks like a secret, and the values of such options and environment variables."""
    of_environment = (value for name, value in os.environ.items() if names_secret(name) and len(value) >= 16)
    known = {*_values(sys.argv[1:]), *of_environment, os.environ.get("HF_TOKEN", "")} - {""}
    patterns = [*map(re.escape, sorted(known, key=len, reverse=True)), SECRET]
    return re.sub("|".join(patterns), "***", printable(text))


def error_line(error: BaseException) -> str:
    """An error as a `masked` line of at most 480 characters; an unexpected one with its type and place."""
    text = " ".join(str(error).split()) or type(error).__name__
    if not isinstance(error, ValueError | OSError | FloatingPointError | ImportError):
        frames = traceback.extract_tb(error.__traceback__)
        place = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
        text = f"{type(error).__name__}: {text[: LONGEST - 100]}{place}"
    text = masked(text)
    end = LONGEST // 3  # what to do is often said last
    return text if len(text) <= LONGEST else f"{text[: LONGEST - end - 3]} … {text[-end:]}"


def masked_traceback(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Python's own traceback, as an excepthook, without secrets."""
    print(masked("".join(traceback.format_exception(kind, error, trace))), end="", file=sys.stderr)


def report_errors(debug: bool) -> None:
    """From now on an uncaught error is one line on stderr and exit code 1; with debug, Python's own traceback."""
    sys.excepthook = masked_traceback if debug else _one_line


def _one_line(kind: type[BaseException], error: BaseException, trace: object) -> None:
    rank = int(os.environ.get("RANK", "0"))
    prefix = f"[process {rank}] " if rank else ""
    if issubclass(kind, KeyboardInterrupt):
        print(f"\n{prefix}interrupted", file=sys.stderr)
        return
    if issubclass(kind, RuntimeError) and int(os.environ.get("WORLD_SIZE", "1")) > 1 and ENDED.search(str(error)):
        print(f"{prefix}error: another process ended first: see what it said  (--debug shows more)", file=sys.stderr)
        return
    print(f"{prefix}error: {error_line(error)}  (--debug shows the traceback)", file=sys.stderr)


def _values(arguments: Sequence[str]) -> Iterator[str]:
    for token, following in zip(arguments, [*arguments[1:], ""], strict=False):
        option, mark, value = token.partition("=")
        if option.startswith("--") and names_secret(option) and (value or not following.startswith("--")):
            yield value if mark else following
