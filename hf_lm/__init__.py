"""hf_lm: the shortest honest way from text to a published language model."""

import logging
from typing import TYPE_CHECKING

from hf_lm.version import __version__

if TYPE_CHECKING:
    from hf_lm.inference.pipelines import pipeline

__all__ = ["__version__", "pipeline"]

# Where bitsandbytes is installed, transformers imports it through peft. It then warns of kernels it lacks, and
# later at every forward that it rounds activations. Quantized or not, this must be set before that import.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


def __getattr__(name: str):
    if name == "pipeline":  # imported when asked for: it brings torch and transformers
        from hf_lm.inference.pipelines import pipeline

        return pipeline
    raise AttributeError(f"module 'hf_lm' has no attribute {name!r}")
