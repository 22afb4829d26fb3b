"""The target tokenizer, for models whose decoder uses a different tokenizer from their encoder (BERT and GPT-2).

It is stored as an attribute of the source tokenizer, so that one object carries both, and saved in a subfolder:

    AutoTokenizer.from_pretrained(folder)                                # source
    AutoTokenizer.from_pretrained(folder, subfolder="target_tokenizer")  # target
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils.hub import cached_file

from hf_lm.models.configuration import ABSENT_IS_NONE

TARGET = "target_tokenizer"


def target_tokenizer(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """The tokenizer of targets: the source tokenizer itself where it carries no other."""
    target = getattr(tokenizer, TARGET, None)
    return tokenizer if target is None else target


def has_target_tokenizer(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether targets have a tokenizer of their own."""
    return target_tokenizer(tokenizer) is not tokenizer


def set_target(tokenizer: PreTrainedTokenizerBase, target: PreTrainedTokenizerBase) -> None:
    """Give a source tokenizer its target tokenizer."""
    setattr(tokenizer, TARGET, target)


def decode_targets(tokenizer: PreTrainedTokenizerBase, ids: list[list[int]] | torch.Tensor) -> list[str]:
    """The texts of rows of target ids, without special tokens."""
    return target_tokenizer(tokenizer).batch_decode(ids, skip_special_tokens=True)


def find_target(tokenizer: PreTrainedTokenizerBase, name_or_path: str | Path) -> None:
    """Give a source tokenizer the target tokenizer of a folder or of a name on the Hub, if that has one."""
    try:
        file = cached_file(str(name_or_path), "tokenizer_config.json", subfolder=TARGET, **ABSENT_IS_NONE)
    except OSError:  # the folder has been removed
        return
    if file:
        set_target(tokenizer, AutoTokenizer.from_pretrained(name_or_path, subfolder=TARGET, trust_remote_code=False))


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """A hash of what a tokenizer and its target tokenizer do: tokens, rules, special tokens and chat template."""
    if tokenizer.is_fast:
        backend: Any = tokenizer.backend_tokenizer  # type: ignore[attr-defined]  # which a fast one has
        rules = json.loads(backend.to_str()) | {"padding": None, "truncation": None}  # as the last call had them
    else:
        rules = tokenizer.get_vocab()
    content = [
        rules,
        {key: str(value) for key, value in tokenizer.special_tokens_map.items()},
        tokenizer.chat_template,
    ]
    if has_target_tokenizer(tokenizer):
        content.append(tokenizer_fingerprint(target_tokenizer(tokenizer)))
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


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
