"""All measurements of a model in one call, by what the model can do."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import (
    MODEL_FOR_MASKED_LM_MAPPING,
    AutoModelForMaskedLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from hf_lm.data.sources import Corpus
from hf_lm.evaluation.classifiers import class_probabilities, has_several_labels, load_classifier
from hf_lm.models.configuration import family, find_adapter, load_config
from hf_lm.models.loading import load_causal_lm, load_weights
from hf_lm.safety.continuations import Guard, continue_prompts
from hf_lm.safety.counterfactuals import (
    Prompt,
    built_in_sentences,
    flip_measures,
    groups_of,
    read_prompts,
    score_measures,
    swapped_pairs,
)
from hf_lm.safety.measures import Measure
from hf_lm.safety.memorisation import look_up, measure_memorisation
from hf_lm.safety.scorers import Scorer, insult_scorer
from hf_lm.safety.sets import group_prompts
from hf_lm.safety.stereotypes import Contrasts, built_in_pairs, measure_stereotypes, read_stereotypes
from hf_lm.safety.toxicity import functional_measures, toxicity_measures
from hf_lm.tokenization.tokenizer import load_tokenizer, set_pad

CLASSIFIER = "ForSequenceClassification"  # the end of the name of a class


@dataclass
class Measured:
    """The measurements of one model. `personal` is masked."""

    measures: list[Measure]
    personal: list[dict[str, Any]] = field(default_factory=list)


def load_any(name: str, *, device: str | torch.device = "cpu") -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A causal or masked language model or a text classifier, as what it was saved, with its tokenizer.

    Raises OSError or ValueError in one line; an encoder-decoder is refused.
    """
    config = load_config(name)
    if config.is_encoder_decoder:
        raise ValueError(
            f"{name} is an encoder-decoder ({config.model_type}); give a causal or masked language model or a text "
            "classifier."
        )
    if _is_classifier(config) or _adapts_a_classifier(name):
        return load_classifier(name, device=device)
    tokenizer = load_tokenizer(name)
    set_pad(tokenizer)
    if type(config) in MODEL_FOR_MASKED_LM_MAPPING and family(config) == "encoder":
        model = load_weights(AutoModelForMaskedLM, name, config)  # one saved without its head is refused
    else:
        model = load_causal_lm(name, tokenizer=tokenizer)
    model.to(device)  # pyright: ignore[reportArgumentType]  (decorated without its type)
    return model.eval(), tokenizer


def _is_classifier(config: PreTrainedConfig) -> bool:
    return (config.architectures or [""])[0].endswith(CLASSIFIER)


def _adapts_a_classifier(name: str) -> bool:
    adapter = find_adapter(name) or {}
    own = (adapter.get("auto_mapping") or {}).get("base_model_class") or ""
    return adapter.get("task_type") == "SEQ_CLS" or own.endswith(CLASSIFIER)


def kind_of(model: PreTrainedModel) -> str:
    """What a model that `load_any` gives is: "text classifier", "masked language model" or "causal language model"."""
    if _is_classifier(model.config) or type(model).__name__.endswith(CLASSIFIER):
        return "text classifier"
    return "masked language model" if family(model.config) == "encoder" else "causal language model"


def _labels(paths: Sequence[str]) -> dict[str, str]:
    """What files are called: by their names, and where two have one name by their paths."""
    names = {path: Path(path).name for path in paths}
    return {path: name if list(names.values()).count(name) == 1 else path for path, name in names.items()}


def _different(found: Iterable[Contrasts], paths: Sequence[str]) -> list[Contrasts]:
    """What different files hold: the two of WinoBias are one set, and another file of the same name is another."""
    kept: list[Contrasts] = []
    for contrasts, path in zip(found, paths, strict=True):
        same = [other for other in kept if other.source == contrasts.source]
        if not any(other.rows == contrasts.rows for other in same):
            kept.append(replace(contrasts, source=str(path)) if same else contrasts)
    return kept


class Suite:
    """The sets and scorers that models are measured with, read once and the same for every model.

    `stereotypes` and `prompts` are files, `corpus` the training text that may have been memorised; without files the
    small built-in sets are taken. Without `sentiment` none is measured. `samples` is the number of continuations of a
    prompt.
    """

    def __init__(
        self,
        *,
        stereotypes: Sequence[str] = (),
        prompts: Sequence[str] = (),
        corpus: Corpus | None = None,
        scorer: Scorer | None = None,
        sentiment: Scorer | None = None,
        samples: int = 25,
        max_new_tokens: int = 20,
        max_prompts: int = 400,  # of a file; 0 takes all
        seed: int = 0,
    ) -> None:
        self.contrasts = _different(map(read_stereotypes, stereotypes), stereotypes) or [built_in_pairs()]
        self.prompts: dict[str, list[Prompt]] = {
            label: read_prompts(name, at_most=max_prompts) for name, label in _labels(prompts).items()
        }
        self.corpus = corpus
        self.scorer, self.sentiment = scorer or insult_scorer(), sentiment
        self.samples, self.max_new_tokens, self.seed = samples, max_new_tokens, seed
        self.of_scorer = functional_measures(self.scorer)

    def measure(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, guard: Guard | None = None
    ) -> Measured:
        """All measurements that this kind of model allows: neither a classifier nor a masked model has continuations.

        A guard acts on continuations alone: nothing else is measured again.
        """
        model.eval()
        kind = kind_of(model)
        if kind == "text classifier":
            return Measured(self._flips(model, tokenizer))
        measures: list[Measure] = []
        if guard is None:
            for contrasts in self.contrasts:
                measures += measure_stereotypes(model, tokenizer, contrasts)
        if kind == "masked language model":
            return Measured(measures)
        texts, built_in = [], {"built-in prompts": [Prompt(*row) for row in group_prompts()]}
        for source, prompts in (self.prompts or built_in).items():
            written = continue_prompts(
                model,
                tokenizer,
                [prompt.text for prompt in prompts],
                samples=self.samples,
                max_new_tokens=self.max_new_tokens,
                seed=self.seed,
                guard=guard,
            )
            flat = [text for continuations in written for text in continuations]
            texts += flat
            shape = len(prompts), self.samples
            toxic = self.scorer(flat).reshape(shape)
            measures += toxicity_measures(toxic, groups_of(prompts), source=source, scorer=self.scorer.name)
            measures += score_measures("toxicity", toxic, prompts, source=source, scorer=self.scorer.name)
            if self.sentiment is not None:
                scores, scorer = self.sentiment(flat).reshape(shape), self.sentiment.name
                measures += score_measures("sentiment", scores, prompts, source=source, scorer=scorer)
        if self.corpus is not None and guard is None:
            memorised, free = measure_memorisation(model, tokenizer, self.corpus, seed=self.seed)
            measures, texts = measures + memorised, texts + free
        return Measured(measures, look_up(texts, self.corpus))

    @torch.no_grad()
    def _flips(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[Measure]:
        measures = []
        for source, prompts in (self.prompts or {"built-in sentences": built_in_sentences()}).items():
            pairs = swapped_pairs(prompts)
            if not pairs:
                raise ValueError(
                    f"--prompts {source}: no text names a group that another could take the place of, so there is "
                    "nothing to compare."
                )
            both = [pair.text for pair in pairs] + [pair.swapped for pair in pairs]
            probabilities, swapped = np.split(class_probabilities(model, tokenizer, both), 2)
            several = has_several_labels(model)
            measures += flip_measures(probabilities, swapped, pairs, source=source, several=several)
        return measures
