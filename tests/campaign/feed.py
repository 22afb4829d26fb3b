"""Malformed input, fed to every recipe and command: does each end in one line, in seconds, with nothing written?

    python tests/campaign/feed.py                     # all, in one process; prints a table of tried and held
    python tests/campaign/feed.py --only data --show  # one area, with the line that each input got

An input holds where the command ends with another exit code than 0 and one `error:` line of fewer than 500 characters,
without a traceback, in less than 10 seconds of CPU; an input marked as harmless may also be accepted. Recipes are fed
through `hf-lm inspect` and `hf-lm plan`, which train nothing. Exit code 1 where an input does not hold.
"""

import argparse
import contextlib
import io
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import get_type_hints

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("HF_HOME", tempfile.mkdtemp(prefix="hf_lm-feed-"))

ROOT = Path(__file__).parent.parent.parent
SECONDS = 10  # CPU seconds that an input may take
LONGEST = 500  # characters of an error


@dataclass
class Input:
    """A command line, and whether accepting it is right too. `files` are written into the folder it runs in."""

    area: str
    argv: list[str]
    harmless: bool = False
    files: dict[str, bytes] = field(default_factory=dict)
    note: str = ""


@dataclass
class Outcome:
    input: Input
    code: int
    error: str
    seconds: float

    @property
    def complaint(self) -> str:
        """What did not hold; "" where all did."""
        lines = [line for line in self.error.splitlines() if line.startswith("error:")]
        if self.seconds > SECONDS:
            return f"took {self.seconds:.0f} s"
        if self.input.argv[0] == "check" and self.code == 1 and not self.error:
            return ""  # its list of what is wrong
        if self.code == 0:
            return "" if self.input.harmless else "accepted"
        if "Traceback" in self.error:
            return "a traceback"
        if len(lines) != 1:
            return f"{len(lines)} error lines"
        return "" if len(lines[0]) < LONGEST else f"{len(lines[0])} characters"

    @property
    def shown(self) -> str:
        files = "; ".join(f"{name}: {data[-60:]!r}" for name, data in self.input.files.items())
        what = f"hf-lm {' '.join(self.input.argv)!r:.150} {self.input.note or files[:200]}"
        return f"{self.complaint or 'held'}: {what}\n    {self.line[:300] or self.error[-300:]}"

    @property
    def line(self) -> str:
        return next((line for line in self.error.splitlines() if line.startswith("error:")), "")


class _TooSlow(BaseException):
    pass


def feed(given: Input, folder: Path) -> Outcome:
    """Run a command line in this process and in a folder that holds the input's files."""
    from hf_lm.cli import main

    for name, data in given.files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)

    def stop(number: int, frame: object) -> None:
        raise _TooSlow

    signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, 2 * SECONDS)
    error, begun, code = io.StringIO(), time.process_time(), 0
    with contextlib.chdir(folder), contextlib.redirect_stderr(error), contextlib.redirect_stdout(io.StringIO()):
        try:
            main(given.argv)
        except SystemExit as ended:
            if ended.code == 130:  # Ctrl-C
                raise KeyboardInterrupt from None
            code = ended.code if isinstance(ended.code, int) else 1
        except BaseException as escaped:
            error.write(f"Traceback: {type(escaped).__name__}: {escaped}")
            code = 1
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
    return Outcome(given, code, error.getvalue(), time.process_time() - begun)


# What is fed

NUMBERS = ("-1e9", "nan", "inf", "x", "", "1e999", "9" * 5000, "0x10", "-0.5.5", "\u0661\u0662x", "true", "1,5")
TEXTS = (
    "../../etc/passwd",
    "/dev/null",
    "a b/c",
    "\ud83d\ude00" * 50,
    "x" * 5000,
    "\x1b[2J",
    "--",
    "{}",
    "[]",
    "None",
    "~nobody/x",
)
YAMLS = (
    *("{", "[1", "a: [", "- a", "text", "1", "? [a, b]\n: 1", "learning_rate: [1, 2]", "learning_rate: {a: 1}"),
    *(
        "learning_rate: null",
        "seed: 2020-13-45",
        "seed: !!binary aGk=",
        "seed: !!set {a, b}",
        "seed: .nan",
        "seed: .inf",
    ),
    *(
        "max_steps: [[[1]]]",
        "max_steps: ''",
        "learning_rate: !!python/object/apply:os.system [ls]",
        "seed: 1\nseed: 2",
    ),
    *(
        "seed: &a 1\nmax_steps: *a",
        "lr_scheduler_kwargs: {a: &a {b: 1}, c: *a}",
        "lr_scheduler_kwargs: [1]",
        "\x00",
        "a\tb:\tc",
    ),
    *(
        "lr_scheduler_kwargs: '{bad'",
        "bf16: maybe",
        "output_dir: null",
        "output_dir: [a]",
        "output_dir: ''",
        "nope: 1",
    ),
    *(
        "seed: " + "9" * 5000,
        "[" * 5000,
        "{a: " * 3000,
        "skip_proofs: [null]",
        "skip_proofs: [[a]]",
        "skip_proofs: {a: 1}",
    ),
    *(
        "report_to: [null]",
        "optim: adam",
        "eval_strategy: [steps]",
        "lr_scheduler_type: 7",
        "config: x",
    ),
    *(
        "a: &a [x,x]\nb: &b [*a,*a]\nc: &c [*b,*b]\nlr_scheduler_kwargs: {x: *c}",
        "# c\n---\nseed: 1\n---\nseed: 2",
        "seed: 1:2:x",
    ),
)
ROWS = {  # a recipe, the options that name its columns, and a good row
    "sentiment": {"text": "word {i}", "label": "{even}"},
    "translation": {"en": "word {i}", "de": "Wort {i}"},
    "summarization": {"source": "long word {i}", "target": "word {i}"},
    "question_answering": {
        "question": "what {i}?",
        "context": "it is {i}",
        "answers": {"text": ["{i}"], "answer_start": [6]},
    },
    "chat": {"messages": [{"role": "user", "content": "q {i}"}, {"role": "assistant", "content": "a {i}"}]},
    "preference": {"prompt": "q {i}", "chosen": "good {i}", "rejected": "bad {i}"},
    "reinforce": {"prompt": "q {i}", "reference": "{i}"},
    "pretrain": {"text": "a document with words {i}"},
}
CELLS = (
    None,
    float("nan"),
    float("inf"),
    3,
    [],
    ["a", "b"],
    {},
    {"a": 1},
    True,
    "",
    " ",
    "\ud800",
    [None],
    [[["x"]]],
    -1,
    1e308,
)
DAMAGED = {
    "d.jsonl": (
        b"{",
        b"[1, 2]",
        b'"text"\n1',
        b"null",
        b"\xff\xfe{\x00",
        '{"text": "\u4f60\u597d"}'.encode("gbk") * 9,
        b"[" * 9000,
        b"\x00" * 99,
        b"",
    ),
    "d.json": (
        b"{",
        b"[1, 2]",
        b'{"data": 3}',
        b"nul",
        b"\xff\xfe[\x00",
        b"[" * 9000,
        b"{}",
        b"[]",
        b'{"a": ' * 9000,
        b"",
    ),
    "d.csv": (
        b"text,text\na,b",
        b"a,b\n1",
        b"a,b\n1,2,3",
        b"\xff\xfea\x00,\x00b\x00",
        b"text",
        b"\n\n",
        b'"""',
        b"",
        "文本,标签\n好,1\n".encode("gbk") * 99,
    ),
    "d.tsv": (b"text\ttext\na\tb", b"a\tb\n1", b"\x00\x00", b""),
    "d.parquet": (b"PAR1", b"PAR1" + bytes(99) + b"PAR1", b"text", b""),
    "d.arrow": (b"ARROW1\x00\x00", b"\xff\xff\xff\xff\x08\x00\x00\x00" + bytes(99), b"text", b""),
    "d.txt": ("你好，世界。".encode("gbk") * 99, "text".encode("utf-16"), b"\x00" * 99, b" \n", b""),
    "d.jsonl.gz": (b"\x1f\x8b", b"\x1f\x8b\x08\x00" + bytes(50), b"text", b""),
    "d.jsonl.zst": (b"\x28\xb5\x2f\xfd", b"\x28\xb5\x2f\xfd" + bytes(50), b"text", b""),
    "d.xyz": (b"text",),
}


def recipe_numbers() -> Iterator[Input]:
    """Each number of each recipe, and those of the Trainer, given what is none or cannot be."""
    import runpy

    from hf_lm.parsing.ranges import TRAINER_RANGES

    for recipe in sorted(path.stem for path in (ROOT / "recipes").glob("*.py")):
        declared = runpy.run_path(str(ROOT / "recipes" / f"{recipe}.py"), run_name="recipe")["Arguments"]
        hints = get_type_hints(declared)
        for f in fields(declared):
            if hints[f.name] in (int, float):
                for bad in NUMBERS[:8]:
                    yield Input("numbers of recipes", ["inspect", recipe, f"--{f.name}={bad}"])
    for name in TRAINER_RANGES:
        for bad in NUMBERS:
            yield Input("numbers of the Trainer", ["inspect", "sentiment", f"--{name}={bad}"])


def recipe_texts() -> Iterator[Input]:
    """Names of models, data and files that lead nowhere, and unknown options."""
    for recipe in ROWS:
        for bad in TEXTS:
            yield Input("names", ["inspect", recipe, f"--dataset={bad}"])
        for bad in (*TEXTS, "bret", "no/such/model"):
            yield Input(
                "names", ["inspect", recipe, f"--model={bad}", "--dataset", f"{recipe}.jsonl"], files=_good(recipe)
            )
        for option in (
            "--lerning_rate",
            "---",
            "-x",
            "--model",
            "--config",
            "--config=none.yaml",
            "stray",
            "--dataset=",
        ):
            yield Input("names", ["plan", recipe, option])


def yaml_files() -> Iterator[Input]:
    """Configurations that are none, or hold values of another kind."""
    for recipe in ("sentiment", "pretrain"):
        for text in YAMLS:
            files = {"c.yaml": text.encode("utf-8", "surrogatepass")}
            yield Input("YAML", ["inspect", recipe, "--config", "c.yaml"], files=files)
        for data in (b"\xff\xfes\x00", b"caf\xe9: 1", bytes(range(256)), b"seed: 1\n" * 20_000):
            yield Input("YAML", ["inspect", recipe, "--config", "c.yaml"], files={"c.yaml": data})
        for key in ("model", "dataset", "learning_rate", "output_dir", "bf16", "skip_proofs"):
            for value in ("[]", "[a, [b]]", "{a: b}", "!!binary aGk=", "{a: {b: [1, {c: d}]}}"):
                if (key, value) not in {("skip_proofs", "[]")}:
                    yield Input(
                        "YAML", ["plan", recipe, "--config", "c.yaml"], files={"c.yaml": f"{key}: {value}".encode()}
                    )


def data_rows() -> Iterator[Input]:
    """Data in which one cell, a column or the file is not what a recipe reads."""
    for recipe, row in ROWS.items():
        for column in row:
            for cell in CELLS:
                rows = _rows(recipe)
                rows[7][column] = cell
                taken = not _must_fail(recipe, column, cell)
                note = f"{column} of row 8 is {cell!r}"
                yield Input("rows", _inspect(recipe), harmless=taken, files=_files(recipe, rows), note=note)
            rows = _rows(recipe)
            del rows[7][column]
            note = f"row 8 lacks {column}"
            yield Input("rows", _inspect(recipe), harmless=True, files=_files(recipe, rows), note=note)
            for row_without in (rows := _rows(recipe)):
                row_without.pop(column)
            taken, note = (recipe, column) == ("reinforce", "reference"), f"no row has {column}"
            yield Input("rows", _inspect(recipe), harmless=taken, files=_files(recipe, rows), note=note)
        for stray in (1, "text", None, [1]):
            files = _files(recipe, [*_rows(recipe)[:7], stray, *_rows(recipe)[7:]])
            yield Input("rows", _inspect(recipe), files=files, note=f"row 8 is {stray!r}")
    for recipe in ("sentiment", "question_answering", "pretrain"):
        for name, datas in DAMAGED.items():
            for data in datas:
                yield Input("files", ["inspect", recipe, "--dataset", name], files={name: data})


def _must_fail(recipe: str, column: str, cell: object) -> bool:
    """Whether a cell is neither text nor a number, nor absent, nor what the recipe takes for several texts."""
    if not cell or not isinstance(cell, list | dict):
        return False
    several = {"translation", "summarization", "pretrain"}
    return not (isinstance(cell, list) and cell != [[["x"]]] and (recipe in several or column == "answers"))


def commands() -> Iterator[Input]:
    """Commands with folders that are no models, files that are no data, and options that are none."""
    broken = {
        "empty": {"x.txt": b""},
        "no_json": {"config.json": b"{"},
        "list": {"config.json": b"[]"},
        "no_type": {"config.json": b"{}"},
        "other_type": {"config.json": b'{"model_type": "nope\\u001b[2J"}'},
        "vocab": {"config.json": b'{"model_type": "gpt2", "vocab_size": "many"}'},
        "null": {"config.json": b'{"model_type": "gpt2", "vocab_size": null}'},
        "dtype": {"config.json": b'{"model_type": "gpt2", "dtype": "float99"}'},
        "deep": {"config.json": b'{"a": ' * 5000},
        "no_weights": {
            "config.json": b'{"model_type": "gpt2", "n_embd": 8, "n_head": 2, "n_layer": 1, "vocab_size": 9}'
        },
        "cut": {"config.json": b'{"model_type": "gpt2"}', "model.safetensors": b"\xff" * 20},
        "tokenizer": {"config.json": b'{"model_type": "gpt2"}', "tokenizer.json": b"{}", "model.safetensors": b""},
        "pickled": {"config.json": b'{"model_type": "gpt2"}', "pytorch_model.bin": b"\x80\x02}q\x00."},
        "adapter": {"adapter_config.json": b"[]"},
        "own_base": {"adapter_config.json": b'{"peft_type": "LORA", "base_model_name_or_path": "own_base"}'},
        "peft": {"adapter_config.json": b'{"peft_type": "NOPE", "base_model_name_or_path": "x"}'},
        "report": {"report.json": b'{"model": 3}', "config.json": b'{"model_type": "gpt2"}', "run.yaml": b"[1"},
        "index": {"config.json": b'{"model_type": "gpt2"}', "model.safetensors.index.json": b'{"weight_map": 3}'},
    }
    for name, held in broken.items():
        files = {f"{name}/{path}": data for path, data in held.items()} | {
            "in.txt": b"a text\n",
            "in.jsonl": b'{"text": "a", "label": "b"}\n',
        }
        for argv in (
            ["check", name],
            ["generate", name, "a prompt"],
            ["predict", "sentiment", name, "in.txt"],
            ["score", name, "--dataset", "in.jsonl", "--task", "sentiment"],
            ["merge", name, "merged"],
            ["compare", name, name],
            ["push", name, "me/it"],
            ["chat", name],
            ["write", name],
            ["inspect", "pretrain", "--model", name, "--dataset", "in.jsonl"],
            ["inspect", "sentiment", "--model", name],
            ["plan", "sentiment", "--model", name],
        ):
            yield Input("folders", argv, files=files)
    for data in (b"{", b"[]", b"3", b'{"predictions": 3}', b"\xff\xfe", b""):
        files = {
            "a/report.json": data,
            "b/report.json": data,
            "a/predictions.jsonl": data,
            "b/predictions.jsonl": data,
        }
        yield Input("folders", ["compare", "a", "b"], files=files)
    for name, datas in DAMAGED.items():
        for data in datas:
            yield Input("files", ["predict", "sentiment", "no_model", name], files={name: data})
            yield Input("files", ["generate", "no_model", "--prompts", name], files={name: data})
    for argv in (
        *(
            ["generate", "m", "p", "--device", "foo"],
            ["generate", "m", "--temp", "1"],
            ["score", "m"],
            ["score", "m", "--dataset", ""],
        ),
        *(
            ["predict", "nope", "m", "x.txt"],
            ["predict", "sentiment", "m", ""],
            ["copy", "nope"],
            ["copy", ""],
            ["run", "nope"],
        ),
        *(
            ["plan", "nope"],
            ["inspect", "nope.py"],
            ["plan", "sentiment", "--gpu", "nope"],
            ["push", "", ""],
            ["check", ""],
        ),
        *(
            ["score", "m", "--dataset", "d", "--output", "."],
            ["score", "m", "--dataset", "d", "--output", ""],
            ["merge", ""],
        ),
        *(
            ["compare", "x"],
            ["completion", "sh"],
            ["demo", "nothing"],
            ["demo", "m", "--export", ""],
            ["write", "m", "/"],
        ),
        *(
            ["write", "m", "bad.txt"],
            ["chat", "m", "--load", "bad.txt"],
            ["chat", "m", "--template", "bad.txt"],
            ["chat", ""],
        ),
    ):
        yield Input("options", list(argv), files={"bad.txt": b"\xff\xfe\x00"})


def _rows(recipe: str) -> list[dict]:
    text = json.dumps(ROWS[recipe])
    return [json.loads(text.replace("{i}", str(i)).replace("{even}", "no" if i % 2 else "yes")) for i in range(40)]


def _files(recipe: str, rows: list) -> dict[str, bytes]:
    return {f"{recipe}.jsonl": "".join(json.dumps(row) + "\n" for row in rows).encode()}


def _good(recipe: str) -> dict[str, bytes]:
    return _files(recipe, _rows(recipe))


def _inspect(recipe: str) -> list[str]:
    small = {"pretrain": ["--vocab_size", "300", "--block_size", "16"]}.get(recipe, [])
    return ["inspect", recipe, "--dataset", f"{recipe}.jsonl", *small]


def inputs() -> list[Input]:
    return [given for area in (recipe_numbers, recipe_texts, yaml_files, data_rows, commands) for given in area()]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", default="", help="areas whose name holds this")
    parser.add_argument("--at_most", type=int, default=0, help="inputs, drawn by --seed; 0 is all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--show", action="store_true", help="the line that each input got")
    args = parser.parse_args()
    chosen = [given for given in inputs() if args.only in given.area]
    if args.at_most and len(chosen) > args.at_most:
        chosen = random.Random(args.seed).sample(chosen, args.at_most)
    outcomes: list[Outcome] = []
    with contextlib.suppress(KeyboardInterrupt):  # Ctrl-C ends with the table of what was tried
        for number, given in enumerate(chosen, 1):
            folder = Path(tempfile.mkdtemp(prefix="hf_lm-feed-"))
            outcomes.append(feed(given, folder))
            shutil.rmtree(folder)
            if outcomes[-1].complaint or args.show:
                print(f"{number}: {outcomes[-1].shown}", flush=True)
    sys.exit(show(outcomes))


def show(outcomes: list[Outcome]) -> int:
    """Print the table; returns the exit code."""
    tried, held, refused = Counter[str](), Counter[str](), Counter[str]()
    for outcome in outcomes:
        tried[outcome.input.area] += 1
        held[outcome.input.area] += not outcome.complaint
        refused[outcome.input.area] += outcome.code != 0
    print("\n| area | tried | refused in one line or harmless | of these refused |\n|---|---|---|---|")
    for area, count in tried.items():
        print(f"| {area} | {count:,} | {held[area]:,} | {refused[area]:,} |")
    print(f"| all | {tried.total():,} | {held.total():,} | {refused.total():,} |")
    print(f"\nslowest: {max((outcome.seconds for outcome in outcomes), default=0):.1f} s of CPU")
    return int(held.total() < tried.total())


if __name__ == "__main__":
    main()
