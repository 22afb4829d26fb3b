"""An exported file is written aside and put in place when it has been compared with its folder."""

import os
import shlex
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from hf_lm.files import refuse_foreign, sync
from hf_lm.models.configuration import check_checkpoint, find_adapter

MARK = "hf_lm.version"  # the key in a file's metadata by which a file of ours is known


def check_places(folder: str, output: Path, *, ours: Callable[[Path], bool]) -> None:
    """Raise where the folder is not a complete model or the output cannot be written, before any work. In one line."""
    if find_adapter(folder):
        merge = shlex.join(["hf-lm", "merge", folder, "MERGED"])
        raise ValueError(f"{folder} is an adapter: merge it first ({merge}), and export MERGED.")
    check_checkpoint(folder)
    if not output.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {output.parent} for {output.name}: make it, or give --output.")
    refuse_foreign(output, ours=ours, option="--output")


@contextmanager
def placed(output: Path) -> Iterator[Path]:
    """A path aside to write to; what is there without an error at the end is renamed to `output`."""
    with tempfile.TemporaryDirectory(prefix=".exporting-", dir=output.parent) as aside:
        written = Path(aside) / output.name
        yield written
        sync(written)
        os.replace(written, output)
        sync(output.parent)
