"""A training step of the recipe's Trainer against a bare PyTorch loop: same model, batches and optimizer.

    python tests/benchmarks/training_step.py [--size tiny] [--rounds 6] [--steps 8]

The two are interleaved round by round in one process and the ratio of each round is printed: this is meant for noisy
machines. Evaluation, logging to files and checkpoints are left out of both.
"""

import argparse
import statistics
import tempfile
import time

import torch
from torch.nn.functional import cross_entropy, pad

from hf_lm.arguments import TrainingArguments
from hf_lm.models.gpt2 import SIZES
from hf_lm.tasks.losses import next_token_loss
from hf_lm.training.trainer import Trainer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="tiny", choices=SIZES)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--block_size", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--steps", type=int, default=8, help="optimizer steps a round, of each")
    parser.add_argument("--muon", type=float, default=0.0, help="Muon's learning rate, for both")
    args = parser.parse_args()

    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    shape = {key: value for key, value in SIZES[args.size].items() if key in ("n_layer", "n_head", "n_embd")}
    config = GPT2Config(vocab_size=4096, n_positions=args.block_size, bos_token_id=0, eos_token_id=0, **shape)
    model = GPT2LMHeadModel(config)
    blocks = torch.randint(0, 4096, ((args.steps + 1) * args.batch, args.block_size))

    def collate(rows: list[torch.Tensor]) -> dict[str, torch.Tensor]:
        ids = torch.stack(rows)
        return {"input_ids": ids, "labels": ids}

    def trainer(steps: int, folder: str) -> Trainer:
        training_args = TrainingArguments(
            output_dir=folder,
            max_steps=steps,
            per_device_train_batch_size=args.batch,
            learning_rate=1e-3,
            muon_learning_rate=args.muon,
            logging_steps=10,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        return Trainer(
            model,
            training_args,
            loss=next_token_loss,
            shifts_labels=True,
            measure=lambda model: {},
            context=args.block_size,
            train_dataset=list(blocks),
            data_collator=collate,
        )

    def trained(folder: str) -> float:
        run = trainer(args.steps + 1, folder)
        times = []  # when each step begins: what lies between includes the optimizer, the callbacks and the next batch
        inner = run.training_step

        def step(*arguments, **keywords):
            times.append(time.perf_counter())
            return inner(*arguments, **keywords)

        run.training_step = step
        run.train()
        return (times[-1] - times[0]) / args.steps

    def bare(folder: str) -> float:
        run = trainer(1, folder)
        optimizer = run.create_optimizer()
        model.train()
        times = []
        for i in range(args.steps + 1):
            times.append(time.perf_counter())
            ids = blocks[i * args.batch : (i + 1) * args.batch]
            logits = model(input_ids=ids, use_cache=False).logits
            targets = pad(
                ids[:, 1:], (0, 1), value=-100
            )  # moving the labels, as ours does, spares a copy of the logits
            loss = cross_entropy(logits.flatten(0, 1), targets.flatten())
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
        return (times[-1] - times[0]) / args.steps

    ratios = []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(args.rounds + 1):
            first, second = (trained, bare) if number % 2 else (bare, trained)
            seconds = {first.__name__: first(folder)}
            seconds[second.__name__] = second(folder)
            if number:  # the first round warms up
                ratios.append(seconds["trained"] / seconds["bare"])
                print(f"Trainer {seconds['trained']:.3f} s, bare {seconds['bare']:.3f} s, ratio {ratios[-1]:.3f}")
    print(f"median ratio {statistics.median(ratios):.3f} (at most 1.05 is the aim)")


if __name__ == "__main__":
    main()
