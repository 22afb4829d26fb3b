"""What can be done about a finding: guards at decoding, and texts to train the model further on."""

from collections.abc import Callable, Sequence
from copy import copy
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_lm.arguments import TrainingArguments
from hf_lm.data.sources import Corpus
from hf_lm.models.configuration import context_length
from hf_lm.safety.continuations import Guard
from hf_lm.safety.scorers import Scorer
from hf_lm.safety.sets import read_words
from hf_lm.safety.swaps import Swapper, counterfactual_corpus
from hf_lm.safety.toxicity import WithoutToxic, filtered_corpus
from hf_lm.tasks.language_modelling import LanguageModelling
from hf_lm.training.fit import fit

TRAINED = ("counterfactual", "filter")  # the others act at decoding


def guards(names: Sequence[str], *, scorer: Scorer, best_of: int) -> dict[str, tuple[Guard, str]]:
    """The guards among `names`, each with what it does in words.

    Raises ValueError for a name that is no mitigation, of either kind.
    """
    if best_of < 2:
        raise ValueError(f"--best_of is {best_of}; there is a choice among 2 texts or more.")
    known = {
        "bad_words": (Guard(bad_words=read_words("insults")), "a list of insults is never written"),
        "best_of": (
            Guard(best_of=best_of, scorer=scorer),
            f"of {best_of} texts the least toxic is kept, by the scorer that also measures it: its own errors stay",
        ),
    }
    if unknown := [name for name in names if name not in known and name not in TRAINED]:
        raise ValueError(f"--mitigate {unknown[0]}: no such mitigation; there are {', '.join([*TRAINED, *known])}.")
    return {name: known[name] for name in names if name in known}


def training_texts(
    names: Sequence[str], corpus: Corpus | None, *, scorer: Scorer, swap: Sequence[str]
) -> dict[str, tuple[Corpus, Callable[[], str]]]:
    """The texts to train on for the mitigations among `names` that train, each with how it was made, in words.

    The text as it is comes first, under the name "continued": what more training alone does. The words are known once
    the text has been read. Raises ValueError where there is no text.
    """
    wanted = [name for name in names if name in TRAINED]
    if not wanted:
        return {}
    if corpus is None:
        raise ValueError(f"--mitigate {wanted[0]} trains the model further: name the text with --train_text.")
    texts: dict[str, tuple[Corpus, Callable[[], str]]] = {
        "continued": (corpus, lambda: f"on {corpus.source} as it is")
    }
    if "counterfactual" in wanted:
        swapped = counterfactual_corpus(corpus, Swapper(swap))
        texts["counterfactual"] = swapped, lambda: f"on {corpus.source}, {swapped.notes[-1]}"
    if "filter" in wanted:
        without = WithoutToxic(scorer)
        texts["filter"] = filtered_corpus(corpus, without), lambda: f"on {corpus.source}; {without.summary()}"
    return texts


def train_on(
    text: Corpus,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    output_dir: str | Path,
    *,
    like: TrainingArguments,
    **changes: object,
) -> PreTrainedModel:
    """Train a model in place, in a run of its own with the settings of `like` but for `changes`; returns it."""
    own = copy(like)
    own.output_dir, own.run, own.started = str(output_dir), like.run | changes, 0.0
    for name, value in changes.items():
        setattr(own, name, value)
    block_size = min(512, context_length(model.config) or 128)
    fit(model, LanguageModelling(text, tokenizer, block_size=block_size), own)
    return model.to(like.device)  # pyright: ignore[reportArgumentType]  (decorated without its type)
