"""Where tokenizers, token streams and the demo's text are kept between runs."""

from pathlib import Path


def default_cache() -> Path:
    """A folder under Hugging Face's own home (HF_HOME)."""
    from huggingface_hub import constants

    return Path(constants.HF_HOME) / "hf_lm"
