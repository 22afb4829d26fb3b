"""What the campaign's scripts share: small runs of six kinds, started as forks of one process that has imported all.

A fork costs what a run computes, not the seconds of its imports. Each script compares a run that something happened to
with one that was left alone, and prints one line of a table: what was tried, how often, and how often it held.
"""

import argparse
import hashlib
import itertools
import json
import os
import pickle
import random
import re
import runpy
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
ROOT = Path(__file__).parent.parent.parent
LONGEST = 1800  # seconds that a run may take: many, for a machine that is shared
# Without the proofs that start a process or train: a trial would be little else.
SKIPPED = ["--skip_proofs", "load_back", "adapter_load_back", "learnable"]
SMALL = ["--use_cpu", "true", "--bf16", "false", "--report_to", "none", *SKIPPED]
STEPS = ["--max_steps", "12", "--save_steps", "4", "--logging_steps", "1", "--save_total_limit", "2"]
EPOCHS = ["--num_train_epochs", "2", "--logging_steps", "1", "--per_device_train_batch_size", "32"]


@dataclass
class Setting:
    """A kind of run: its recipe and options, and the runs made of it."""

    name: str
    recipe: str
    options: list[str]

    def command(self, output_dir: Path, *more: str) -> list[str]:
        return [self.recipe, *self.options, "--output_dir", str(output_dir), *more]


def options(**values: object) -> list[str]:
    return [token for name, value in values.items() for token in (f"--{name}", str(value))]


def make_settings(folder: Path) -> list[Setting]:
    """Six kinds of run on data written into `folder`: by steps and by epochs, a constant rate, LoRA, and TRL's."""
    words, shuffled = (
        ["ash", "elm", "fir", "hazel", "larch", "maple", "oak", "pine", "rowan", "willow", "yew"],
        random.Random(0),
    )
    text = [{"text": f"Number {i}. " + " ".join(shuffled.choices(words, k=40))} for i in range(160)]
    opinions = [
        {"text": f"{' '.join(shuffled.choices(words, k=6))} {('bad', 'good')[i % 2]}", "label": ("no", "yes")[i % 2]}
        for i in range(160)
    ]
    pairs = [{"en": f"{a} and {i}", "de": f"{i} und {a}"} for i, a in enumerate(words * 10)]
    chats = [
        {"messages": [{"role": "user", "content": row["en"]}, {"role": "assistant", "content": row["de"]}]}
        for row in pairs
    ]
    files = {"text": text, "opinions": opinions, "pairs": pairs, "chats": chats}
    for name, rows in files.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    bases = folder / "bases"
    if not bases.exists():
        save_bases([*(row["text"] for row in opinions), *(text for pair in pairs for text in pair.values())], bases)
    tiny = ["--n_layer", "2", "--n_embd", "32", "--n_head", "2", "--vocab_size", "400", "--block_size", "32"]
    pretrain = ["--dataset", str(folder / "text.jsonl"), *tiny, "--per_device_train_batch_size", "4", *STEPS, *SMALL]
    sentiment = ["--dataset", str(folder / "opinions.jsonl"), "--model", str(bases / "encoder"), *EPOCHS, *SMALL]
    return [
        Setting("pretrain", "pretrain.py", [*pretrain, "--warmup_steps", "2"]),
        Setting(
            "pretrain, constant rate, dropout, saves off the logging grid",
            "pretrain.py",
            [*pretrain, *options(lr_scheduler_type="constant", dropout=0.1, save_steps=3, logging_steps=2)],
        ),
        Setting("sentiment, epochs, best model", "sentiment.py", sentiment),
        Setting("sentiment, LoRA", "sentiment.py", [*sentiment, "--lora_rank", "4", "--lora_dropout", "0.1"]),
        Setting(
            "translation",
            "translation.py",
            [
                *options(dataset=folder / "pairs.jsonl", model=bases / "encoder-decoder", max_target_length=8),
                *EPOCHS,
                *SMALL,
            ],
        ),
        Setting(
            "chat (TRL)",
            "chat.py",
            [
                *options(dataset=folder / "chats.jsonl", model=bases / "decoder", max_length=64),
                *options(per_device_train_batch_size=4, save_strategy="steps", eval_strategy="steps", eval_steps=4),
                *STEPS,
                *SMALL,
            ],
        ),
    ]


def save_bases(texts: list[str], folder: Path) -> None:
    """Tiny models for the fine-tuning recipes, whose own would take most of a trial."""
    from transformers import BertForMaskedLM, set_seed

    from hf_lm.models.bert import new_bert
    from hf_lm.models.encoder_decoder import new_bart
    from hf_lm.models.gpt2 import new_gpt2
    from hf_lm.tokenization.tokenizer import new_tokenizer, train_bpe

    set_seed(0)
    framed, plain = new_tokenizer(texts, vocab_size=400), train_bpe(texts, vocab_size=400)
    bases = {
        "encoder": (framed, new_bert(framed, model_class=BertForMaskedLM, n_embd=32)),
        "encoder-decoder": (framed, new_bart(framed, n_layer=1, n_embd=32, block_size=32)),
        "decoder": (plain, new_gpt2(plain, n_layer=1, n_head=2, n_embd=32, block_size=64)),
    }
    for name, (tokenizer, model) in bases.items():
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)


# One run, in a fork


def use_home(folder: Path) -> None:
    """Keep caches in `folder`: of this process, whose libraries have read the environment already, and of forks."""
    from huggingface_hub import constants

    os.environ["HF_HOME"] = constants.HF_HOME = str(folder)


def import_all() -> None:
    """Import once what a run imports, so that forks do not."""
    import transformers.integrations  # noqa: F401
    import trl  # noqa: F401

    import hf_lm.training.fit
    import hf_lm.training.trl_trainers  # noqa: F401

    for recipe in sorted((ROOT / "recipes").glob("*.py")):
        runpy.run_path(str(recipe), run_name="campaign")


@dataclass
class Child:
    """A run in a fork of this process."""

    pid: int
    log: Path
    started: float = field(default_factory=time.monotonic)
    status: int | None = None
    seconds: float = 0.0  # CPU time in all, once it has ended

    def cpu_seconds(self) -> float:
        try:
            fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return float("inf")
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def ended(self) -> bool:
        if self.status is None:
            pid, status, used = os.wait4(self.pid, os.WNOHANG)
            if pid:
                self.status, self.seconds = os.waitstatus_to_exitcode(status), used.ru_utime + used.ru_stime
        return self.status is not None

    def wait(self, until: Callable[[], bool] = lambda: False) -> int | None:
        """The exit code, negative for a signal; None where `until` came true first. A run that hangs is killed."""
        while not self.ended() and not until():
            if time.monotonic() - self.started > LONGEST:
                os.kill(self.pid, signal.SIGKILL)
            time.sleep(0.005)
        return self.status

    def error(self) -> str:
        lines = [line for line in self.log.read_text(errors="replace").splitlines() if line.startswith("error:")]
        return " | ".join(lines) or f"exit code {self.status} without a line"

    def traceback(self) -> bool:
        return "Traceback (most recent call last)" in self.log.read_text(errors="replace")


def start(argv: list[str], log: Path, *, before: Callable[[], None] = lambda: None, **environment: str) -> Child:
    """Run a recipe in a fork: its exit code, output and error line are those of `python recipes/...`."""
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return Child(pid, log)
    code = 1
    try:
        os.setsid()
        target = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(target, 1)
        os.dup2(target, 2)
        os.environ.update(environment)
        use_home(Path(os.environ["HF_HOME"]))
        sys.argv = argv
        before()
        try:
            runpy.run_path(str(ROOT / "recipes" / argv[0]), run_name="__main__")
            code = 0
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        except BaseException as error:
            sys.excepthook(type(error), error, error.__traceback__)
            code = 130 if isinstance(error, KeyboardInterrupt) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


# What two runs must have in common


def facts(folder: Path) -> dict[str, Any]:
    """What a finished run left, by name: weights, state of the newest checkpoint, report, predictions, files."""
    from hf_lm.output_folder import list_checkpoints

    result: dict[str, Any] = {"files": sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())}
    newest = list_checkpoints(folder)[-1:]
    for path in [*folder.glob("*.safetensors"), *folder.glob("adapter/*.safetensors"), folder / "predictions.jsonl"]:
        if path.is_file():
            result[str(path.relative_to(folder))] = hashlib.sha256(path.read_bytes()).hexdigest()
    for name in ("model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth"):
        for checkpoint in newest:
            if (checkpoint / name).is_file():
                result[f"{checkpoint.name}/{name}"] = hashlib.sha256((checkpoint / name).read_bytes()).hexdigest()
    states = [checkpoint / "trainer_state.json" for checkpoint in newest]
    for path in [folder / "report.json", *states]:
        result |= dict(leaves(json.loads(path.read_text()), str(path.relative_to(folder))))
    # That a checkpoint was saved only because of a stop is recorded in it, so that it is removed in its time.
    return {name: value for name, value in result.items() if "stateful_callbacks:unscheduled" not in name}


def leaves(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, part in value.items():
            yield from leaves(part, f"{name}:{key}")
    elif isinstance(value, list):
        for i, part in enumerate(value):
            yield from leaves(part, f"{name}:{i}")
    else:
        yield name, value


OPERATIONS = ("open", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree", "os.mkdir")


def is_write(event: str, args: tuple, inside: str) -> bool:
    """Whether an audit event is an operation that changes a file or folder below `inside`."""
    if event not in OPERATIONS or not args or not f"{args[0]}/".startswith(f"{inside}/"):
        return False
    return event != "open" or (isinstance(args[1], str) and bool(set(args[1]) & set("wax+")))


def record_writes(folder: Path, record: Path) -> Callable[[], None]:
    """For the fork: a line in `record`, which is not in `folder`, for each operation on a path in `folder`."""

    def install() -> None:
        inside, descriptor = str(folder), os.open(record, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

        def hook(event: str, args: tuple) -> None:
            if is_write(event, args, inside):
                os.write(descriptor, f"{event} {args[0]}\n".encode())

        sys.addaudithook(hook)

    return install


@dataclass
class Reference:
    """Two runs that were left alone; what they differ in (times, speeds, names of folders) is not compared."""

    setting: Setting
    folder: Path  # of one of them
    facts: dict[str, Any]
    varies: set[str]
    cpu_seconds: float
    writes: list[str]  # operations on files in the output folder, in their order

    @property
    def saves(self) -> list[int]:
        """The numbers, from 1, of the operations that write, rename or remove a checkpoint or the model."""
        return [i for i, line in enumerate(self.writes, 1) if re.search(r"/\.saving|/\.removing|/checkpoint-", line)]

    def differences(self, folder: Path) -> list[str]:
        other = facts(folder)
        names = {*self.facts, *other} - self.varies
        return sorted(name for name in names if self.facts.get(name) != other.get(name))


def reference(setting: Setting, folder: Path) -> Reference:
    """Run a setting twice; what an earlier script left in `folder` is used again."""
    kept = folder / "reference.pickle"
    if kept.exists():
        return pickle.loads(kept.read_bytes())
    sides, seconds, record = [], 0.0, folder / "writes"
    for name in ("one", "two"):
        out = folder / f"reference-{name}"
        shutil.rmtree(out, ignore_errors=True)  # of a script that was ended
        before = record_writes(out, record) if name == "two" else lambda: None
        child = start(setting.command(out), folder / f"reference-{name}.log", before=before)
        child.wait()
        seconds = child.seconds  # of the second, for which the caches are filled
        if child.status:
            raise SystemExit(f"{setting.name}: the run that was left alone failed: {child.error()}")
        sides.append(facts(out))
    varies = {name for name in {*sides[0], *sides[1]} if sides[0].get(name) != sides[1].get(name)}
    if files := [name for name in varies if ":" not in name]:  # then no trial could show that it is the same run
        raise SystemExit(f"{setting.name}: two runs that were left alone differ in {', '.join(files)}")
    made = Reference(setting, out, sides[0], varies, seconds, record.read_text().splitlines())
    print(f"    {setting.name}: {seconds:.1f} s of CPU, {len(made.writes)} operations on files", flush=True)
    kept.write_bytes(pickle.dumps(made))
    return made


def row(name: str, failures: list[str]) -> str:
    """A line of the table; `failures` has an entry for each trial, "" where it held."""
    held = sum(not failure for failure in failures)
    return f"| {name} | {len(failures)} | {held} |"


def report(title: str, failures: list[str]) -> None:
    print(row(title, failures), flush=True)
    for i, failure in enumerate(failures):
        if failure:
            print(f"    trial {i}: {failure[:400]}", flush=True)


# A script of the campaign


def parse(description: str | None, *, trials: int, **more: dict[str, Any]) -> argparse.Namespace:
    """The arguments of a script: how many trials, of which settings, drawn how; `more` are options of its own."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=trials, help=f"over all settings (default {trials})")
    parser.add_argument("--only", default="", help="settings whose name contains this")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--work", type=Path, help="a folder for data, caches and runs left alone, which the next script uses again"
    )
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no trial after that many")
    for name, about in more.items():
        parser.add_argument(f"--{name}", **about)
    return parser.parse_args()


def each_setting(args: argparse.Namespace) -> Iterator[tuple[Reference, Path, Callable[..., Iterator[int]]]]:
    """A setting's runs that were left alone, a folder for its trials, and its share of a number of trials.

    With `all_here` the share is all of them. A share ends early where the setting's part of `--minutes` is over.
    """
    begun = time.monotonic()
    import_all()
    print("| what was tried | runs | held |\n|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as name:
        root = (args.work or Path(name)).resolve()
        root.mkdir(parents=True, exist_ok=True)
        use_home(root / "home")
        every = make_settings(root)
        chosen = [i for i, setting in enumerate(every) if args.only in setting.name]
        for place, i in enumerate(chosen):
            folder = root / str(i)
            folder.mkdir(exist_ok=True)
            now, left = time.monotonic(), len(chosen) - place
            until = now + (begun + 60 * args.minutes - now) / left

            def share(trials: int, all_here: bool = False, place: int = place, until: float = until) -> Iterator[int]:
                numbers = range(trials) if all_here else range(place, trials, len(chosen))
                return itertools.takewhile(lambda n: time.monotonic() < until, numbers)

            yield reference(every[i], folder), folder, share


def trials_in(folder: Path, numbers: Iterable[int], trial: Callable[[Path], str]) -> list[str]:
    """What failed in each trial, "" where nothing did. Each has a folder, which goes where it held."""
    failures = []
    for _ in numbers:
        place = Path(tempfile.mkdtemp(dir=folder))
        failures.append(trial(place))
        if not failures[-1]:
            shutil.rmtree(place)
    return failures
