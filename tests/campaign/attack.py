"""Hostile model folders, given to every command that opens a folder: does any of their code run?

    python tests/campaign/attack.py

Each folder carries a program that would leave a file behind: in a pickle, in a Python file that its configuration
names, in the base of an adapter, in run.yaml. A trial holds where that file does not appear, and where the command
ends in one line or has found nothing to refuse.
"""

import argparse
import json
import os
import pickle
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import runs

COMMANDS = {
    "check": ["check", "{}"],
    "predict": ["predict", "sentiment", "{}", "texts.txt", "--output", "out.jsonl"],
    "generate": ["generate", "{}", "texts.txt", "--output", "out.jsonl"],
    "score": ["score", "{}", "--dataset", "texts.txt"],
    "merge": ["merge", "{}", "merged"],
    "push": ["push", "{}", "user/name"],
    "demo": ["demo", "{}", "--export", "space"],
}
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
        folder = root / f"folder-{len(made)}"
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


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    runs.import_all()
    failed = 0
    print("| what was tried | runs | held |\n|---|---|---|")
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        runs.use_home(root / "home")
        setting = next(each for each in runs.make_settings(root) if each.name == "sentiment, epochs, best model")
        plain, mark = root / "plain", root / "mark"
        if runs.start(setting.command(plain), root / "log").wait():
            raise SystemExit((root / "log").read_text())
        (root / "texts.txt").write_text("a good film\n" * 8)
        os.chdir(root)
        (root / "hf-lm.py").write_text("from hf_lm.cli import main\nraise SystemExit(main())\n")
        made = folders(root, plain, mark)
        for command, words in COMMANDS.items():
            failures = []
            for what, folder in made.items():
                log = root / "command.log"
                log.unlink(missing_ok=True)
                argv = [str(root / "hf-lm.py"), *(word.replace("{}", str(folder)) for word in words)]
                child = runs.start(argv, log)
                child.wait()
                failure = "code ran" if mark.exists() else "a traceback" if child.traceback() else ""
                mark.unlink(missing_ok=True)
                failures.append(failure and f"{what}: {failure}")
                for left in ("merged", "space", "out.jsonl"):
                    path = root / left
                    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
            runs.report(f"hf-lm {command} on a hostile folder", failures)
            failed += sum(map(bool, failures))
        failures = []
        for what, folder in made.items():
            argv = [*setting.command(root / "trained"), "--model", str(folder), "--max_steps", "1"]
            child = runs.start(argv, log := root / "recipe.log")
            child.wait()
            failure = "code ran" if mark.exists() else "a traceback" if child.traceback() else ""
            failures.append(failure and f"{what}: {failure}")
            mark.unlink(missing_ok=True)
            log.unlink()
            shutil.rmtree(root / "trained", ignore_errors=True)
        runs.report("a recipe trains a hostile folder", failures)
        failed += sum(map(bool, failures))
    raise SystemExit(bool(failed))


if __name__ == "__main__":
    main()
