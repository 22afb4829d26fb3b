"""Files as this program writes them: complete or absent, and never over what it did not write."""

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

# What a run writes of a model, of an adapter and of a tokenizer: in its folder, in adapter/ and in target_tokenizer/.
VOCABULARY = (  # one of them holds the tokens
    *("tokenizer.json", "vocab.json", "vocab.txt", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model"),
    "*.spm",
)
CODE = "recurrent.py"  # that a recurrent model carries
MODEL = (
    *("config.json", "generation_config.json", "model*.safetensors", "model.safetensors.index.json", CODE),
    *("adapter_config.json", "adapter_model.safetensors", "adapted_config.json"),
    *("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja"),
    *("merges.txt", "bpe.codes", *VOCABULARY),
)


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


def fingerprint(path: Path) -> dict[str, Any]:
    """Size and SHA-256 of a file, as report.json has them."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return {"bytes": file.tell(), "sha256": digest}


def hash_contents(files: Iterable[tuple[str, Path]]) -> str:
    """One hash of files, each under a name: the same files and names give the same. Raises OSError."""
    digest = hashlib.blake2b(digest_size=16)
    for name, path in files:
        digest.update(f"{name}\0".encode())
        with path.open("rb") as file:
            while data := file.read(2**22):
                digest.update(data)
    return digest.hexdigest()


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
