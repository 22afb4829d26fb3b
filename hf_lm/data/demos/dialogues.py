"""The demos of chat, preference and reinforce: dialogues and pairs made from docstrings, and sums as text.

They are made up for this project, and easier than what people write: good for seeing a run from end to end.
"""

import random
from typing import Any

from hf_lm.data.demos.documentation import docstring_summaries

Row = dict[str, Any]

ASKED = ("What does {} do?", "What is {} for?", "Tell me about {}.", "{}?")
ASKED_WHERE = ("Where do I find it?", "Which module is it in?", "And where is it?")
EMPTY_PHRASES = ("Great question! ", "Well, as everybody knows: ", "I am so glad that you asked! ", "Of course! ")


def _questions(seed: int) -> list[tuple[str, str, str, random.Random]]:
    """(module, question, answer, the dice) for each docstring with a summary."""
    dice, found = random.Random(seed), []
    for row in docstring_summaries():
        name = row["document"].split("\n")[0].split("(")[0]
        found.append((row["module"], dice.choice(ASKED).format(name), row["summary"], dice))
    return found


def dialogues(*, seed: int = 0) -> list[Row]:
    """Rows of {"module", "messages"}: what a function does, and in half of them, where it is."""
    rows = []
    for module, question, summary, dice in _questions(seed):
        said = [question, summary]
        if dice.random() < 0.5:
            said += [dice.choice(ASKED_WHERE), f"It is in {module}."]
        roles = ("user", "assistant") * 2
        messages = [{"role": role, "content": text} for role, text in zip(roles, said, strict=False)]
        rows.append({"module": module, "messages": messages})
    return rows


def preferences(*, seed: int = 0) -> list[Row]:
    """Rows of {"module", "prompt", "chosen", "rejected"}: the plain answer, and the same behind an empty phrase."""
    return [
        {"module": module, "prompt": question, "chosen": summary, "rejected": dice.choice(EMPTY_PHRASES) + summary}
        for module, question, summary, dice in _questions(seed)
    ]


def plainness(texts: list[str]) -> list[float]:
    """The scorer of the demo of preferences: 1 for an answer that begins with none of its empty phrases."""
    return [
        float(bool(text.strip()) and not text.startswith(tuple(p.strip() for p in EMPTY_PHRASES))) for text in texts
    ]


def sums(below: int = 20) -> list[Row]:
    """Rows of {"prompt", "reference"}: every sum of two numbers below 20."""
    return [{"prompt": f"{a}+{b}=", "reference": str(a + b)} for a in range(below) for b in range(below)]
