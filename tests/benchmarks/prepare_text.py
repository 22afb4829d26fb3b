"""Preparing text (read, clean, split, tokenize, write) against one bare `encode_batch_fast` pass over the same text.

    python tests/benchmarks/prepare_text.py                      # 50 and 200 MB made from the built-in documentation
    python tests/benchmarks/prepare_text.py --files train.txt    # a file of your own

Each measurement is a fresh process; the two are interleaved and the ratio of each round is printed, with the peak
memory of preparing. The aims: a median ratio of at most 1.3, and under 600 MB whatever the size of the text.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

BARE = """
import json, sys, time
import numpy as np
from tokenizers import Tokenizer
tokenizer = Tokenizer.from_file(sys.argv[1])
tokenizer.encode_special_tokens = True
text = open(sys.argv[2], encoding="utf-8").read()
documents = [text[i : i + 50_000] for i in range(0, len(text), 50_000)]
start = time.perf_counter()
for i in range(0, len(documents), 40):
    encodings = tokenizer.encode_batch_fast(documents[i : i + 40], add_special_tokens=False)
    ids = np.concatenate([np.array(encoding.ids, np.uint16) for encoding in encodings])
print(json.dumps({"seconds": time.perf_counter() - start}))
"""

OURS = """
import json, sys, tempfile, time
from pathlib import Path
from transformers import PreTrainedTokenizerFast
from hf_lm.data.packing import Blocks, tokenize_documents
from hf_lm.data.sources import load_corpus
tokenizer = PreTrainedTokenizerFast(tokenizer_file=sys.argv[1], eos_token="<|endoftext|>", bos_token="<|endoftext|>")
with tempfile.TemporaryDirectory() as folder:
    start = time.perf_counter()
    corpus = load_corpus(sys.argv[2])
    for split in corpus.splits:
        stream = tokenize_documents(corpus.documents(split), tokenizer=tokenizer, folder=Path(folder) / split)
        len(Blocks(stream, block_size=256, isolate=True))
    seconds = time.perf_counter() - start
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]
print(json.dumps({"seconds": seconds, "megabytes": int(peak) / 1024}))
"""


def measure(code: str, *arguments: Path) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", nargs="*", type=Path, default=[])
    parser.add_argument("--megabytes", nargs="*", type=int, default=[50, 200])
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()

    from hf_lm.data.demos.documentation import documentation
    from hf_lm.tokenization.tokenizer import train_bpe

    texts = [row["text"] for row in documentation()]
    with tempfile.TemporaryDirectory() as folder:
        train_bpe(texts, vocab_size=4096).save_pretrained(folder)
        tokenizer = Path(folder) / "tokenizer.json"
        files = list(args.files)
        for megabytes in args.megabytes if not args.files else []:
            path, size, number = Path(folder) / f"{megabytes}MB.txt", 0, 0
            with path.open("w", encoding="utf-8") as file:
                while size < megabytes * 10**6:  # numbers are mixed in, so that no document is there twice
                    size += file.write(f"Volume {number}\n{texts[number % len(texts)]}\n\n")
                    number += 1
            files.append(path)
        for path in files:
            ratios, peaks = [], []
            for number in range(args.rounds):
                order = (BARE, OURS) if number % 2 else (OURS, BARE)
                found = {code: measure(code, tokenizer, path) for code in order}
                ratios.append(found[OURS]["seconds"] / found[BARE]["seconds"])
                peaks.append(found[OURS]["megabytes"])
                print(
                    f"{path.name}: prepared in {found[OURS]['seconds']:.1f} s, bare {found[BARE]['seconds']:.1f} s, "
                    f"ratio {ratios[-1]:.2f}, peak {peaks[-1]:.0f} MB",
                    flush=True,
                )
            print(f"{path.name}: median ratio {statistics.median(ratios):.2f}, highest peak {max(peaks):.0f} MB")


if __name__ == "__main__":
    main()
