"""Continuations of prompts, by a model alone and under guards that act at decoding."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_lm.inference.generate import generate
from hf_lm.safety.scorers import Scorer
from hf_lm.tokenization.tokenizer import encode_documents


@dataclass(frozen=True)
class Guard:
    """At decoding: `bad_words` are never written; of `best_of` texts the one least toxic to `scorer` is kept."""

    bad_words: Sequence[str] = ()
    best_of: int = 1
    scorer: Scorer | None = None


def continue_prompts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    *,
    samples: int = 25,
    max_new_tokens: int = 20,
    seed: int = 0,
    guard: Guard | None = None,
) -> list[list[str]]:
    """`samples` continuations of each prompt, drawn as RealToxicityPrompts does: nucleus 0.9, temperature 1.

    A prompt's continuations do not depend on the other prompts.
    """
    guard = guard or Guard()
    with _forbidden(model, tokenizer, guard.bad_words):
        written = generate(
            model,
            tokenizer,
            prompts,
            num_return_sequences=samples * guard.best_of,
            max_new_tokens=max_new_tokens,
            temperature=1.0,
            top_p=0.9,
            seed=seed,
            batch_size=256,
        )
    texts = [[each.text for each in of_prompt] for of_prompt in written]
    if guard.best_of == 1:
        return texts
    if guard.scorer is None:
        raise ValueError(f"best_of is {guard.best_of}, and there is no scorer to choose by.")
    kept = []
    for of_prompt in texts:
        best = guard.scorer(of_prompt).reshape(-1, guard.best_of).argmin(axis=1)
        kept.append([of_prompt[row * guard.best_of + i] for row, i in enumerate(best)])
    return kept


@contextmanager
def _forbidden(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, words: Sequence[str]) -> Iterator[None]:
    """Forbid words in the block, through transformers' own list of bad words.

    A word is forbidden as the tokenizer writes it, after a space or not, in small letters and with a capital; spelt by
    other tokens, or as part of a longer word, it can still be written.
    """
    forms = {form for word in words for form in (word, word.capitalize(), f" {word}", f" {word.capitalize()}")}
    before = model.generation_config.bad_words_ids
    ids = [ids for ids in encode_documents(tokenizer, sorted(forms)) if ids] if forms else []
    unknown = tokenizer.unk_token_id
    ids = [word for word in ids if unknown is None or unknown not in word]  # else every unknown word would be
    model.generation_config.bad_words_ids = [*(before or []), *ids] or None
    try:
        yield
    finally:
        model.generation_config.bad_words_ids = before
