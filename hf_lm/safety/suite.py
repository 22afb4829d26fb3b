"""All measurements of a model in one call, by what the model can do."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from transformers import (
    MODEL_FOR_MASKED_LM_MAPPING,
    AutoModelForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from hf_lm.data.sources import Corpus
from hf_lm.models.configuration import family, load_config
from hf_lm.models.loading import load_causal_lm, load_masked_lm, load_with_head
from hf_lm.safety.continuations import Guard, continue_prompts
from hf_lm.safety.counterfactuals import (
    Prompt,
    built_in_prompts,
    built_in_sentences,
    flip_measures,
    groups_of,
    read_prompts,
    score_measures,
    swapped_pairs,
)
from hf_lm.safety.measures import Measure
from hf_lm.safety.memorisation import look_up, measure_memorisation
from hf_lm.safety.scorers import Scorer, class_probabilities, insult_scorer
from hf_lm.safety.stereotypes import Contrasts, built_in_pairs, measure_stereotypes, read_stereotypes
from hf_lm.safety.toxicity import functional_measures, toxicity_measures
from hf_lm.tokenization.tokenizer import load_tokenizer, set_pad


@dataclass
class Found:
    """What was measured of one model. `personal` is masked."""

    measures: list[Measure]
    personal: list[dict[str, Any]] = field(default_factory=list)


def load_any(name: str, *, device: Any = "cpu") -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A causal or masked language model or a text classifier, as what it was saved, with its tokenizer.

    Raises OSError or ValueError in one line; an encoder-decoder is refused.
    """
    tokenizer = load_tokenizer(name)
    set_pad(tokenizer)
    config = load_config(name)
    if config.is_encoder_decoder:
        raise ValueError(
            f"{name} is an encoder-decoder ({config.model_type}); give a causal or masked language model or a text "
            "classifier."
        )
    if is_classifier(config):
        model = load_with_head(name, AutoModelForSequenceClassification, tokenizer=tokenizer, trained=True)
    elif type(config) in MODEL_FOR_MASKED_LM_MAPPING and family(config) == "encoder":
        model = load_masked_lm(name)
    else:
        model = load_causal_lm(name, tokenizer=tokenizer)
    return model.to(device).eval(), tokenizer


def is_classifier(config: Any) -> bool:
    return (config.architectures or [""])[0].endswith("ForSequenceClassification")


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
        if samples < 1 or max_new_tokens < 1:
            raise ValueError(f"samples is {samples} and max_new_tokens {max_new_tokens}; give at least 1 of each.")
        self.contrasts: list[Contrasts] = list(
            {found.source: found for found in map(read_stereotypes, stereotypes)}.values()
        ) or [built_in_pairs()]
        self.prompts: dict[str, list[Prompt]] = {
            str(name).rsplit("/", 1)[-1]: read_prompts(name, at_most=max_prompts) for name in prompts
        }
        self.corpus = corpus
        self.scorer, self.sentiment = scorer or insult_scorer(), sentiment
        self.samples, self.max_new_tokens, self.seed = samples, max_new_tokens, seed
        self.of_scorer = functional_measures(self.scorer)

    def measure(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, guard: Guard | None = None
    ) -> Found:
        """Everything that this model's kind allows: a classifier has no continuations, a masked model writes none.

        A guard acts on continuations alone: nothing else is measured again.
        """
        model.eval()
        if is_classifier(model.config) or type(model).__name__.endswith("ForSequenceClassification"):
            return Found(self._flips(model, tokenizer))
        found: list[Measure] = []
        if guard is None:
            for contrasts in self.contrasts:
                found += measure_stereotypes(model, tokenizer, contrasts)
        if family(model.config) == "encoder":
            return Found(found)
        texts = []
        for source, prompts in (self.prompts or {"built-in prompts": built_in_prompts()}).items():
            written = continue_prompts(
                model,
                tokenizer,
                [prompt.text for prompt in prompts],
                samples=self.samples,
                max_new_tokens=self.max_new_tokens,
                seed=self.seed,
                guard=guard,
            )
            flat = [text for some in written for text in some]
            texts += flat
            shape = len(prompts), self.samples
            toxic = self.scorer(flat).reshape(shape)
            found += toxicity_measures(toxic, groups_of(prompts), source=source, scorer=self.scorer.name)
            found += score_measures("toxicity", toxic, prompts, source=source, scorer=self.scorer.name)
            if self.sentiment is not None:
                scores, scorer = self.sentiment(flat).reshape(shape), self.sentiment.name
                found += score_measures("sentiment", scores, prompts, source=source, scorer=scorer)
        if self.corpus is not None and guard is None:
            measures, free = measure_memorisation(model, tokenizer, self.corpus, seed=self.seed)
            found, texts = found + measures, texts + free
        return Found(found, look_up(texts, self.corpus))

    @torch.no_grad()
    def _flips(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[Measure]:
        found = []
        for source, prompts in (self.prompts or {"built-in sentences": built_in_sentences()}).items():
            pairs = swapped_pairs(prompts)
            if not pairs:
                raise ValueError(
                    f"--prompts {source}: no text names a group that another could take the place of, so there is "
                    "nothing to compare."
                )
            both = [pair.one for pair in pairs] + [pair.other for pair in pairs]
            one, other = np.split(class_probabilities(model, tokenizer, both), 2)
            found += flip_measures(one, other, pairs, source=source)
        return found
