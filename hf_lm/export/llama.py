"""llama.cpp itself, where llama-cpp-python is installed: what it computes from an exported file."""

import contextlib
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

try:
    import llama_cpp  # pyright: ignore[reportMissingImports]  (an extra of its own: it is compiled for minutes)
except (ImportError, OSError, RuntimeError):  # of a library that was compiled for another machine
    llama_cpp = None


def installed() -> bool:
    """Whether llama-cpp-python is there and works on this machine."""
    return llama_cpp is not None


def compute(
    path: Path, text: Sequence[str], rows: Sequence[list[int]], *, positions: int
) -> tuple[list[list[int]], list[np.ndarray]]:
    """The ids of each text, without special tokens, and the logits (1, time, vocabulary) of each row of ids.

    Its cache is float32, as the file is; by default it would be float16.
    """
    assert llama_cpp is not None, "ask `installed` first"
    float32 = llama_cpp.GGML_TYPE_F32
    with contextlib.redirect_stderr(io.StringIO()):  # a warning of a context shorter than 256
        model = llama_cpp.Llama(
            str(path), n_ctx=positions, logits_all=True, verbose=False, type_k=float32, type_v=float32
        )
    ids = [model.tokenize(line.encode(), add_bos=False, special=False) for line in text]
    logits = []
    for row in rows:
        model.reset()
        model.eval(row)
        logits.append(model.scores[None, : len(row)].copy())
    model.close()
    return ids, logits
