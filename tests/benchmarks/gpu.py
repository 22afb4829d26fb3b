"""What one GPU does with this package: each part prints rows of one table. tests/benchmarks/gpu.sh runs them all.

    python tests/benchmarks/gpu.py steps|qlora|shard|nanogpt [--size small] [--batch 12] [--block 1024] [--steps 20]

Without a GPU it runs on the CPU, which shows that the parts work, and nothing else: use a small --size, --batch and
--block there. tests/benchmarks/plan.py compares the plan with runs.
"""

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from transformers import GPT2Config, GPT2LMHeadModel

from hf_lm.arguments import TrainingArguments
from hf_lm.models.gpt2 import SIZES
from hf_lm.planning.devices import present_device
from hf_lm.tasks.losses import next_token_loss
from hf_lm.training.monitor import flops_per_token, peak_flops
from hf_lm.training.trainer import Trainer

ROOT = Path(__file__).parent.parent.parent
VOCABULARY = 50304  # GPT-2's 50,257 and what makes it a multiple of 64, as in nanoGPT
WARM_UP = 3  # steps before the clock starts
CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")
# Name, attention, and options of the Trainer.
SETTINGS = (
    ("float32, eager attention", "eager", {}),
    ("bf16, eager attention", "eager", {"bf16": True}),
    ("bf16, SDPA", "sdpa", {"bf16": True}),
    ("bf16, SDPA, compile", "sdpa", {"bf16": True, "torch_compile": True}),
    ("bf16, SDPA, compile, Muon", "sdpa", {"bf16": True, "torch_compile": True, "muon_learning_rate": 6e-3}),
    ("bf16, SDPA, checkpointing", "sdpa", {"bf16": True, "gradient_checkpointing": True}),
    ("bf16, flash kernel", "kernels-community/flash-attn2", {"bf16": True}),
)


def row(what: str, **numbers: str) -> None:
    print("| " + " | ".join([what, *numbers.values()]) + " |", flush=True)


def now() -> float:
    if CUDA:
        torch.cuda.synchronize()
    return time.perf_counter()


def new_model(args: argparse.Namespace, attention: str = "sdpa") -> GPT2LMHeadModel:
    torch.manual_seed(0)
    shape = {key: value for key, value in SIZES[args.size].items() if key in ("n_layer", "n_head", "n_embd")}
    dropout = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, n_positions=args.block, **shape, **dropout))
    model.set_attn_implementation(attention)
    return model


def blocks(args: argparse.Namespace) -> torch.Tensor:
    ids = torch.randint(0, VOCABULARY, (args.batch, args.block), generator=torch.Generator().manual_seed(1))
    return ids.repeat(args.steps + WARM_UP, 1)


def rate(model: nn.Module, args: argparse.Namespace, seconds: float) -> dict[str, str]:
    """Tokens a second, their share of the device's matrix speed (data sheet, else measured), and the peak memory."""
    tokens = args.steps * args.batch * args.block / seconds
    speed = present_device().flops.get("half") or peak_flops(DEVICE, torch.bfloat16)
    peak = f"{torch.cuda.max_memory_allocated() / 2**20:,.0f} MiB" if CUDA else "-"
    share = tokens * flops_per_token(model, args.block) / speed
    return {"tokens": f"{tokens:,.0f} tokens/s", "MFU": f"{share:.1%}", "memory": peak}


def one_setting(args: argparse.Namespace) -> None:
    """Train a few steps with the Trainer of the recipes."""
    name, attention, options = SETTINGS[args.setting]
    model, times = new_model(args, attention), []
    with tempfile.TemporaryDirectory() as folder:
        training = {"output_dir": folder, "max_steps": args.steps + WARM_UP, "learning_rate": 1e-4, "seed": 0}
        training |= {"per_device_train_batch_size": args.batch, "save_strategy": "no", "report_to": "none"}
        training |= {"disable_tqdm": True, "logging_strategy": "no", "use_cpu": not CUDA, **options}
        trainer = Trainer(
            model,
            TrainingArguments(**training),
            loss=next_token_loss,
            shifts_labels=True,
            measure=lambda model: {},
            context=args.block,
            train_dataset=list(blocks(args)),
            data_collator=lambda rows: {"input_ids": torch.stack(rows), "labels": torch.stack(rows)},
        )
        inner = trainer.training_step

        def step(*arguments, **keywords):
            times.append(now())
            return inner(*arguments, **keywords)

        trainer.training_step = step
        loss = trainer.train().training_loss
    assert loss == loss, f"the loss of {name} is not a number"
    row(name, **rate(model, args, (now() - times[WARM_UP])), note=f"loss {loss:.3f}")


def steps(args: argparse.Namespace) -> None:
    """Each setting in a process of its own, so that its peak memory is its own. One that fails is a row, too."""
    options = [token for key in ("size", "batch", "block", "steps") for token in (f"--{key}", str(getattr(args, key)))]
    for number, (name, attention, _) in enumerate(SETTINGS):
        if "/" in attention and not CUDA:
            row(name, tokens="not run: no GPU", MFU="", memory="", note="")
            continue
        command = [sys.executable, __file__, "setting", "--setting", str(number), *options]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
        if done.returncode:
            lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
            row(name, tokens="FAILED", MFU="", memory="", note=lines[-1][:120])
        print(*(line for line in done.stdout.splitlines() if line.startswith("| ")), sep="\n", flush=True)


def qlora(args: argparse.Namespace) -> None:
    """The sentiment recipe on a base in 4 bits: a random GPT-2 of that size with a tokenizer of its own."""
    from hf_lm.data.demos.opinions import opinions
    from hf_lm.models.gpt2 import new_gpt2
    from hf_lm.tokenization.tokenizer import train_bpe

    with tempfile.TemporaryDirectory() as folder:
        rows = opinions(400)
        tokenizer = train_bpe([row["text"] for row in rows], vocab_size=512)
        new_gpt2(tokenizer, size=args.size, block_size=args.block).save_pretrained(f"{folder}/base")
        tokenizer.save_pretrained(f"{folder}/base")
        Path(folder, "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        options = {"model": f"{folder}/base", "dataset": f"{folder}/rows.jsonl", "output_dir": f"{folder}/out"}
        options |= {"quantize": 4, "lora_rank": 8, "max_steps": args.steps, "max_length": args.block}
        options |= {"per_device_train_batch_size": args.batch, "skip_proofs": "learnable", "report_to": "none"}
        options |= {"eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": False}
        options |= {} if CUDA else {"use_cpu": True}
        words = [word for key, value in options.items() for word in (f"--{key}", str(value))]
        done = subprocess.run(
            [sys.executable, "recipes/sentiment.py", *words], capture_output=True, text=True, cwd=ROOT
        )
        if done.returncode:
            raise SystemExit(f"the recipe ended with {done.returncode}:\n{done.stderr[-2000:]}")
        report = json.loads(Path(folder, "out", "report.json").read_text())
    speed = report["speed"]
    memory = f"{speed['peak_memory_bytes'] / 2**20:,.0f} MiB"
    proofs = ", ".join(name for name, proof in report["proofs"].items() if proof["passed"])
    row("QLoRA, sentiment", tokens=f"{speed['tokens_per_second']:,.0f} tokens/s", MFU="", memory=memory, note=proofs)


def shard(args: argparse.Namespace) -> None:
    """fully_shard on one device gives the losses of the plain model."""
    from torch.distributed.fsdp import fully_shard

    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29591", "RANK": "0", "WORLD_SIZE": "1"}
    torch.distributed.init_process_group("nccl" if CUDA else "gloo")
    losses, started = {}, 0.0
    ids = blocks(args)[: args.batch].to(DEVICE)
    for name in ("plain", "fully_shard"):
        model = new_model(args).to(DEVICE)
        if name == "fully_shard":
            for layer in model.transformer.h:
                fully_shard(layer)
            fully_shard(model)
            started = now()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        losses[name] = []
        for _ in range(args.steps):
            loss = next_token_loss(model(input_ids=ids, use_cache=False), {"labels": ids}) / ids[:, 1:].numel()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses[name].append(loss.item())
    numbers = rate(model, args, now() - started)
    torch.distributed.destroy_process_group()
    difference = max(abs(a - b) / b for a, b in zip(losses["fully_shard"], losses["plain"], strict=True))
    row("float32, fully_shard", **numbers, note=f"largest difference of the loss {difference:.1e}")
    assert difference < 1e-3, losses


def timed(step: Callable[[], None], count: int) -> float:
    for _ in range(WARM_UP):
        step()
    started = now()
    for _ in range(count):
        step()
    return now() - started


def nanogpt(args: argparse.Namespace) -> None:
    """nanoGPT's own model and optimizer, from a checkout of it, in the loop of its train.py: bf16, compiled, AdamW."""
    spec = importlib.util.spec_from_file_location("nanogpt_model", args.checkout / "model.py")
    if spec is None or spec.loader is None:
        raise SystemExit(f"{args.checkout} has no model.py: give a checkout of nanoGPT with --checkout")
    module = importlib.util.module_from_spec(spec)
    sys.modules["nanogpt_model"] = module
    spec.loader.exec_module(module)
    shape = {key: value for key, value in SIZES[args.size].items() if key in ("n_layer", "n_head", "n_embd")}
    model = module.GPT(module.GPTConfig(block_size=args.block, vocab_size=VOCABULARY, dropout=0.0, **shape)).to(DEVICE)
    optimizer = model.configure_optimizers(
        weight_decay=0.1, learning_rate=1e-4, betas=(0.9, 0.95), device_type=DEVICE.type
    )
    trained = torch.compile(model) if args.compile else model
    ids = blocks(args)[: args.batch].to(DEVICE)

    def step() -> None:
        with torch.autocast(DEVICE.type, torch.bfloat16):
            logits, _ = trained(ids[:, :-1], ids[:, 1:])
            loss = cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    seconds = timed(step, args.steps)
    ours = new_model(args)  # the same matrices: its FLOPs are those of both
    row(
        f"nanoGPT, bf16{', compile' if args.compile else ''}",
        **rate(ours, args, seconds),
        note=str(args.checkout.name),
    )


def main() -> None:
    parts = {"steps": steps, "setting": one_setting, "qlora": qlora, "shard": shard, "nanogpt": nanogpt}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=parts)
    parser.add_argument("--size", default="small", choices=SIZES, help="small is GPT-2 124M")
    parser.add_argument("--batch", type=int, default=12)
    parser.add_argument("--block", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--setting", type=int, default=0, help="number of one of the settings, of the part `setting`")
    parser.add_argument("--checkout", type=Path, help="of nanoGPT")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=CUDA, help="of nanoGPT's model")
    args = parser.parse_args()
    parts[args.part](args)


if __name__ == "__main__":
    main()
