"""Files as this program writes them: complete or absent, and never over what it did not write. The cache's folder."""

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path


def default_cache() -> Path:
    """Where tokenizers, token streams and the demo's text are kept between runs, under Hugging Face's own home."""
    from huggingface_hub import constants

    return Path(constants.HF_HOME) / "hf_lm"


def write_whole(path: str | Path, content: str | bytes) -> None:
    """Write a file beside its place and rename it, so that a reader finds the old content or the new, never half.

    A device or a pipe (/dev/stdout) is written to as it is. Raises OSError, with nothing left behind and the old file
    unchanged, where it cannot be written.
    """
    path = Path(path)
    data = content.encode("utf-8") if isinstance(content, str) else content
    if not path.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {path.parent} for {path.name}.")
    if path.exists() and not path.is_file():
        path.write_bytes(data)
        return
    descriptor, aside = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(aside, path.stat().st_mode & 0o777 if path.exists() else 0o666 & ~_umask())
        os.replace(aside, path)
    except BaseException:
        Path(aside).unlink(missing_ok=True)
        raise


def refuse_foreign(path: str | Path, *, ours: Callable[[Path], bool], option: str) -> None:
    """Raise FileExistsError where a file is there that this program did not write, before any work is done for it.

    `ours` looks at the content of an existing file and returns whether this program wrote it; what it cannot read is
    not ours. A device or a pipe holds nothing that could be lost. `option` is what the user changes: `--output`.
    """
    path = Path(path)
    if not path.is_symlink() and not path.exists():
        return
    if path.exists() and not path.is_file() and not path.is_dir():
        return
    try:
        known = path.is_file() and not path.is_symlink() and ours(path)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError):
        known = False
    if not known:
        what = "is a folder" if path.is_dir() else "exists and was not written by this command"
        raise FileExistsError(f"{path} {what}: give another {option}, or move it.")


def json_with(*keys: str) -> Callable[[Path], bool]:
    """For `ours` of `refuse_foreign`: whether a file is a JSON object that has all of these keys."""

    def ours(path: Path) -> bool:
        content = json.loads(path.read_bytes())
        return isinstance(content, dict) and content.keys() >= set(keys)

    return ours


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
