"""A model's folder, checked: its files, its report and card, and whether a fresh process loads it."""

import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hf_lm.files import CODE, fingerprint
from hf_lm.hub.credentials import find_secrets
from hf_lm.hub.fresh_load import fresh_load
from hf_lm.hub.records import read_report
from hf_lm.parsing.ranges import excessive

PATIENCE = 1800  # seconds that a stranger's model may take to load: a regular expression of it may never end
PICKLED = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".h5", ".msgpack")
# The code that a model of this package carries, as config.json names it: hf_lm.models.recurrent.
OUR_CODE = {"AutoConfig": "recurrent.RecurrentConfig", "AutoModelForCausalLM": "recurrent.RecurrentLMHeadModel"}


@dataclass
class Checked:
    """The result of a check: facts about a folder, and what is wrong with it."""

    facts: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    def expect(self, holds: bool, fact: str, wrong: str) -> None:
        self.facts.append(fact) if holds else self.wrong.append(wrong)


def check_folder(folder: str | Path) -> Checked:
    """Check a model's or an adapter's folder, and load it in a fresh process as a stranger would.

    No code from the folder runs, unless it is, byte for byte, the recurrent model's of this package, and none of an
    adapter, its base or a tokenizer. Nothing is asked of a network. Raises FileNotFoundError where there is no folder,
    and ValueError where it holds neither a model nor an adapter.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}.")
    adapter = (folder / "adapter_config.json").is_file()
    if not adapter and not (folder / "config.json").is_file():
        runs = ", ".join(path.parent.name for path in sorted(folder.glob("*/config.json"))[:3])
        hint = f"There is one in: {runs}." if runs else "Did the run end?"
        raise ValueError(f"{folder} holds no model (config.json) and no adapter (adapter_config.json). {hint}")
    checked = Checked()
    broken = _check_files(folder, checked)
    report = _check_report(folder, checked)
    if not broken:  # else loading would fail with less to say
        _check_loading(folder, adapter, report, checked)
    _check_card(folder, checked, expected=bool(report))
    secrets = find_secrets(folder, _published(folder))
    checked.expect(not secrets, "nothing looks like a secret", f"looks like a secret: {', '.join(secrets[:5])}")
    return checked


def _published(folder: Path) -> Iterator[Path]:
    """Every file but those of checkpoints, which no push uploads."""
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        if path.is_file() and not parts[0].startswith("checkpoint-") and parts[0] not in (".saving", ".removing"):
            yield path


def _check_files(folder: Path, checked: Checked) -> bool:
    """Formats, and files half written; returns whether loading must fail."""
    files = list(_published(folder))
    names = [path.relative_to(folder).as_posix() for path in files]
    pickled = [name for name in names if name.endswith(PICKLED)]
    weights = [path for path in files if path.suffix == ".safetensors" and path.parent == folder]
    half = [name for name in names if name.endswith((".tmp", ".incomplete", ".part"))]
    half += [f"{name} (empty)" for path, name in zip(files, names, strict=True) if not path.stat().st_size]
    half += [path.name for path in folder.glob("checkpoint-*") if not (path / "trainer_state.json").is_file()]
    half += [".saving"] * (folder / ".saving").exists()
    damaged = [] if weights else ["there are no weights in safetensors (model.safetensors)"]
    damaged += unreadable(folder, files)
    checked.wrong += damaged
    checked.expect(not half, "no file is half written", f"half written: {', '.join(half)}")
    checked.expect(
        not pickled,
        f"safetensors only, {sum(path.stat().st_size for path in weights) / 2**20:,.1f} MiB",
        f"pickled, which can run code when loaded: {', '.join(pickled)}",
    )
    return bool(damaged)


def unreadable(folder: Path, files: Iterable[Path]) -> list[str]:
    """What cannot be read of a folder's files, in words: weights and JSON half written, shards that are missing."""
    from safetensors import SafetensorError, safe_open

    damaged = []
    for path in files:
        name = path.relative_to(folder).as_posix()
        if path.suffix == ".safetensors":
            try:
                with safe_open(path, "numpy"):
                    continue
            except (SafetensorError, OSError) as error:
                damaged.append(f"{name} is damaged or half written: {str(error).splitlines()[0]}")
        if path.suffix != ".json":
            continue
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            damaged.append(f"{name} is no JSON: {str(error).splitlines()[0]}")
            continue
        shards: Any = content.get("weight_map") if isinstance(content, dict) else None
        if name.endswith("config.json") and not isinstance(content, dict):
            damaged.append(f"{name} holds no settings")
        elif name.endswith("config.json") and (problem := excessive(content)):
            damaged.append(f"{name}: {problem}")
        elif name.endswith(".safetensors.index.json") and not isinstance(shards, dict):
            damaged.append(f"{name} names no weights")
        elif name.endswith(".safetensors.index.json"):
            lost = sorted({str(name) for name in shards.values() if not (path.parent / str(name)).is_file()})
            damaged += [f"{name} names {shard}, which is missing" for shard in lost]
    return damaged


def differences(folder: Path, run: dict[str, Any] | None, report: dict[str, Any]) -> list[str]:
    """Where a folder is not what its report records, in words: other files, or arguments other than run.yaml's."""
    different, listed = [], report.get("files", {})
    for name, recorded in listed.items():
        path = folder / name
        if not path.is_file():
            different.append(f"{name} is missing")
        elif recorded != fingerprint(path):
            different.append(f"{name} is not the file of this run")
    if listed:
        weights = [path.name for path in folder.glob("*.safetensors")]
        different += [f"{name} is of another run" for name in weights if name not in listed]
    # A sweep writes the rate that it chose into run.yaml.
    chosen = ("learning_rate", "sweep") if report.get("sweep") else ()
    for name, value in report.get("arguments", {}).items():
        if run is not None and name not in chosen and not _same(run.get(name), value):
            different.append(f"{name} is {run.get(name)} in run.yaml and {value} in report.json")
    return different


def _same(value: object, other: object) -> bool:
    """Whether an argument of run.yaml is that of report.json, which keeps eight digits of a number."""
    if isinstance(value, float) and isinstance(other, int | float):
        return math.isclose(value, other, rel_tol=1e-7)
    return value == other


def _check_report(folder: Path, checked: Checked) -> dict[str, Any]:
    """The report, from this folder or the one above an adapter's; checks its files and its proofs."""
    home = next((place for place in (folder, folder.parent) if (place / "report.json").is_file()), None)
    if home is None:
        run = (folder / "run.yaml").is_file()
        unfinished = "run.yaml without report.json: the run did not end"
        checked.expect(not run, "no report.json: no recipe of hf_lm wrote it", unfinished)
        return {}
    try:
        report = read_report(home) or {}
        proofs = {name: proof["passed"] for name, proof in report.get("proofs", {}).items()}
        missing = [key for key in ("recipe", "data", "model", "proofs", "metrics") if key not in report]
    except (ValueError, TypeError, KeyError, AttributeError):
        checked.wrong.append("report.json is not what a recipe writes")
        return {}
    checked.expect(not missing, "report.json is complete", f"report.json lacks {', '.join(missing)}")
    if "files" in report and home == folder:
        others = differences(folder, None, report)
        checked.expect(not others, "every file is the one that the report records", "; ".join(others[:3]))
    words = {True: "passed", False: "failed", None: "switched off"}
    summary = "; ".join(
        f"{words[value]}: {', '.join(name for name, passed in proofs.items() if passed is value)}"
        for value in words
        if value in proofs.values()
    )
    checked.expect(False not in proofs.values(), f"proofs {summary or 'none'}", f"proofs {summary}")
    return report


def _check_card(folder: Path, checked: Checked, *, expected: bool) -> None:
    from huggingface_hub import ModelCard

    path = folder / "README.md"
    if not path.is_file():
        checked.expect(not expected, "no model card (README.md)", "there is no model card (README.md)")
        return
    try:
        data: Any = ModelCard.load(path).data  # raises where metadata or model-index are not what the Hub reads
    except Exception as error:  # of several libraries
        checked.wrong.append(f"the model card is not valid: {' '.join(str(error).split())[:200]}")
        return
    facts = ", ".join(f"{key} {value}" for key in ("pipeline_tag", "license") if (value := getattr(data, key, None)))
    checked.expect(
        bool(data.to_dict()),
        f"the model card's metadata is valid ({facts or 'no pipeline_tag'}; {len(data.eval_results or [])} results)",
        "the model card (README.md) has no metadata",
    )


def _check_loading(folder: Path, adapter: bool, report: dict[str, Any], checked: Checked) -> None:
    ours = not adapter and _is_our_code(folder)
    code = _foreign_code(folder, ours)
    if code:
        checked.wrong.append(f"it needs code of its own ({code}), which was not run: others will not trust it either")
        return
    if ours:
        checked.facts.append("it carries its own code, byte for byte the recurrent model of hf_lm")
    if adapter and not _check_base(folder, checked):
        return
    auto_class = report.get("model", {}).get("auto_class", "")
    try:
        loaded, _ = fresh_load(
            folder=str(folder.resolve()), adapter=adapter, trust=ours, auto_class=auto_class, patience=PATIENCE
        )
    except ChildProcessError as error:
        checked.wrong.append(f"a fresh process could not load it: {str(error)[:300]}")
        return
    checked.facts.insert(
        0,
        f"{loaded['architecture']}, {loaded['family']}: {loaded['parameters']:,} parameters in {loaded['dtype']}; "
        f"a fresh process loads it with {loaded['auto_class']}",
    )
    _check_loaded(loaded, adapter, report, checked)


def _is_our_code(folder: Path) -> bool:
    """Whether a folder holds the recurrent model of this package and no code beside it, so that it can be trusted."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    own = Path(__file__).parent.parent / "models"
    code = [path for path in _published(folder) if path.suffix == ".py"]
    return (
        config.get("model_type") == "hf_lm_recurrent"
        and config.get("auto_map") == OUR_CODE
        and {path.relative_to(folder).as_posix() for path in code} == {CODE}
        and all((own / path.name).read_bytes() == path.read_bytes() for path in code)
        # Code is looked for there wherever a model is trusted, also behind a link.
        and not (folder / "custom_generate").exists()
    )


def _foreign_code(folder: Path, ours: bool) -> str:
    """Where a folder's files name code that is not ours; "" where they name none."""
    for path in _published(folder):
        if path.suffix != ".json" or (ours and path == folder / "config.json"):
            continue
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            continue
        if "auto_map" in content:
            return f"auto_map in {path.relative_to(folder)}"
        if path.name == "adapter_config.json" and content.get("megatron_config"):
            return "megatron_core"  # a module that peft imports
    return ""


def _check_base(folder: Path, checked: Checked) -> bool:
    """Whether an adapter's base is on this machine, as a folder or in the cache, and needs no code of its own."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    adapter = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    base = adapter.get("base_model_name_or_path") or ""
    if not isinstance(base, str):
        checked.wrong.append(f"its base_model_name_or_path is {base!r:.60}, which is no name of a model")
        return False
    config: object = Path(base) / "config.json"
    if base and not Path(base).is_dir():
        try:
            config = try_to_load_from_cache(base, "config.json", revision=adapter.get("revision"))
        except HFValidationError:
            config = None
    if not base or not isinstance(config, (str, Path)) or not Path(config).is_file():
        checked.wrong.append(
            f"its base model {base!r} is not on this machine, as a folder or in the cache, so that nothing was loaded"
        )
        return False
    if "auto_map" in json.loads(Path(config).read_text(encoding="utf-8")):
        checked.wrong.append("its base needs code of its own (auto_map), which was not run")
        return False
    here = " (a folder of this machine: others need it too)" if Path(base).is_dir() else ""
    checked.facts.append(f"an adapter ({adapter.get('peft_type')}, rank {adapter.get('r')}) of {base}{here}")
    return True


def _check_loaded(loaded: dict[str, Any], adapter: bool, report: dict[str, Any], checked: Checked) -> None:
    missing = loaded["missing"]
    checked.expect(not missing, "every weight is there", f"missing weights, which start at random: {missing}")
    checked.expect(loaded["finite"], "its logits are finite", "its logits are not finite numbers")
    expected = report.get("model", {}).get("parameters")
    if expected and not adapter:
        checked.expect(
            expected == loaded["parameters"],
            "as many parameters as the report says",
            f"{loaded['parameters']:,} parameters, {expected:,} in the report",
        )
    tokens, rows = loaded["tokens"], loaded["rows"]
    checked.expect(
        0 < tokens <= rows and loaded["encodes"],
        f"the tokenizer fits: ids below {tokens:,}, {rows:,} embedding rows",
        f"the tokenizer has ids up to {tokens - 1:,}, the embedding {rows:,} rows"
        if tokens > rows
        else "the tokenizer turns text into nothing: its files are missing",
    )
    if loaded["written"]:
        tokens, rows = loaded["written"]
        checked.expect(
            tokens <= rows,
            f"the target tokenizer fits: ids below {tokens:,}, {rows:,} embedding rows",
            f"target_tokenizer/ has ids up to {tokens - 1:,}, the decoder {rows:,} embedding rows",
        )
    (pad, pad_token), (eos, eos_token) = loaded["pad"], loaded["eos"]
    if eos is not None and loaded["generates"]:
        labels = report.get("proofs", {}).get("label_coverage")
        if pad != eos:
            checked.facts.append(f"padding ({pad_token}) is not the end of text ({eos_token})")
        elif labels is None:  # no run of ours learned it from labels: reinforce, hf-lm merge, a stranger
            checked.facts.append(f"padding is the end of text ({eos_token}); whether it ends a text is not known here")
        else:
            checked.expect(
                bool(labels.get("passed")),
                f"padding is the end of text ({eos_token}), which was learned all the same (label_coverage)",
                f"padding is the end of text ({eos_token}): trained with it, a model does not learn to stop",
            )
    if loaded["generates"]:
        ends = loaded["ends"]
        checked.expect(
            bool(ends) and (eos is None or eos in ends) and all(0 <= end < rows for end in ends),
            f"generation ends at {', '.join(map(str, ends))}",
            f"generation ends at {', '.join(map(str, ends)) or 'nothing'}, the tokenizer's end of text is {eos}",
        )
        if loaded["template"]:
            checked.facts.append("it has a chat template")
