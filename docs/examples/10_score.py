"""Score folders on the same examples, and test which differ beyond noise. Needs 01 and 03."""

from hf_lm.scoring.score import score

result = score(["out/stones", "out/watched"], dataset="stones.jsonl", metrics=["perplexity"])
for name, entry in result["models"].items():
    print(name, entry["metrics"]["bits_per_byte"])
for pair in result["comparisons"]:
    print(pair["metric"], "better:", pair["better"] or "neither")
