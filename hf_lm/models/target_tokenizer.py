"""The tokenizer of what is written, where it is another than that of what is read: BERT reads, a GPT-2 writes.

It hangs on the one that reads, so that whoever holds that one has both, and lies in a folder inside a model's own:

    AutoTokenizer.from_pretrained(folder)                                # of what is read
    AutoTokenizer.from_pretrained(folder, subfolder="target_tokenizer")  # of what is written
"""

from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils import cached_file

from hf_lm.models.configuration import ABSENT_IS_NONE

TARGET = "target_tokenizer"


def written_by(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """The tokenizer whose tokens are written: the second one, or the only one."""
    second = getattr(tokenizer, TARGET, None)
    return tokenizer if second is None else second


def writes_apart(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether another tokenizer writes than the one that reads."""
    return written_by(tokenizer) is not tokenizer


def set_target(tokenizer: PreTrainedTokenizerBase, target: PreTrainedTokenizerBase) -> None:
    setattr(tokenizer, TARGET, target)


def decode_targets(tokenizer: PreTrainedTokenizerBase, ids: Any) -> list[str]:
    """The texts that a model wrote as rows of ids, without special tokens."""
    return written_by(tokenizer).batch_decode(ids, skip_special_tokens=True)


def find_target(tokenizer: PreTrainedTokenizerBase, name_or_path: str | Path) -> None:
    """Hang on a tokenizer the one that a folder, or a name on the Hub, has for what is written, if it has one."""
    try:
        found = cached_file(str(name_or_path), "tokenizer_config.json", subfolder=TARGET, **ABSENT_IS_NONE)
    except OSError:  # a folder that is no longer there
        return
    if found:
        set_target(tokenizer, AutoTokenizer.from_pretrained(name_or_path, subfolder=TARGET, trust_remote_code=False))


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: str | Path) -> None:
    """Write a tokenizer, and the one of what is written, where both are looked for."""
    tokenizer.save_pretrained(folder)
    if writes_apart(tokenizer):
        written_by(tokenizer).save_pretrained(Path(folder) / TARGET)
