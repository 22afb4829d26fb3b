"""hf_lm: the shortest honest way from text to a published language model."""

from hf_lm.version import __version__

__all__ = ["__version__", "pipeline"]


def __getattr__(name: str):
    if name == "pipeline":  # imported when asked for: it brings torch and transformers
        from hf_lm.pipelines import pipeline

        return pipeline
    raise AttributeError(f"module 'hf_lm' has no attribute {name!r}")
