"""Hostile model folders, given to every command that opens a folder: does any of their code run?

    python tests/campaign/attack.py

Each folder carries a program that would leave a file behind: in a pickle, in a Python file that its configuration
names, in the base of an adapter, in run.yaml. A trial holds where that file does not appear, and where the command
ends in one line or has found nothing to refuse. First the programs are run on purpose: they do leave the file.
"""

import argparse
import json
import os
import pickle
import runpy
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import runs

COMMANDS = {  # the kind of model that a command opens, and its words; {} is the folder
    "check": ("pretrain", ["check", "{}"]),
    "predict": ("sentiment", ["predict", "sentiment", "{}", "texts.txt", "--output", "out.jsonl"]),
    "generate": ("pretrain", ["generate", "{}", "--prompts", "texts.txt", "--output", "out.jsonl"]),
    "score": ("pretrain", ["score", "{}", "--dataset", "text.jsonl"]),
    "merge": ("sentiment", ["merge", "{}", "merged"]),
    "push": ("pretrain", ["push", "{}", "user/name"]),
    "demo": ("sentiment", ["demo", "{}", "--export", "space"]),
}
REFUSED = ("hf-lm push", "hf-lm merge")  # also without an attack: there is no network, and no adapter
PICKLES = (
    "pytorch_model.bin",
    "adapter_model.bin",
    "training_args.bin",
    "optimizer.pt",
    "scheduler.pt",
    "rng_state.pth",
)


class Payload:
    """A pickle of this leaves a file behind when it is loaded."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"touch {self.mark}",)


def code(mark: Path) -> str:
    return f"from pathlib import Path\nPath({str(mark)!r}).touch()\nclass Evil: pass\n"


def edit(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text() if path.exists() else "{}") | values))


def folders(root: Path, plain: Path, mark: Path) -> dict[str, Path]:
    """The hostile folders, by what is hostile about them."""
    made = {}

    def hostile(name: str, change: Callable[[Path], object], *, without_weights: bool = False) -> None:
        folder = root / f"{plain.name}-{len(made)}"
        shutil.copytree(plain, folder)
        if without_weights:
            (folder / "model.safetensors").unlink()
        change(folder)
        made[name] = folder

    def add(folder: Path, auto: dict[str, str], config: str, where: str = "evil.py") -> None:
        target = folder / where
        target.parent.mkdir(exist_ok=True)
        target.write_text(code(mark))
        edit(folder / config, auto_map=auto)

    for name in PICKLES:
        hostile(
            f"a pickle as {name}",
            lambda folder, name=name: (folder / name).write_bytes(pickle.dumps(Payload(mark))),
            without_weights=name == "pytorch_model.bin",
        )
    for config in ("config.json", "tokenizer_config.json"):
        for auto in ("AutoConfig", "AutoModel", "AutoModelForCausalLM", "AutoTokenizer"):
            value: object = [None, "evil.Evil"] if auto == "AutoTokenizer" else "evil.Evil"
            hostile(f"auto_map {auto} in {config}", lambda f, a=auto, v=value, c=config: add(f, {a: v}, c))
    hostile(
        "auto_map with a folder in it",
        lambda f: add(f, {"AutoConfig": "dir/inner--evil.Evil"}, "config.json", "dir/evil.py"),
    )

    def adapter(folder: Path) -> None:
        inner = folder / "base"
        shutil.copytree(plain, inner)
        add(inner, {"AutoConfig": "evil.Evil", "AutoModelForSequenceClassification": "evil.Evil"}, "config.json")
        (folder / "config.json").unlink()
        edit(folder / "adapter_config.json", peft_type="LORA", base_model_name_or_path=str(inner), auto_map={})

    hostile("an adapter whose base has code", adapter)
    hostile(
        "a run.yaml that names a function", lambda f: (f / "run.yaml").write_text("# hf_lm run\nreward: evil:Evil\n")
    )
    return made


def check_payloads(root: Path, mark: Path) -> None:
    """Run each kind of program on purpose: one that leaves no file behind could not be caught."""
    (root / "evil.py").write_text(code(mark))
    for run in (lambda: pickle.loads(pickle.dumps(Payload(mark))), lambda: runpy.run_path(str(root / "evil.py"))):
        run()
        mark.unlink()  # raises where it is not there


def opened(argv: list[str], root: Path) -> runs.Child:
    """A command, or a recipe, that has ended; what it wrote is removed."""
    log = root / "command.log"
    log.unlink(missing_ok=True)
    before = set(root.iterdir())
    child = runs.start(argv, log)
    child.wait()
    for path in set(root.iterdir()) - {*before, log, root / "mark"}:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return child


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="commands whose name contains this")
    args = parser.parse_args()
    runs.import_all()
    failed = 0
    print("| what was tried | runs | held |\n|---|---|---|")
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        runs.use_home(root / "home")
        mark = root / "mark"
        check_payloads(root, mark)
        os.chdir(root)
        (root / "texts.txt").write_text("a good film\n" * 8)
        (root / "hf-lm.py").write_text("from hf_lm.cli import main\nraise SystemExit(main())\n")
        hostile, plain, settings = {}, {}, {}
        for setting in runs.make_settings(root):
            if setting.name in ("pretrain", "sentiment, epochs, best model"):
                kind = Path(setting.recipe).stem
                settings[kind], plain[kind] = setting, root / f"plain-{kind}"
                if runs.start(setting.command(plain[kind]), root / "log").wait():
                    raise SystemExit((root / "log").read_text())
                hostile[kind] = folders(root, plain[kind], mark)
        trials = {
            f"hf-lm {command}": (kind, [str(root / "hf-lm.py"), *words]) for command, (kind, words) in COMMANDS.items()
        }
        recipe = settings["sentiment"].command(root / "trained", "--model", "{}", "--max_steps", "1")
        trials["sentiment.py --model"] = "sentiment", recipe
        for command, (kind, words) in trials.items():
            if args.only not in command:
                continue
            child = opened([word.replace("{}", str(plain[kind])) for word in words], root)
            refused = bool(child.status) and command not in REFUSED  # then none of the folders would be opened
            failures = [f"a folder without an attack is refused: {child.error()}"] * refused
            for what, folder in hostile[kind].items():
                child = opened([word.replace("{}", str(folder)) for word in words], root)
                failure = "code ran" if mark.exists() else "a traceback" if child.traceback() else ""
                mark.unlink(missing_ok=True)
                failures.append(failure and f"{what}: {failure}")
            runs.report(f"a hostile folder, {command}", failures)
            failed += sum(map(bool, failures))
    raise SystemExit(bool(failed))


if __name__ == "__main__":
    main()
