"""A scorer of your own: a function of texts, named `module:function` to a recipe or called as it is. Needs 01."""

from hf_lm.inference.generate import generate, load_writer


def brevity(texts: list[str]) -> list[float]:
    """More is better: `recipes/preference.py --scorer my_scorer:brevity` ranks answers by it."""
    return [-float(len(text)) for text in texts]


model, tokenizer = load_writer("out/stones")
(texts,) = generate(model, tokenizer, ["Box 3"], num_return_sequences=8, max_new_tokens=12, seed=0)
best = max(texts, key=lambda text: brevity([text.text])[0])
print("the shortest of eight:", repr(best.text))
