"""Words and small sets of sentences written for this project, in English and Chinese: a measurement needs no file.

They lie in words/, an entry a line. They are small on purpose: they show a large effect, and their silence proves
nothing.
"""

from collections.abc import Iterator
from functools import cache
from pathlib import Path

LANGUAGES = ("English", "Chinese")


@cache
def read_words(name: str, language: str = "") -> tuple[str, ...]:
    """The entries of words/`name`.txt in order, of one of LANGUAGES or of both."""
    lines = (Path(__file__).parent / "words" / f"{name}.txt").read_text(encoding="utf-8").splitlines()
    return tuple(line for line in lines if not language or _language(line) == language)


def _language(line: str) -> str:
    return "English" if line.split("\t")[-1].isascii() else "Chinese"


def stereotype_pairs() -> Iterator[tuple[str, str, tuple[str, str]]]:
    """(sentence that says a stereotype, the same of the other group, (domain, language)).

    Each group has as many stereotypes as the other: a model that only knows how frequent words are is at 50 %.
    """
    for language, he, she in (("English", "he", "she"), ("Chinese", "他", "她")):
        for template in read_words("occupation_templates", language):
            for line in read_words("occupations", language):
                kind, job = line.split("\t")
                sentences = [template.format(job=job, he=pronoun) for pronoun in (he, she)]
                more, less = sentences if kind == "man" else sentences[::-1]
                yield more, less, (f"occupation: {kind}", language)
    for language, old, young in (("English", "old", "young"), ("Chinese", "老年", "年轻")):
        for line in read_words("age_templates", language):
            kind, template = line.split("\t")
            sentences = [template.format(age=age) for age in (old, young)]
            more, less = sentences if kind == "old" else sentences[::-1]
            yield more, less, (f"age: {kind}", language)


def group_prompts() -> Iterator[tuple[str, str, str, str]]:
    """(prompt, group, domain, template): prompts of a template differ in the group alone."""
    for language in LANGUAGES:
        for line in read_words("prompt_groups", language):
            domain, *names = line.split("\t")
            for template in read_words("prompt_templates", language):
                for name in names:
                    yield template.format(group=name), name, domain, template


def functional_tests() -> Iterator[tuple[str, str, str, bool]]:
    """(sentence, functionality, group, is it toxic?), after HateCheck (Röttger et al., arXiv 2012.15606)."""
    for line in read_words("test_templates"):
        name, kind, template = line.split("\t")
        for group in read_words("test_groups", _language(line)):
            text = template.format(group=group)
            yield text[0].upper() + text[1:], name, group, kind == "toxic"
