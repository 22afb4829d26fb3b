"""Files as this program writes them: complete or absent, and never over what it did not write. The cache."""

import contextlib
import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

MANIFEST = "manifest.json"  # in each folder of the cache and in each checkpoint: size and SHA-256 of what it holds
MUCH = 2**28  # bytes, which are read in about a second
RECENT = 5  # seconds
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)  # what a write says that finds no space

# What a run writes of a model, of an adapter and of a tokenizer: in its folder, in adapter/ and in target_tokenizer/.
VOCABULARY = (  # one of them holds the tokens
    *("tokenizer.json", "vocab.json", "vocab.txt", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model"),
    "*.spm",
)
BENCHMARKS = ".eval_results"  # a folder in it: results of benchmarks, as the Hub collects them
CODE = "recurrent.py"  # that a recurrent model carries
MODEL = (
    *("config.json", "generation_config.json", "model*.safetensors", "model.safetensors.index.json", CODE),
    *("adapter_config.json", "adapter_model.safetensors", "adapted_config.json"),
    *("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja"),
    *("merges.txt", "bpe.codes", *VOCABULARY),
)


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
    aside = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        with naming(path), aside.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if path.exists():
            shutil.copymode(path, aside)
        os.replace(aside, path)
        sync(path.parent)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """A disk that is full while a file is written refuses without a name: it is given this one."""
    try:
        yield
    except OSError as error:
        if full_disk(error) and error.filename is None:
            error.filename = str(path)
        raise


@contextlib.contextmanager
def new_folder(folder: Path, option: str) -> Iterator[Path]:
    """A folder aside to write into, which becomes `folder` at the end of the block; on an error nothing is left.

    Raises FileExistsError, which names what the user changes (`option`), where `folder` holds anything.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} exists; choose another {option}, or remove it first.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        aside.chmod(0o755)
        yield aside
        if folder.exists():
            folder.rmdir()  # empty
        os.replace(aside, folder)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise


def fingerprint(path: Path) -> dict[str, Any]:
    """Size and SHA-256 of a file, as report.json has them."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return {"bytes": file.tell(), "sha256": digest}


def hash_text(text: str) -> bytes:
    """The 16 bytes by which a text is known; a lone surrogate counts as well."""
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def hash_contents(files: Iterable[tuple[str, Path]]) -> str:
    """One hash of files, each under a name: the same files and names give the same. Raises OSError."""
    digest = hashlib.blake2b(digest_size=16)
    for name, path in files:
        digest.update(f"{name}\0".encode())
        with path.open("rb") as file:
            while data := file.read(2**22):
                digest.update(data)
    return digest.hexdigest()


def hash_contents_once(files: Iterable[tuple[str, Path]]) -> str:
    """As `hash_contents`; that of MUCH is kept in the cache while no file changes in size or time, and not read again.

    A file that was written in the last seconds may be written again without a sign of it: then nothing is kept.
    """
    files, started = list(files), time.time()
    state = [(name, str(path.resolve()), (s := path.stat()).st_size, s.st_mtime_ns) for name, path in files]
    if sum(size for *_, size, _ in state) < MUCH:
        return hash_contents(files)
    kept = default_cache() / "hashes" / hash_text(repr(state)).hex()
    with contextlib.suppress(OSError):
        return kept.read_text(encoding="utf-8")
    content = hash_contents(files)
    same = all(path.stat().st_mtime_ns == changed for (*_, changed), (_, path) in zip(state, files, strict=True))
    if same and max(changed for *_, changed in state) / 1e9 < started - RECENT:
        with contextlib.suppress(OSError):  # a full disk costs the next run a second reading
            kept.parent.mkdir(parents=True, exist_ok=True)
            write_whole(kept, content)
    return content


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


def fill_cache(folder: Path, write: Callable[[Path], object]) -> None:
    """Make sure that `folder`, of a cache, holds what `write(folder)` wrote into it.

    Its manifest records the size and SHA-256 of each file. Every call reads all files, which finds any flipped bit
    and takes 0.6 s of CPU per GB (half a billion tokens) on a processor with SHA instructions, about 2 s on one
    without. What does not verify is reported in one line and written again.

    `write` gets a folder aside, which is synced and renamed; it writes plain files, no folders. Of processes that fill
    one cache at once one writes and the others wait for it, however long it takes and without a collective, whose
    timeout would end them. A folder aside is locked as long as its process lives; those of killed runs are removed.
    Where a file system has no locks nobody waits: each process writes its own, and the first is kept. Raises OSError
    in one line where the disk is full or the cache's folder cannot be made, and what `write` raises.
    """
    if not damage(folder):
        return
    parent, aside = folder.parent, folder.parent / f".aside-{folder.name}-{secrets.token_hex(8)}"
    try:
        parent.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as until_renamed:
            while True:
                with locked(parent):
                    if folder.exists():
                        if not (what := damage(folder)):
                            return
                        print(f"the cache {folder} is damaged ({what}): it is made again", file=sys.stderr)
                        shutil.rmtree(folder)
                    writers = _clear_leftovers(parent, of=folder.name)
                    if not writers:
                        aside.mkdir()
                        until_renamed.enter_context(locked(aside / MANIFEST))
                        break
                with contextlib.suppress(OSError), locked(writers[0] / MANIFEST):
                    pass  # until that process has renamed its folder, or has ended
            write(aside)
            write_manifest(aside)
            for path in (*aside.iterdir(), aside):
                sync(path)
            with locked(parent):
                if damage(folder):  # else another process was faster
                    shutil.rmtree(folder, ignore_errors=True)
                    os.replace(aside, folder)
                    sync(parent)
    except Exception as error:
        if isinstance(error, OSError) and not parent.is_dir() and not full_disk(error):
            said = f"cannot make the cache {parent} ({error.strerror}): set HF_HOME to a folder that can be written."
            raise OSError(said) from error
        if not (reason := full_disk(error)):
            raise
        raise OSError(
            f"cannot write the cache {parent} ({reason}): free some space there, or set HF_HOME to a folder on "
            "another disk, and start again."
        ) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _clear_leftovers(parent: Path, *, of: str) -> list[Path]:
    """Remove what killed runs left aside in a folder of caches; returns what live processes write of cache `of`."""
    writers = []
    for leftover in parent.glob(".aside-*"):
        try:
            with locked(leftover / MANIFEST, wait=False):
                shutil.rmtree(leftover)
        except BlockingIOError:
            writers += [leftover] if leftover.name.startswith(f".aside-{of}-") else []
        except OSError:  # without locks nobody knows
            pass
    return writers


def full_disk(error: Exception) -> str:
    """The system's words where an error, of any library, is that of a disk that is full or read-only; "" elsewhere."""
    number = getattr(error, "errno", None)
    if number is None and (match := re.search(r"\(os error (\d+)\)", str(error))):  # safetensors, tokenizers
        number = int(match[1])
    if number is None and re.search("No space left|requested and|PytorchStreamWriter|unexpected pos", str(error)):
        number = errno.ENOSPC  # numpy, torch
    return os.strerror(number) if number in FULL else ""


def write_manifest(folder: Path) -> None:
    """Record the size and SHA-256 of each file in a folder and below it. Called when all of them are written."""
    files = [path for path in folder.rglob("*") if path.is_file() and path != folder / MANIFEST]
    prints = fingerprints(folder, [path.relative_to(folder).as_posix() for path in files])
    (folder / MANIFEST).write_text(json.dumps(prints, indent=1))


def damage(folder: Path) -> str:
    """What of a folder is not as its manifest records it; "" where all is. Reads every file."""
    try:
        recorded = json.loads((folder / MANIFEST).read_bytes())
        found = fingerprints(folder, list(recorded))
        changed = [name for name in recorded if recorded[name] != found[name]]
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except (OSError, ValueError, TypeError):
        return f"{MANIFEST} cannot be read"
    return f"{changed[0]} is not as it was written" if changed else ""


@contextlib.contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[None]:
    """Hold the lock of a folder, or of a file, which is made where it is absent. A process that ends releases it.

    Without `wait`, raises OSError where another holds it. A system without such locks is taken for one process.
    """
    if fcntl is None:
        if not wait:
            raise OSError(f"nobody knows who uses {path}")
        yield
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR | os.O_CREAT, 0o666)
    try:
        with contextlib.suppress(OSError) if wait else contextlib.nullcontext():
            fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def held(path: Path) -> Iterator[None]:
    """Hold a file, which is made and removed again, as the only process; one that ends in any way releases it.

    Raises BlockingIOError where another holds it, which `holder` names. Does nothing where a system has no such locks.
    """
    if fcntl is None:
        yield
        return
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder, and this program needs a file of that name: move it.")
    owner, descriptor = os.getpid(), os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise
    except OSError:  # a file system without locks
        pass
    _held.add(descriptor)
    try:
        with contextlib.suppress(OSError):  # a full disk
            os.ftruncate(descriptor, 0)
            os.write(descriptor, f"process {owner} on {socket.gethostname()}".encode())
        yield
    finally:
        if os.getpid() == owner:
            path.unlink(missing_ok=True)
            os.close(descriptor)
            _held.discard(descriptor)


def holder(path: Path) -> str:
    """Which process holds a file through `held`, in words; "" where none does."""
    if fcntl is None or not path.is_file():
        return ""
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return file.read(200).decode(errors="replace") or "another process"
        except OSError:  # a file system without locks
            return ""
    return ""


_held: set[int] = set()  # descriptors: a forked process that kept one would hold the file after its parent's end


def _release_in_child() -> None:
    for descriptor in _held:
        with contextlib.suppress(OSError):
            os.close(descriptor)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_release_in_child)


def fingerprints(folder: str | Path, names: list[str]) -> dict[str, dict[str, Any]]:
    """Size and SHA-256 of files, by their paths in a folder, as report.json has them."""
    return {name: fingerprint(Path(folder) / name) for name in sorted(names)}


def sync(path: Path) -> None:
    """Bring a file or a folder's entries to the disk, so that what is renamed next survives a power cut."""
    if os.name == "nt":  # which syncs neither through a descriptor that only reads
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
