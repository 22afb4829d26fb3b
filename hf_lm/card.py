"""The model card, drawn from the report: valid metadata for the Hub, plain words for people."""

import os
import re
from pathlib import Path
from typing import Any

import yaml

from hf_lm.plots import TUNING
from hf_lm.report import SHOWN, beside, in_words, warnings

# What a recipe makes, in a reader's words.
KINDS = {
    "pretrain": "causal language model",
    "sentiment": "text classifier",
    "question_answering": "model that answers questions from a text",
    "translation": "translation model",
    "summarization": "summarization model",
    "chat": "model that answers in a conversation",
    "preference": "model that answers in a conversation, tuned to preferences",
    "reinforce": "model that answers in a conversation, tuned by rewards",
}


CALLS = {
    "sentiment": 'print(answer("Better than I had hoped."))',
    "question_answering": 'print(answer(question="Who came?", context="Only Ann came."))',
    "translation": 'print(answer("Good morning."))',
    "summarization": 'print(answer("A long text ..."))',
}


def write_card(report: dict[str, Any], folder: str | Path) -> None:
    """Write README.md. Text that comes from data or from the model is shown as text, whatever it holds."""
    folder = Path(folder)
    sections = [
        _metadata(report, folder),
        _introduction(report, folder),
        _numbers(report),
        _classes(report),
        _worst(report),
        _proofs(report),
        _data(report),
        _training(report, folder),
        _samples(report),
        _limits(report),
    ]
    path = folder / "README.md.tmp"
    path.write_text("\n\n".join(section for section in sections if section) + "\n", encoding="utf-8")
    os.replace(path, folder / "README.md")


def _metadata(report: dict[str, Any], folder: Path) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    results = [
        EvalResult(
            task_type=report.get("pipeline_tag", "text-generation"),
            dataset_type="text",
            dataset_name=f"{report['data']['source']} ({split})",
            metric_type=name,
            metric_name=_interval_name(name, metric),
            metric_value=metric["value"],
        )
        for split, metrics in report.get("metrics", {}).items()
        for name, metric in metrics.items()
        if "value" in metric
    ]
    base = report.get("model", {}).get("base")
    card = ModelCardData(
        library_name="transformers",
        pipeline_tag=report.get("pipeline_tag"),
        tags=["hf_lm"],
        base_model=base if base and _is_hub_id(base) else None,
        datasets=[source] if _is_hub_id(source := report.get("data", {}).get("source", "").split(":")[0]) else None,
        model_name=folder.resolve().name,
        eval_results=results,
    )
    return f"---\n{card.to_yaml()}\n---"


def _interval_name(name: str, metric: dict[str, Any]) -> str:
    interval = f" (95 % interval {metric['low']:.4g} to {metric['high']:.4g})" if "low" in metric else ""
    return name.replace("_", " ") + interval


def _is_hub_id(name: str) -> bool:
    return bool(re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name)) and not Path(name).exists()


def _introduction(report: dict[str, Any], folder: Path) -> str:
    model = report.get("model", {})
    recurrent = model.get("model_type") == "hf_lm_recurrent"
    trust = ", trust_remote_code=True" if recurrent else ""
    kind, auto_class = KINDS.get(report.get("recipe", ""), "model"), model.get("auto_class", "AutoModel")
    adapter = (folder / "adapter_config.json").is_file()
    lines = [
        f"# {folder.resolve().name}",
        "",
        f"A {kind} ({model.get('architecture')}, {model.get('parameters', 0):,} parameters), "
        + ("trained further" if model.get("base") else "trained from scratch")
        + f" on {report.get('data', {}).get('source', 'text')} with hf_lm.",
        "",
        "```python",
        f"from transformers import {auto_class}, AutoTokenizer",
        "",
        'name = "."  # this folder, or its name on the Hub',
        f"model = {auto_class}.from_pretrained(name{trust})",
        f"tokenizer = AutoTokenizer.from_pretrained(name{trust})",
        "```",
    ]
    if call := CALLS.get(report.get("recipe", "")):
        lines += ["", "or, in three lines:", "", "```python", "from hf_lm import pipeline", ""]
        lines += [f'answer = pipeline("{report["pipeline_tag"]}", model=".")', call, "```"]
    if (folder / "chat_template.jinja").is_file():
        lines += [
            "",
            "It answers in the form of its chat template:",
            "",
            "```python",
            'messages = [{"role": "user", "content": "What is json.dumps for?"}]',
            'prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt")',
            "print(tokenizer.decode(model.generate(**prompt)[0], skip_special_tokens=True))",
            "```",
        ]
    if adapter:
        lines += ["", "This is an adapter: loading it needs peft, and its base model."]
    if recurrent:
        lines += [
            "",
            "The model carries its own code (recurrent.py); after `import hf_lm` it loads without that trust.",
        ]
    return "\n".join(lines)


def _numbers(report: dict[str, Any]) -> str:
    if not report.get("metrics"):
        return ""
    unit = report.get("unit", "examples")
    lines = ["## How good it is", "", f"| split | metric | value (95 % interval over {unit}) | baseline |"]
    lines.append("|---|---|---|---|")
    for split, metrics in report["metrics"].items():
        for name, metric in metrics.items():
            shown = SHOWN.get(name, (name,))[0]
            lines.append(f"| {split} | {shown} | {in_words(name, metric)} | {beside(name, metric)} |")
    yardsticks = report.get("yardsticks", {})
    if yardsticks:
        lines += [
            "",
            f"As a yardstick, `lzma` needs {yardsticks['lzma']:.3f} bits per byte for the test text alone and "
            f"{yardsticks['lzma_with_train']:.3f} after it has read the training text: the further apart the two, the "
            "more the test text repeats the training text.",
        ]
    for name, signature in report.get("signatures", {}).items():
        lines += ["", f"{SHOWN[name][0]}: `{signature}`"]
    lines += ["", *(f"- {_in_table(said)}" for said in warnings(report))]
    lines += ["", "![validation by step](plots/metric.png)", "", "![loss](plots/loss.png)"]
    logged = {key for entry in report.get("history", []) for key in entry}
    for name, (key, title, _) in TUNING.items():
        if key in logged:
            lines += ["", f"![{title}](plots/{name}.png)"]
    return "\n".join(lines)


def _classes(report: dict[str, Any]) -> str:
    """Precision, recall and F1 of each class on the last split measured."""
    if not report.get("classes"):
        return ""
    lines = ["| class | rows | precision | recall | F1 |", "|---|---|---|---|---|"]
    for label, found in report["classes"].items():
        shares = " | ".join(f"{found[key]:.1f} %" for key in ("precision", "recall", "f1"))
        lines.append(f"| {_in_table(label)} | {found['rows']:,} | {shares} |")
    return "\n".join(lines)


def _worst(report: dict[str, Any]) -> str:
    """The answers that were furthest from the reference, so that errors can be read."""
    if not report.get("worst"):
        return ""
    lines = ["<details><summary>The worst answers</summary>", "", "| input | reference | said |", "|---|---|---|"]
    for example in report["worst"]:
        reference = example["reference"]
        reference = " / ".join(reference) or "(none)" if isinstance(reference, list) else reference
        cells = (_in_table(text[:200]) for text in (example["input"], reference, example["prediction"] or "(nothing)"))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", "</details>"])


def _proofs(report: dict[str, Any]) -> str:
    if not report.get("proofs"):
        return ""
    words = {True: "passed", None: "switched off", False: "failed"}
    lines = [
        "## What was proved",
        "",
        "On the model, data and batches of this run:",
        "",
        "| proof | | found |",
        "|---|---|---|",
    ]
    for name, proof in report["proofs"].items():
        lines.append(f"| {name.replace('_', ' ')} | {words[proof.get('passed')]} | {_in_table(proof['said'])} |")
    return "\n".join(lines)


def _in_table(text: str) -> str:
    return re.sub(r"\s+", " ", text).replace("|", "\\|").replace("<", "&lt;")


def _data(report: dict[str, Any]) -> str:
    data = report.get("data")
    if not data:
        return ""
    lines = ["## Data", "", f"Source: `{data['source']}`, fingerprint `{data.get('fingerprint', '')[:16]}`.", ""]
    splits = [split for split in ("train", "validation", "test") if split in data]
    columns = [key for key, value in data.get("train", {}).items() if isinstance(value, int)]
    if columns:
        lines += ["| split | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for split in splits:
        lines.append(f"| {split} | " + " | ".join(f"{data[split][key]:,}" for key in columns) + " |")
    lines += ["", *(f"- {_in_table(note)}." for note in data.get("notes", []))]
    mended = {key: count for key, count in data.get("cleaned", {}).items() if count}
    if mended:
        lines.append(
            "- Mended: " + ", ".join(f"{count:,} {key.replace('_', ' ')}" for key, count in mended.items()) + "."
        )
    tokenizer = report.get("tokenizer")
    if tokenizer:
        fits = ", ".join(f"{name} {part['bytes_per_token']:.2f}" for name, part in tokenizer.get("text", {}).items())
        lines.append(
            f"- Tokenizer: {tokenizer['vocab_size']:,} entries, {tokenizer['unused']:,} unused; bytes a token: {fits}."
        )
    return "\n".join(lines)


def _training(report: dict[str, Any], folder: Path) -> str:
    speed = report.get("speed", {})
    lines = ["## Training", ""]
    lines.append(f"{report.get('device', '')}; {report.get('seconds', 0) / 60:.1f} minutes in all.")
    if "tokens_per_second" in speed:
        lines[-1] += (
            f" {speed['tokens_per_second']:,.0f} tokens per second, {speed['utilisation']:.0%} of the device's "
            f"measured matrix speed; peak memory {speed['peak_memory_bytes'] / 2**20:,.0f} MiB."
        )
    if (folder / "run.yaml").is_file():
        run = yaml.safe_load((folder / "run.yaml").read_text(encoding="utf-8"))
        # Paths of the machine that trained it tell a reader nothing and may tell too much.
        shown = {k: v for k, v in run.items() if not (isinstance(v, str) and Path(v).is_absolute())}
        text = yaml.safe_dump(shown, sort_keys=False, allow_unicode=True)
        lines += ["", "<details><summary>run.yaml</summary>", "", _fenced(text, "yaml"), "", "</details>"]
    found = ", ".join(f"{name} {number}" for name, number in report.get("versions", {}).items())
    lines += ["", f"Versions: {found}."]
    return "\n".join(lines)


def _fenced(text: str, language: str = "") -> str:
    """A code block that no text can end early: its fence is longer than any run of backticks inside."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


def _samples(report: dict[str, Any]) -> str:
    samples = report.get("samples")
    if not samples:
        return ""
    lines = [
        "## Samples",
        "",
        report.get(
            "sampled", "Continuations of held-out text, temperature 0.8, not chosen. The prompt stands in brackets."
        ),
    ]
    for sample in samples:
        lines += ["", _fenced(f"[{sample['prompt']}]{sample['continuation']}")]
    return "\n".join(lines)


def _limits(report: dict[str, Any]) -> str:
    return (
        "## Limits\n\n"
        "A language model repeats what its training text holds, errors and prejudices included; neither its bias nor "
        "the toxicity of what it writes has been measured in this run. The numbers above speak of text like the test "
        "split and of no other. It may reproduce training text word for word."
    )
