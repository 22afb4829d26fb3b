"""The pipelines summarization, translation and text2text-generation: a text for a text."""

import copy
import inspect
import re
from collections.abc import Iterable
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, GenerationConfig

from hf_lm.evaluation.completions import generate_ids
from hf_lm.inference.pipeline_base import BasePipeline
from hf_lm.models.configuration import context_length
from hf_lm.models.target_tokenizer import target_tokenizer
from hf_lm.tokenization.languages import language_code, language_written
from hf_lm.tokenization.tokenizer import encode_documents, special_tokens_around

KEYS = {"summarization": "summary", "translation": "translation", "text2text-generation": "generated"}
TRANSLATION = re.compile(r"translation_([^_]+)_to_([^_]+)")
NUM_BEAMS, MAX_NEW_TOKENS = 4, 256  # of transformers 4, where neither the call nor the checkpoint says


class TextToTextPipeline(BasePipeline):
    """`summarization`, `translation`, `translation_xx_to_yy` and `text2text-generation`: a text for a text.

    Called with a text, a list or an iterable of them, and options of `generate`. A text gives a list of dicts with
    `summary_text`, `translation_text` or `generated_text`, one for each of `num_return_sequences`; a list gives a dict
    per text, or a list of them where there are several; anything else that can be iterated gives an iterator of lists.
    """

    auto_classes = {  # noqa: RUF012
        "decoder": AutoModelForCausalLM,
        "encoder-decoder": AutoModelForSeq2SeqLM,
        "encoder": AutoModelForSeq2SeqLM,
    }

    def __init__(self, task: str, *args: Any, **options: Any) -> None:
        self.key = KEYS[task.split("_")[0]]
        super().__init__(task, *args, **options)
        model, known = self.model, self.known
        directions = [name for name in known if TRANSLATION.fullmatch(name)]
        if task == "translation" and task not in known and directions:  # T5: as transformers 4 chose
            self.task = directions[0]
        self.settings = known.get(self.task) or known.get(self.task.split("_")[0], {})  # as T5 and our runs save them
        self.languages = tuple(getattr(self.tokenizer, side, None) for side in ("src_lang", "tgt_lang"))
        self.generation_config = copy.deepcopy(model.generation_config)
        self.generation_config.update(**self.settings)  # which knows no prefix, and leaves it out
        if self.generation_config.num_beams is None:
            self.generation_config.num_beams = NUM_BEAMS
        if self.generation_config.max_new_tokens is None and self.generation_config.max_length in (None, 20):
            positions = context_length(model.config, written=True) or 10**6
            self.generation_config.max_new_tokens = min(MAX_NEW_TOKENS, positions // 2 if self.causal else positions)

    def __call__(self, inputs: str | Iterable[str], **options: Any) -> Any:
        options = self._options(options)
        if isinstance(inputs, str):
            return self._together([inputs], **options)[0]
        if not isinstance(inputs, (list, tuple)):
            return self._stream(iter(inputs), options)
        answers = self._together(list(inputs), **options)
        return [answer[0] for answer in answers] if all(len(answer) == 1 for answer in answers) else answers

    def option_names(self) -> set[str]:
        """Those of this pipeline, of `generate` and of the model."""
        names = super().option_names() | {"tokenizer", "assistant_tokenizer"} | vars(GenerationConfig()).keys()
        methods = (self.model.generate, self.model.forward)
        return names.union(*(inspect.signature(method).parameters for method in methods))

    def max_source_length(self) -> int:
        """Tokens of a text that the model reads; a longer one is truncated, as in the training of the model."""
        special, (prefix, cue) = special_tokens_around(self.tokenizer, causal=self.causal), self._prefix_and_cue()
        most = positions = context_length(self.model.config) or 10**6
        if self.causal:
            most -= len(cue) + (self.generation_config.max_new_tokens or positions // 2)
        most = min(most, self.settings.get("max_source_length") or most)
        return max(0, most - len(special.before) - len(prefix) - len(special.after))

    def _prefix_and_cue(self) -> tuple[list[int], list[int]]:
        """Tokens before a text, and between it and the answer of a decoder."""
        prefix, cue = (self.settings.get(name) or "" for name in ("prefix", "cue"))
        before, between = encode_documents(self.tokenizer, [prefix, cue if self.causal else ""])
        return before, between

    def _set_languages(self, source: str | None, target: str | None) -> dict[str, int]:
        """Set the languages of a multilingual tokenizer; returns the options of `generate` for them."""
        tokenizer = self.tokenizer
        if self.key != "translation" and (source or target):
            raise ValueError(f"{self.task} has no options src_lang and tgt_lang.")
        if self.key != "translation" or not hasattr(tokenizer, "tgt_lang"):
            return {}  # as in transformers 4: no effect on a model of one pair
        if (source is None) != (target is None):
            raise ValueError(f"{self.task}: give both src_lang and tgt_lang.")
        if source is None and (named := TRANSLATION.fullmatch(self.task)):
            source, target = named.groups()
        if source is None or target is None:
            if self.languages[1] is None and self.generation_config.forced_bos_token_id is None:
                name = tokenizer.name_or_path or "the tokenizer"
                raise ValueError(f"{self.task}: {name} has many languages: give src_lang and tgt_lang.")
            for side, language in zip(("src_lang", "tgt_lang"), self.languages, strict=True):
                setattr(tokenizer, side, language or getattr(tokenizer, side))  # an earlier call may have set another
            return {}
        tokenizer.src_lang = language_code(tokenizer, source, option="src_lang")
        tokenizer.tgt_lang = language_code(tokenizer, target, option="tgt_lang")
        language, opens = language_written(tokenizer) or (None, True)
        if language is None:
            return {}
        return {"forced_bos_token_id": language} if opens else {"decoder_start_token_id": language}

    @torch.no_grad()
    def _together(
        self,
        inputs: list[str],
        *,
        batch_size: int | None = None,
        return_tensors: bool = False,
        clean_up_tokenization_spaces: bool | None = None,  # None asks the tokenizer
        stop_sequence: str | None = None,
        src_lang: str | None = None,
        tgt_lang: str | None = None,
        **options: Any,
    ) -> list[list[dict[str, Any]]]:
        for text in inputs:
            if not isinstance(text, str):
                raise TypeError(f"{self.task}: an input is a {type(text).__name__}; give texts.")
        target = target_tokenizer(self.tokenizer)
        if stop_sequence:
            options |= {"stop_strings": stop_sequence, "tokenizer": target}
        options |= self._set_languages(src_lang, tgt_lang)
        config = copy.deepcopy(options.pop("generation_config", None) or self.generation_config)
        if options.get("max_length") and not options.get("max_new_tokens"):
            options["max_new_tokens"] = None  # the call before the checkpoint
        arguments = config.update(**options)  # those of `generate` that are no settings
        decoding = {"skip_special_tokens": True, "clean_up_tokenization_spaces": clean_up_tokenization_spaces}
        special, (prefix, cue) = special_tokens_around(self.tokenizer, causal=self.causal), self._prefix_and_cue()
        longest = self.max_source_length()
        prompts = [
            [*special.before, *prefix, *ids[:longest], *cue, *special.after]
            for ids in encode_documents(self.tokenizer, inputs)
        ]
        sequences = generate_ids(
            self.model,
            prompts,
            pad_id=self.pad_id,
            options=lambda rows, inputs: {"generation_config": config, **arguments},
            max_rows=batch_size or self.batch_size,
            description=self.task,
        )
        if return_tensors:
            return [[{f"{self.key}_token_ids": torch.tensor(ids)} for ids in some] for some in sequences]
        texts = [target.batch_decode(some, **decoding) for some in sequences]
        return [[{f"{self.key}_text": text.strip()} for text in some] for some in texts]
