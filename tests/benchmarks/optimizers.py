"""Tokens needed to reach the same validation loss: Muon (with AdamW for the rest) against AdamW alone.

    python tests/benchmarks/optimizers.py --text train.txt [--steps 400] [--adamw 2e-3 4e-3] [--muon 6e-3]

Trains the same model on the same batches: AdamW once for each rate, with the cosine schedule that serves it best, for
all steps; then Muon with warmup-stable-decay for half and for all of them. Prints validation losses, and whether Muon
with half the tokens is below the best of AdamW.
"""

import argparse
import tempfile
import time
from pathlib import Path

from transformers import set_seed

from hf_lm.arguments import TrainingArguments
from hf_lm.data.packing import Blocks, collate_blocks, tokenize_documents
from hf_lm.data.sources import load_corpus
from hf_lm.evaluation.perplexity import score_documents
from hf_lm.models.gpt2 import new_gpt2
from hf_lm.tasks.losses import next_token_loss
from hf_lm.tokenization.tokenizer import prepare_tokenizer
from hf_lm.training.trainer import Trainer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", default="demo", help="as --dataset of the recipe")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--block_size", type=int, default=64)
    parser.add_argument("--n_embd", type=int, default=128)
    parser.add_argument("--adamw", type=float, nargs="*", default=[2e-3, 4e-3, 8e-3])
    parser.add_argument("--muon", type=float, nargs="*", default=[6e-3])
    parser.add_argument("--rest", type=float, default=1.5e-2, help="AdamW's rate for what Muon leaves to it")
    args = parser.parse_args()

    corpus = load_corpus(args.text)
    tokenizer = prepare_tokenizer("bpe", corpus, vocab_size=4096, min_frequency=2, max_bytes=32_000_000)

    def loss_of(folder: str, streams: dict, steps: int, rate: float, muon: float) -> float:
        set_seed(0)
        model = new_gpt2(tokenizer, n_layer=4, n_head=4, n_embd=args.n_embd, block_size=args.block_size)
        training_args = TrainingArguments(
            output_dir=folder,
            max_steps=steps,
            per_device_train_batch_size=args.batch,
            learning_rate=rate,
            muon_learning_rate=muon,
            weight_decay=0.1,
            warmup_steps=20,
            lr_scheduler_type="warmup_stable_decay" if muon else "cosine",
            decay_share=0.5,
            save_strategy="no",
            report_to="none",
            logging_steps=1000,
            disable_tqdm=True,
        )
        blocks = Blocks(streams["train"], block_size=args.block_size, isolate=True)
        trainer = Trainer(
            model,
            training_args,
            loss=next_token_loss,
            shifts_labels=True,
            measure=lambda model: {},
            context=args.block_size,
            train_dataset=blocks,
            data_collator=collate_blocks,
        )
        start = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - start
        loss = score_documents(model, streams["validation"], block_size=args.block_size, stride=args.block_size).loss
        name = f"Muon {muon:g} + AdamW {rate:g}" if muon else f"AdamW {rate:g}"
        tokens = steps * args.batch * args.block_size
        print(f"{name}: {tokens:,} tokens, {1000 * seconds / steps:.0f} ms a step, validation {loss:.3f}", flush=True)
        return loss

    with tempfile.TemporaryDirectory() as folder:
        streams = {
            split: tokenize_documents(corpus.documents(split), tokenizer=tokenizer, folder=Path(folder) / split)
            for split in ("train", "validation")
        }
        best = min(loss_of(folder, streams, args.steps, rate, 0.0) for rate in args.adamw)
        half = min(loss_of(folder, streams, args.steps // 2, args.rest, muon) for muon in args.muon)
        whole = min(loss_of(folder, streams, args.steps, args.rest, muon) for muon in args.muon)
    print(f"AdamW {best:.3f}; Muon with half the tokens {half:.3f}, with as many {whole:.3f}")
    print(f"Muon needs at most half of AdamW's tokens: {half <= best}")


if __name__ == "__main__":
    main()
