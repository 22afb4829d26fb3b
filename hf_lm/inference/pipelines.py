"""`pipeline`: a drop-in for those that transformers 5 removed, with the calls and outputs they had in transformers 4.

    from hf_lm import pipeline                                     # instead of: from transformers import pipeline
    pipeline("question-answering", model="out/question_answering")(question="...", context="...")

Any other task goes through to `transformers.pipeline`; nothing of transformers is patched. `docs/pipeline.md` lists
the call forms, and where they differ.
"""

import copy
import difflib
import inspect
import math
import re
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from types import GeneratorType
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import RevisionNotFoundError
from torch.utils.data import Dataset
from transformers import (
    AutoModelForCausalLM,
    AutoModelForQuestionAnswering,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.pipelines import TASK_ALIASES

from hf_lm.data.batches import map_by_length, pad_batch
from hf_lm.models.adapters import load_merged
from hf_lm.models.configuration import check_checkpoint, context_length, family, find_adapter, load_config, unreachable
from hf_lm.models.loading import load_weights, load_with_head
from hf_lm.models.target_tokenizer import find_target, has_target_tokenizer, target_tokenizer
from hf_lm.tasks.question_answering import EncodedWindows, windows_of
from hf_lm.tasks.spans import top_spans
from hf_lm.tokenization.languages import language_code, language_written
from hf_lm.tokenization.tokenizer import encode_documents, load_tokenizer, set_pad, special_tokens_around

Row = dict[str, str]

# Heads that transformers would put on any checkpoint, never trained; these pipelines are its own.
HEADS = {
    "text-classification": AutoModelForSequenceClassification,
    "token-classification": AutoModelForTokenClassification,
}
KEYS = {"summarization": "summary", "translation": "translation", "text2text-generation": "generated"}
TRANSLATION = re.compile(r"translation_([^_]+)_to_([^_]+)")
AT_ONCE = 256  # inputs of a stream that are read ahead, to batch those of similar length
NUM_BEAMS, MAX_NEW_TOKENS = 4, 256  # of transformers 4, where neither the call nor the checkpoint says
UNREAD = ["*.bin", "*.pt", "*.pth", "*.ckpt", "*.h5", "*.msgpack", "*.ot", "*.onnx*", "*.gguf"]
# Options of transformers 4 that are accepted: texts are always padded, and truncated to the positions of the model.
NO_EFFECT = ("num_workers", "padding", "return_text", "trust_remote_code", "truncation", "use_fast")


def pipeline(
    task: str | None = None,
    model: str | PreTrainedModel | None = None,
    config: str | PreTrainedConfig | None = None,
    tokenizer: str | tuple[str, dict[str, Any]] | PreTrainedTokenizerBase | None = None,
    **options: Any,
) -> Any:
    """A callable for a task. See the classes below for the four tasks that live here, transformers for all others.

    `model`: a folder, a Hub id or a model; the tokenizer is loaded from the same place unless given. Raises ValueError
    or OSError in one line for what cannot be loaded and for options that do not exist.
    """
    if task == "question-answering":
        return QuestionAnsweringPipeline(task, model, tokenizer, config=config, **options)
    if task in KEYS or TRANSLATION.fullmatch(task or ""):
        return TextToTextPipeline(str(task), model, tokenizer, config=config, **options)
    if task and task.startswith("translation"):
        raise ValueError(f"there is no task {task!r}: give translation, or translation_en_to_de with other languages.")
    import transformers

    head = HEADS.get(TASK_ALIASES.get(task or "", task or ""))
    if isinstance(model, str) and (head or find_adapter(model)):
        at = {"revision": options.pop("revision", None), "token": options.pop("token", None)}
        model = _download(model, **at)
        tokenizer = _load_tokenizer(tokenizer or model, **at)
        if head:  # transformers would answer with a head that was never trained
            loading = {key: options.pop(key) for key in ("dtype", "torch_dtype", "device_map") if key in options}
            loading = {"dtype": "auto"} | loading | options.pop("model_kwargs", {}) | {"use_safetensors": True}
            model = load_with_head(model, head, tokenizer=tokenizer, trained=True, **loading).eval()
            longest = context_length(model.config) or tokenizer.model_max_length
            tokenizer.model_max_length = min(tokenizer.model_max_length, longest)  # which truncation asks for
        else:  # transformers would not know what adapted_config.json says
            model = load_merged(model, tokenizer=tokenizer)
    elif isinstance(model, str):
        check_checkpoint(model)
        options["model_kwargs"] = options.get("model_kwargs", {}) | {"use_safetensors": True}
    given = {"task": task, "model": model, "config": config, "tokenizer": tokenizer}
    return transformers.pipeline(**{k: v for k, v in given.items() if v is not None}, **options)


def _download(name: str, revision: str | None, token: str | bool | None) -> str:
    """The folder of a Hub id at a revision, or with a token of its own; any other name stays."""
    if (revision is None and token is None) or Path(name).is_dir():
        return name
    try:
        return snapshot_download(name, revision=revision, token=token, ignore_patterns=UNREAD)
    except RevisionNotFoundError:
        raise OSError(f"{name} has no revision {revision!r}.") from None
    except OSError as error:
        if message := unreachable(name, error):
            raise OSError(f"{message} The revision asked for is {revision!r}.") from error
        raise


def _load_tokenizer(
    tokenizer: str | tuple[str, dict[str, Any]] | PreTrainedTokenizerBase,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
) -> PreTrainedTokenizerBase:
    """A tokenizer of whatever form `pipeline` takes it in."""
    name, options = tokenizer if isinstance(tokenizer, tuple) else (tokenizer, {})
    _refuse_code(options)
    if not isinstance(name, str):
        return name
    options = {key: value for key, value in options.items() if key not in ("use_fast", "trust_remote_code")}
    return load_tokenizer(_download(name, revision, token), **options)


def _refuse_code(options: dict[str, Any]) -> None:
    if options.get("trust_remote_code"):
        raise ValueError("pipeline: trust_remote_code is refused: hf_lm runs no code from a model.")


class _Pipeline:
    """What both share: loading, devices, options, and inputs that come as a stream."""

    auto_classes: dict[str, Any]
    _together: Callable[..., list[Any]]  # the answers to a list of inputs, in their order

    def __init__(
        self,
        task: str,
        model: str | PreTrainedModel | None,
        tokenizer: str | tuple[str, dict[str, Any]] | PreTrainedTokenizerBase | None = None,
        *,
        config: str | PreTrainedConfig | None = None,
        revision: str | None = None,
        token: str | bool | None = None,
        dtype: Any = "auto",
        torch_dtype: Any = None,  # its name before transformers 5
        device: int | str | torch.device | None = None,  # None is the first accelerator, if there is one
        device_map: Any = None,
        model_kwargs: dict[str, Any] | None = None,  # of from_pretrained
        framework: str | None = None,
        batch_size: int = 32,
        **options: Any,
    ) -> None:
        loading = {"dtype": torch_dtype or dtype, "device_map": device_map, **(model_kwargs or {})}
        _refuse_code(loading | options)
        if framework not in (None, "pt"):
            raise ValueError(f"{task}: framework={framework!r} is refused: there is only pt, PyTorch.")
        if device is not None and loading["device_map"] is not None:
            raise ValueError(f"{task}: give device or device_map, not both.")
        if model is None:
            raise ValueError(f"pipeline({task!r}) needs model=..., a folder or a Hub id.")
        at = {"revision": loading.pop("revision", revision), "token": token}
        if isinstance(model, str):
            model = _download(model, **at)
            tokenizer = tokenizer or model
            device = 0 if device is None and loading["device_map"] is None else device
            model = self._load(model, config, loading)
        if tokenizer is None:
            raise ValueError(f"{task}: a model that is given as an object needs tokenizer=... beside it.")
        self.task, self.tokenizer = task, _load_tokenizer(tokenizer, **at)
        self.model: Any = model.eval()  # the types of PreTrainedModel lack `generate`
        if not has_target_tokenizer(self.tokenizer) and self.tokenizer.name_or_path:
            find_target(self.tokenizer, self.tokenizer.name_or_path)
        set_pad(self.tokenizer)
        self.pad_id: Any = self.tokenizer.pad_token_id
        self.batch_size, self.causal = batch_size, family(model.config) == "decoder"
        if isinstance(device, int):
            accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
            device = "cpu" if device < 0 or accelerator is None else torch.device(accelerator.type, device)
        self.device = torch.device(device) if device is not None else model.device
        if device is not None:
            self.model.to(self.device)
        self.options: dict[str, Any] = {}
        self.options = self._options(options)

    def _load(self, name: str, config: str | PreTrainedConfig | None, options: dict[str, Any]) -> PreTrainedModel:
        if not isinstance(config, PreTrainedConfig):
            config = load_config(config or name)
        kept: dict[str, Any] = {k: v for k, v in options.items() if v is not None and k != "trust_remote_code"}
        kept |= {"dtype": kept.pop("torch_dtype", kept["dtype"]), "use_safetensors": True}
        return load_weights(self.auto_classes[family(config)], name, config, **kept)

    def option_names(self) -> set[str]:
        """The options that a call takes, and that can be given when the pipeline is made."""
        return set(inspect.signature(self._together).parameters)

    def _options(self, options: dict[str, Any]) -> dict[str, Any]:
        """All options of a call. Raises ValueError for one that does not exist."""
        names = self.option_names()
        for name in options.keys() - names - {*NO_EFFECT}:
            near = difflib.get_close_matches(name, names, n=1)
            raise ValueError(f"{self.task} has no option {name!r}." + (f" Did you mean {near[0]}?" if near else ""))
        return self.options | {name: value for name, value in options.items() if name not in NO_EFFECT}

    def _stream(self, inputs: Iterator[Any], options: dict[str, Any]) -> Iterator[Any]:
        """An answer for each input, AT_ONCE of which are read ahead."""
        while some := list(islice(inputs, AT_ONCE)):
            yield from self._together(some, **options)


class TextToTextPipeline(_Pipeline):
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
        model, known = self.model, getattr(self.model.config, "task_specific_params", None) or {}
        directions = [name for name in known if TRANSLATION.fullmatch(name)]
        if task == "translation" and task not in known and directions:  # T5: as transformers 4 chose
            self.task = directions[0]
        self.settings = known.get(self.task) or known.get(self.task.split("_")[0], {})  # as T5 and our runs save them
        self.languages = tuple(getattr(self.tokenizer, side, None) for side in ("src_lang", "tgt_lang"))
        self.generation_config = copy.deepcopy(model.generation_config)
        self.generation_config.update(**{k: v for k, v in self.settings.items() if k not in ("prefix", "cue")})
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
        """Tokens of a text that the model reads; a longer one is truncated."""
        special = special_tokens_around(self.tokenizer, causal=self.causal)
        positions = context_length(self.model.config) or 10**6
        free = positions - len(special.before) - sum(map(len, self._prefix_and_cue())) - len(special.after)
        return free - (self.generation_config.max_new_tokens or positions // 2) if self.causal else free

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

    def _generation(self, options: dict[str, Any]) -> tuple[GenerationConfig, dict[str, Any]]:
        """How `generate` is called: the settings, and its other arguments."""
        config = copy.deepcopy(options.pop("generation_config", None) or self.generation_config)
        if options.get("max_length") and not options.get("max_new_tokens"):
            options["max_new_tokens"] = None  # the call before the checkpoint
        return config, config.update(**options)

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
        config, arguments = self._generation(options | self._set_languages(src_lang, tgt_lang))
        decoding = {"skip_special_tokens": True, "clean_up_tokenization_spaces": clean_up_tokenization_spaces}
        special, (prefix, cue) = special_tokens_around(self.tokenizer, causal=self.causal), self._prefix_and_cue()
        longest = self.max_source_length()
        prompts = [
            [*special.before, *prefix, *ids[:longest], *cue, *special.after]
            for ids in encode_documents(self.tokenizer, inputs)
        ]

        def write(rows: list[int]) -> list[list[dict[str, Any]]]:
            features = [{"input_ids": prompts[i]} for i in rows]
            batch = pad_batch(features, pad_id=self.pad_id, left=self.causal).items()
            batch = {key: value.to(self.device) for key, value in batch}
            ids = self.model.generate(**batch, generation_config=config, **arguments)
            ids = ids[:, len(prompts[rows[0]]) :] if self.causal else ids  # the first row is the longest
            if return_tensors:
                answers = [{f"{self.key}_token_ids": row} for row in ids]
            else:
                texts = target.batch_decode(ids, **decoding)
                answers = [{f"{self.key}_text": text.strip()} for text in texts]
            per_row = len(answers) // len(rows)
            return [answers[i : i + per_row] for i in range(0, len(answers), per_row)]

        lengths = [len(prompt) for prompt in prompts]
        return map_by_length(write, lengths, description=self.task, max_rows=batch_size or self.batch_size)


class QuestionAnsweringPipeline(_Pipeline):
    """`question-answering`: a span of a context of any length, read in windows that overlap.

    Called with `question` and `context` (strings, or lists of them), both as positional arguments, a dict of both, a
    SquadExample, or a list or an iterable of these. Returns {"score", "start", "end", "answer"}, a list of them where
    `top_k` is above 1, and a list of answers for several questions. `score` is the probability of the first token
    times that of the last, in the window that gives the most; with `handle_impossible_answer` the answer may be empty.
    """

    auto_classes = {  # noqa: RUF012
        "decoder": AutoModelForQuestionAnswering,
        "encoder": AutoModelForQuestionAnswering,
        "encoder-decoder": AutoModelForQuestionAnswering,
    }

    def __call__(
        self, *inputs: Any, question: Any = None, context: Any = None, data: Any = None, X: Any = None, **options: Any
    ) -> Any:
        options = self._options(options)
        if len(inputs) == 2 and all(isinstance(each, str) for each in inputs):
            inputs = ({"question": inputs[0], "context": inputs[1]},)
        elif not inputs and data is None and X is None:
            inputs = ({"question": question, "context": context},)
        asked = inputs[0] if len(inputs) == 1 else list(inputs) or (data if X is None else X)
        if isinstance(asked, (GeneratorType, Dataset)):
            return self._stream((row for each in iter(asked) for row in _questions(each)), options)
        answers = self._together(_questions(asked), **options)
        return answers[0] if len(answers) == 1 else answers  # also of a list of one, as in transformers 4

    @torch.no_grad()
    def _together(
        self,
        inputs: list[Row],
        *,
        top_k: int = 1,
        topk: int | None = None,  # its name of old
        doc_stride: int | None = None,  # tokens that two windows share; None is 128
        max_answer_len: int = 15,  # tokens
        max_seq_len: int | None = None,  # tokens of a window, with the question; None is 384
        max_question_len: int = 64,
        handle_impossible_answer: bool = False,
        align_to_words: bool = True,  # widens a span to the tokenizer's words, which may hurt Chinese and Japanese
        batch_size: int | None = None,
    ) -> list[Any]:
        top_k = top_k if topk is None else topk
        for name, value in (("top_k", top_k), ("max_answer_len", max_answer_len)):
            if value < 1:
                raise ValueError(f"question-answering: {name} is {value}; it must be at least 1.")
        length = min(max_seq_len or 384, context_length(self.model.config) or 10**6, self.tokenizer.model_max_length)
        if doc_stride is not None and doc_stride >= length:
            raise ValueError(f"question-answering: doc_stride is {doc_stride}; a window has {length} tokens.")
        encoded = windows_of(
            self.tokenizer,
            inputs,
            frame=special_tokens_around(self.tokenizer, causal=self.causal),
            max_length=length,
            stride=min(128 if doc_stride is None else doc_stride, length // 3),
            max_question=min(max_question_len, length // 3),
            align_to_words=align_to_words,
        )
        work = partial(self._spans, encoded, max_answer_len, max(top_k, 20))
        lengths = [len(feature["input_ids"]) for feature in encoded.features]
        scored = map_by_length(work, lengths, description=self.task, max_rows=batch_size or self.batch_size)
        candidates: list[dict[tuple[int, int], float]] = [{} for _ in inputs]
        for window, (scores, starts, ends, null) in zip(encoded.windows, scored, strict=True):
            of_row, context = candidates[window.row], inputs[window.row]["context"]
            for score, start, end in zip(scores, starts, ends, strict=True):
                begin, stop = window.offsets[start - window.first, 0], window.offsets[end - window.first, 1]
                text = context[begin:stop]
                place = int(begin) + len(text) - len(text.lstrip()), int(stop) - len(text) + len(text.rstrip())
                of_row[place] = max(score, of_row.get(place, -1e30))
            if handle_impossible_answer:  # no answer, if no window holds one
                of_row[0, 0] = min(null, of_row.get((0, 0), 0.0))
        return [_best(of_row, row["context"], top_k) for of_row, row in zip(candidates, inputs, strict=True)]

    def _spans(self, encoded: EncodedWindows, longest: int, count: int, rows: list[int]) -> list[Any]:
        """The `count` likeliest spans of each window in `rows`, as `top_spans` gives them."""
        features = [encoded.features[i] for i in rows]
        batch = {k: v.to(self.device) for k, v in pad_batch(features, pad_id=self.pad_id).items()}
        outputs = self.model(**batch)
        first = torch.tensor([encoded.windows[i].first for i in rows], device=self.device)
        size = torch.tensor([len(encoded.windows[i].offsets) for i in rows], device=self.device)
        places = torch.arange(outputs.start_logits.shape[1], device=self.device)
        shown = (places >= first[:, None]) & (places < (first + size)[:, None]) | (places == 0)
        start, end = (
            logits.float().masked_fill(~shown, -1e30).log_softmax(-1)
            for logits in (outputs.start_logits, outputs.end_logits)
        )
        return top_spans(start, end, first=first, length=size, longest=longest, count=count)


def _questions(asked: Any) -> list[Row]:
    """Rows of {"question", "context"} of whatever form.

    Raises ValueError for a question or context that is empty or not a text, and KeyError for a dict without them.
    """
    if hasattr(asked, "question_text"):  # a SquadExample
        asked = {"question": asked.question_text, "context": asked.context_text}
    if isinstance(asked, Iterable) and not isinstance(asked, (str, dict)):
        return [row for each in asked for row in _questions(each)]
    if not isinstance(asked, dict):
        raise ValueError(f"question-answering: {asked!r:.40} is not a dict with the keys question and context.")
    if not {"question", "context"} <= asked.keys():
        raise KeyError(f"question-answering: a dict needs the keys question and context; it has {sorted(asked)}.")
    question, context = asked["question"], asked["context"]
    if isinstance(question, (list, tuple)):
        contexts = [context] * len(question) if isinstance(context, str) else list(context or [])
        if len(contexts) != len(question):
            raise ValueError(f"question-answering: there are {len(question)} questions and {len(contexts)} contexts.")
        return _questions([{"question": q, "context": c} for q, c in zip(question, contexts, strict=True)])
    for name, text in (("question", question), ("context", context)):
        if not isinstance(text, str) or not text:
            raise ValueError(f"question-answering: the {name} is {text!r:.40}; it must be a text that is not empty.")
    return [{"question": question, "context": context}]


def _best(candidates: dict[tuple[int, int], float], context: str, top_k: int) -> Any:
    ranked = sorted(candidates.items(), key=lambda item: -item[1])[:top_k]
    answers = [
        {"score": math.exp(score), "start": begin, "end": stop, "answer": context[begin:stop]}
        for (begin, stop), score in ranked
    ]
    return answers[0] if top_k == 1 else answers
