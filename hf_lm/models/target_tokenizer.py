"""The tokenizer of what is written, where it is another than that of what is read: BERT reads, a GPT-2 writes.

It hangs on the one that reads, so that whoever holds that one has both, and lies in a folder inside a model's own:

    AutoTokenizer.from_pretrained(folder)                                # of what is read
    AutoTokenizer.from_pretrained(folder, subfolder="target_tokenizer")  # of what is written
"""

import json
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils import cached_file

from hf_lm.models.configuration import ABSENT_IS_NONE

TARGET = "target_tokenizer"


def target_tokenizer(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """The tokenizer whose tokens are written: the second one, or the only one."""
    second = getattr(tokenizer, TARGET, None)
    return tokenizer if second is None else second


def has_target_tokenizer(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether another tokenizer writes than the one that reads."""
    return target_tokenizer(tokenizer) is not tokenizer


def set_target(tokenizer: PreTrainedTokenizerBase, target: PreTrainedTokenizerBase) -> None:
    setattr(tokenizer, TARGET, target)


def decode_targets(tokenizer: PreTrainedTokenizerBase, ids: Any) -> list[str]:
    """The texts that a model wrote as rows of ids, without special tokens."""
    return target_tokenizer(tokenizer).batch_decode(ids, skip_special_tokens=True)


def find_target(tokenizer: PreTrainedTokenizerBase, name_or_path: str | Path) -> None:
    """Hang on a tokenizer the one that a folder, or a name on the Hub, has for what is written, if it has one."""
    try:
        found = cached_file(str(name_or_path), "tokenizer_config.json", subfolder=TARGET, **ABSENT_IS_NONE)
    except OSError:  # a folder that is no longer there
        return
    if found:
        set_target(tokenizer, AutoTokenizer.from_pretrained(name_or_path, subfolder=TARGET, trust_remote_code=False))


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: str | Path) -> None:
    """Save a tokenizer and its target tokenizer, in the names that transformers 4 and 5 both read."""
    tokenizer.save_pretrained(folder)
    path = Path(folder) / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    if config["tokenizer_class"] == "TokenizersBackend":
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(config.get("extra_special_tokens"), list):
        config["additional_special_tokens"] = config.pop("extra_special_tokens")
    path.write_text(json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
    if has_target_tokenizer(tokenizer):
        save_tokenizer(target_tokenizer(tokenizer), Path(folder) / TARGET)
