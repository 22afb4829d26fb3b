"""The languages of a multilingual tokenizer (mBART, NLLB, M2M100): set them, name them, and find the one it writes."""

import re

from transformers import PreTrainedTokenizerBase

from hf_lm.models.configuration import special_ids
from hf_lm.models.target_tokenizer import target_tokenizer
from hf_lm.tokenization.tokenizer import encode_documents, position_of


def set_languages(tokenizer: PreTrainedTokenizerBase, source: str, target: str) -> None:
    """Set the languages of a multilingual tokenizer (mBART, NLLB, M2M100); other tokenizers stay.

    Raises ValueError for a language that it does not know, unless its languages were set before: those are kept.
    """
    if not hasattr(tokenizer, "tgt_lang"):
        return
    for side, option, language in (("src_lang", "--source", source), ("tgt_lang", "--target", target)):
        try:
            setattr(tokenizer, side, language_code(tokenizer, language, option=option))
        except ValueError:
            if getattr(tokenizer, "tgt_lang", None) is None:
                raise


def language_code(tokenizer: PreTrainedTokenizerBase, language: str, *, option: str) -> str:
    """A language as a multilingual tokenizer names it: `de_DE`, `deu_Latn` or `de`.

    Its first part is enough where only one language has it (`de` for `de_DE`). Raises ValueError, which names the
    `option` that the language was given by, for any other.
    """
    codes = [token.strip("_") for token in tokenizer.all_special_tokens]
    codes = [code for code in codes if re.fullmatch(r"[a-z]{2,3}(_[A-Z]\w+)?", code)]
    matching = [code for code in codes if language == code] or [c for c in codes if c.startswith(f"{language}_")]
    if len(matching) != 1:
        known = ", ".join((matching or codes)[:5])
        raise ValueError(
            f"{option} {language!r} is not a language of {tokenizer.name_or_path or 'the tokenizer'}, which has "
            f"{len(codes)} ({known}, ...): name one of them."
        )
    return matching[0]


def language_written(tokenizer: PreTrainedTokenizerBase) -> tuple[int, bool] | None:
    """(id of the target language, whether the labels begin with it (mBART-50, NLLB, M2M100) or the decoder starts from
    it (mBART)); None for a tokenizer without languages.
    """
    tokenizer = target_tokenizer(tokenizer)
    if getattr(tokenizer, "tgt_lang", None) is None:
        return None
    own, mark = set(tokenizer.all_special_ids), encode_documents(tokenizer, ["a"], as_targets=True)[0]
    ids = tokenizer(text_target="a").input_ids
    begin = position_of(ids, mark, 0)
    languages = own - set(special_ids(tokenizer).values())
    if opening := [i for i in ids[:begin] if i in languages]:
        return opening[0], True
    after = [i for i in ids[begin + len(mark) :] if i in languages]
    return (after[0], False) if after else None
