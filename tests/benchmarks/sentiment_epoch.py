"""An epoch of recipes/sentiment.py against the same Trainer with every text padded to 128 tokens, rows in any order.

    python tests/benchmarks/sentiment_epoch.py --model MINILM --dataset rt-polarity [--rounds 2] [--texts 0]

The second is what the transformers example script does by default. Both start from the same weights and see the same
rows; their accuracies on the test split stand beside the times, with their intervals.
"""

import argparse
import statistics
import tempfile
import time

import torch
from transformers import AutoModelForSequenceClassification, set_seed

from hf_lm.arguments import TrainingArguments, bf16_is_fast
from hf_lm.data.batches import pad_batch
from hf_lm.data.tables import load_table
from hf_lm.models.loading import load_with_head
from hf_lm.tasks.sentiment import Sentiment, read_sentiment
from hf_lm.tokenization.tokenizer import load_tokenizer, set_pad
from hf_lm.training.trainer import Trainer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--texts", type=int, default=0, help="train on so many, taken evenly; 0 takes all")
    parser.add_argument("--learning_rate", type=float, default=3e-4, help="high enough to learn in one epoch")
    args = parser.parse_args()

    table = load_table(args.dataset, endings="labels")
    labels = read_sentiment(table)
    if args.texts:
        rows = table.rows["train"]  # whose classes may stand one after the other
        table.rows["train"] = rows[:: max(1, len(rows) // args.texts)][: args.texts]
    tokenizer = load_tokenizer(args.model)
    set_pad(tokenizer)
    task = Sentiment(table, tokenizer, labels=labels, max_length=128)

    def padded(features: list[dict]) -> dict[str, torch.Tensor]:
        ids = pad_batch(features, pad_id=tokenizer.pad_token_id)
        missing = 128 - ids["input_ids"].shape[1]
        wide = {"input_ids": tokenizer.pad_token_id, "attention_mask": 0}
        return ids | {key: torch.nn.functional.pad(ids[key], (0, missing), value=fill) for key, fill in wide.items()}

    def epoch(collate, sampling: str, folder: str) -> tuple[float, str]:
        set_seed(0)
        model = load_with_head(args.model, AutoModelForSequenceClassification, tokenizer=tokenizer, labels=labels)
        training_args = TrainingArguments(
            output_dir=folder,
            num_train_epochs=1,
            per_device_train_batch_size=args.batch,
            learning_rate=args.learning_rate,
            train_sampling_strategy=sampling,
            bf16=bf16_is_fast(),
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        trainer = Trainer(
            model,
            training_args,
            loss=task.loss,
            shifts_labels=False,
            measure=lambda model: {},
            context=128,
            train_dataset=task.train_dataset,
            data_collator=collate,
        )
        began = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - began
        found = task.measure(model, "test").estimates["accuracy"].interval()
        return seconds, f"accuracy {found.value:.1f} % ({found.low:.1f} to {found.high:.1f})"

    ratios = []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(args.rounds):
            runs = [("ours", task.collate, "group_by_length"), ("padded to 128", padded, "random")]
            found = {}
            for name, collate, sampling in runs if number % 2 else reversed(runs):
                found[name], said = epoch(collate, sampling, folder)
                print(f"{name:<14} {found[name]:7.1f} s, {said}", flush=True)
            ratios.append(found["ours"] / found["padded to 128"])
            print(f"ratio {ratios[-1]:.3f}", flush=True)
    print(f"median ratio {statistics.median(ratios):.3f} (at most 0.28 is the aim)")


if __name__ == "__main__":
    main()
