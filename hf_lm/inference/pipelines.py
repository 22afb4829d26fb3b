"""`pipeline`: a drop-in for those that transformers 5 removed, with the calls and outputs they had in transformers 4.

    from hf_lm import pipeline                                     # instead of: from transformers import pipeline
    pipeline("question-answering", model="out/question_answering")(question="...", context="...")

Any other task goes through to `transformers.pipeline`; nothing of transformers is patched. `docs/pipeline.md` lists
the call forms, and where they differ.
"""

from pathlib import Path
from typing import Any

from transformers import (
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.pipelines import TASK_ALIASES

from hf_lm.inference.pipeline_base import download, tokenizer_given
from hf_lm.inference.question_answering import QuestionAnsweringPipeline
from hf_lm.inference.text_to_text import KEYS, TRANSLATION, TextToTextPipeline
from hf_lm.models.adapters import load_merged
from hf_lm.models.configuration import check_checkpoint, context_length, find_adapter, load_config
from hf_lm.models.loading import load_with_head

# Heads that transformers would put on any checkpoint, never trained; these pipelines are its own.
HEADS = {
    "text-classification": AutoModelForSequenceClassification,
    "token-classification": AutoModelForTokenClassification,
}


def pipeline(
    task: str | None = None,
    model: str | PreTrainedModel | None = None,
    config: str | PreTrainedConfig | None = None,
    tokenizer: str | tuple[str, dict[str, Any]] | PreTrainedTokenizerBase | None = None,
    **options: Any,
) -> Any:
    """A callable for a task: TextToTextPipeline or QuestionAnsweringPipeline, and that of transformers for any other.

    `model`: a folder, a Hub id or a model; the tokenizer is loaded from the same place unless given. Raises ValueError
    or OSError in one line for what cannot be loaded and for options that do not exist.
    """
    if isinstance(model, str) and (task == "question-answering" or TASK_ALIASES.get(task or "", task) in HEADS):
        _refuse_writer(str(task), model)
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
        model = download(model, **at)
        own = not isinstance(tokenizer, PreTrainedTokenizerBase)
        tokenizer = tokenizer_given(tokenizer or model, **at)
        if head and own:
            tokenizer.split_special_tokens = True  # as in training: a text cannot forge a special token
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


def _refuse_writer(task: str, model: str) -> None:
    """Raise ValueError for a model of the recipes that writes its class or answer, where a head is asked."""
    known = getattr(load_config(model), "task_specific_params", None) or {} if Path(model).is_dir() else {}
    if "max_source_length" in known.get(TASK_ALIASES.get(task, task), {}):
        raise ValueError(
            f"{model} was trained to write its answer and has no head for {task}: `hf-lm score` measures it. Train it "
            "without --as_text, or an encoder, to use it here."
        )
