"""The track: what a GPT-2 learns of WikiText-2 from a number of tokens, for settings side by side.

    python tests/benchmarks/track.py --data wikitext-2 [--steps 105 300 600] [--seeds 0 1 2] \\
        [--setting "" --setting "--adam_beta1 0.9 --adam_beta2 0.999"]

Trains 4 layers of 256 with a byte-level BPE of 4,096, blocks of 128 and batches of 16 (2,048 tokens a step), with the
defaults of recipes/pretrain.py and what a setting changes of them; "" changes nothing. The loss is nats a token on
`--held_out`, one stream of ids in windows of a block, which is scored by a few lines that know nothing of hf_lm.
Prints for each setting and length the mean over seeds, its standard error, and the paired difference from the first.
`--shape "--n_layer 2 --n_embd 128 --n_head 2"` makes the model smaller, `--tokens` scores the first of the ids only.
"""

import argparse
import itertools
import json
import shlex
import statistics
import subprocess
import sys
import tempfile
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import PreTrainedModel, set_seed

from hf_lm.arguments import TrainingArguments
from hf_lm.data.packing import Blocks, cache_folder, collate_blocks, tokenize_documents
from hf_lm.data.sources import load_corpus
from hf_lm.models.cooccurrence import start_embedding
from hf_lm.models.gpt2 import new_gpt2
from hf_lm.tasks.length import choose_rates, shorten_warmup
from hf_lm.tasks.losses import next_token_loss
from hf_lm.tokenization.tokenizer import prepare_tokenizer
from hf_lm.training.trainer import Trainer

RECIPE = Path(__file__).resolve().parents[2] / "recipes" / "pretrain.py"
DROPOUTS = ("embd_dropout", "resid_dropout", "attn_dropout")
TRACK = "--n_layer 4 --n_head 4 --n_embd 256 --block_size 128 --per_device_train_batch_size 16 --vocab_size 4096"


@torch.no_grad()
def loss_of(model: PreTrainedModel, ids: torch.Tensor, *, window: int) -> float:
    """Nats a token of (tokens,) ids, each window by itself."""
    model.eval()
    count = (len(ids) - 1) // window
    inputs, targets = (part[: count * window].view(count, window) for part in (ids[:-1], ids[1:]))
    total = 0.0
    for i in range(0, count, 16):
        logits = model(input_ids=inputs[i : i + 16], use_cache=False).logits
        total -= logits.log_softmax(-1).gather(-1, targets[i : i + 16, :, None]).double().sum().item()
    return total / (count * window)


def resolved(options: str) -> dict[str, Any]:
    """The recipe's run with these options, as it would be in run.yaml."""
    command = [sys.executable, str(RECIPE), *shlex.split(options), "--print_config"]
    return yaml.safe_load(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def trained(run: dict[str, Any], blocks: Blocks, tokenizer: Any, folder: str) -> PreTrainedModel:
    own = {f.name for f in fields(TrainingArguments) if f.init}
    given = {name: value for name, value in run.items() if name in own}
    given |= {"output_dir": folder, "eval_strategy": "no", "save_strategy": "no"}
    given |= {"logging_strategy": "no", "disable_tqdm": True, "report_to": "none"}
    args = TrainingArguments(**given)
    a_step = args.rows_in_step * run["block_size"]
    choose_rates(args, run["max_steps"] * a_step / len(blocks.stream.tokens), a_step)
    args.asked.discard("warmup_steps")  # that of the recipe, which it ends before the decay of a short run
    shorten_warmup(args, run["max_steps"])
    set_seed(given["seed"])
    shape = {name: run[name] for name in ("n_layer", "n_head", "n_embd", "block_size", "dropout", *DROPOUTS)}
    model = new_gpt2(tokenizer, **shape)
    if run["embedding_init"] == "cooccurrence":
        start_embedding(model, blocks.stream.tokens)
    Trainer(
        model,
        args,
        loss=next_token_loss,
        shifts_labels=True,
        measure=lambda model: {},
        context=run["block_size"],
        train_dataset=blocks,
        data_collator=collate_blocks,
    ).train()
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="as --dataset of the recipe")
    parser.add_argument("--options", default="--document_start '^ = [^=].* = $'", help="of the recipe, about the data")
    parser.add_argument("--held_out", default="", help="text file that is scored; by default valid.txt of the data")
    parser.add_argument("--shape", default=TRACK, help="options of the recipe")
    parser.add_argument("--steps", type=int, nargs="+", default=[105, 300, 600])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--setting", action="append", help="options of the recipe that differ; may be repeated")
    parser.add_argument("--tokens", type=int, default=0, help="score only the first ids; 0: all")
    args = parser.parse_args()

    settings = args.setting or [""]
    data = f"--dataset {shlex.quote(args.data)} {args.options} {args.shape}"
    runs = {setting: resolved(f"{data} {setting}") for setting in settings}
    run = runs[settings[0]]
    corpus = load_corpus(run["dataset"], text_column=run["text_column"], document_start=run["document_start"])
    sizes = {name: run[name] for name in ("vocab_size", "min_frequency")}
    tokenizer = prepare_tokenizer("bpe", corpus, **sizes, max_bytes=run["tokenizer_max_bytes"])
    text = Path(args.held_out or Path(args.data) / "valid.txt").read_text(encoding="utf-8")
    ids = torch.tensor(tokenizer(text, add_special_tokens=False)["input_ids"])
    ids = ids[: args.tokens + 1] if args.tokens else ids

    losses = {}
    with tempfile.TemporaryDirectory() as folder:
        cache = cache_folder(corpus.fingerprint, tokenizer, "train")
        stream = tokenize_documents(corpus.documents("train"), tokenizer=tokenizer, folder=cache)
        for steps, seed, setting in itertools.product(args.steps, args.seeds, settings):
            run = runs[setting] | {"max_steps": steps, "seed": seed}
            blocks = Blocks(stream, block_size=run["block_size"], isolate=run["packing"] == "isolate")
            model = trained(run, blocks, tokenizer, f"{folder}/out")
            loss = loss_of(model, ids, window=run["block_size"])
            losses[steps, setting, seed] = loss
            print(json.dumps({"steps": steps, "seed": seed, "setting": setting, "loss": loss}), flush=True)
    for steps, setting in itertools.product(args.steps, settings):
        own = [losses[steps, setting, seed] for seed in args.seeds]
        gains = [loss - losses[steps, settings[0], seed] for seed, loss in zip(args.seeds, own, strict=True)]
        print(f"{steps} steps, {setting or 'defaults'}: {_mean(own)}; difference {_mean(gains)}")


def _mean(values: list[float]) -> str:
    error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else float("nan")
    return f"{statistics.mean(values):.4f} (standard error {error:.4f})"


if __name__ == "__main__":
    main()
