"""Generate: the same seed gives the same text, whatever else is in the batch. Needs 01."""

from hf_lm.inference.generate import generate, load_writer, stream

model, tokenizer = load_writer("out/stones")
prompts = ["Box 3 holds", "Box 4 holds"]
together = generate(model, tokenizer, prompts, max_new_tokens=8, num_return_sequences=2, seed=1)
alone = generate(model, tokenizer, prompts[:1], max_new_tokens=8, num_return_sequences=2, seed=1)
assert [each.text for each in alone[0]] == [each.text for each in together[0]]
for text in together[0]:
    print(f"{text.per_token:.2f} nats per token:", repr(text.text))
print("".join(stream(model, tokenizer, "Box", max_new_tokens=8)))
