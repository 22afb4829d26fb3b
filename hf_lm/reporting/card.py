"""The model card, made from the report: valid metadata for the Hub, plain words for people."""

import json
import shlex
from pathlib import Path
from typing import Any

import yaml

from hf_lm.files import write_whole
from hf_lm.hub.credentials import printable
from hf_lm.hub.records import read_run
from hf_lm.reporting.card_metadata import example_of, in_brief, is_hub_id, metadata
from hf_lm.reporting.markdown import fenced, in_code, in_table, table
from hf_lm.reporting.plots import TUNING
from hf_lm.reporting.report import SHOWN, beside, gain_in_words, in_words, plan_in_words, time_in_words, warnings


def write_card(report: dict[str, Any], folder: str | Path) -> None:
    """Write README.md. Text that comes from data or from the model is shown as text, whatever it holds."""
    folder = Path(folder)
    sections = [
        metadata(report, folder),
        _introduction(report, folder),
        _numbers(report, folder),
        _classes(report),
        _few_labels(report, folder),
        _answers(report),
        _harness(report),
        _proofs(report),
        _data(report),
        _training(report, folder),
        _samples(report),
        _limits(report),
    ]
    write_whole(folder / "README.md", printable("\n\n".join(section for section in sections if section)) + "\n")


def _introduction(report: dict[str, Any], folder: Path) -> str:
    from hf_lm.models.target_tokenizer import TARGET

    model = report.get("model", {})
    recurrent = model.get("model_type") == "hf_lm_recurrent"
    trust = ", trust_remote_code=True" if recurrent else ""
    kind, auto_class = report.get("kind", "model"), model.get("auto_class", "AutoModel")
    adapter, two = (folder / "adapter_config.json").is_file(), (folder / TARGET).is_dir()
    lines = [
        f"# {in_table(folder.resolve().name)}",
        "",
        f"A {kind} ({model.get('architecture')}, {model.get('parameters', 0):,} parameters), "
        + (f"trained further from {_bases(model)}" if model.get("base") else "trained from scratch")
        + f" on {in_table(report.get('data', {}).get('source', 'text'))} with hf_lm."
        + _headline(report),
        "",
        "```python",
        f"from transformers import {auto_class}, AutoTokenizer",
        "",
        'name = "."  # this folder, or its name on the Hub',
        f"model = {auto_class}.from_pretrained(name{trust})",
        f"tokenizer = AutoTokenizer.from_pretrained(name{trust})" + "  # of the source" * two,
    ]
    if two:
        lines += [f'{TARGET} = AutoTokenizer.from_pretrained(name, subfolder="{TARGET}")  # of the target']
    lines += ["```"]
    lines += _with_pipeline(report, folder)
    if adapter:
        lines += ["", "This is an adapter: loading it needs peft, and its base model."]
    if recurrent:
        lines += [
            "",
            "The model carries its own code (recurrent.py); after `import hf_lm.models` it loads without that trust.",
        ]
    return "\n".join(lines)


def _with_pipeline(report: dict[str, Any], folder: Path) -> list[str]:
    """How the model is used through `pipeline`, and a chat model through its template, on held-out input."""
    chats = (folder / "chat_template.jinja").is_file()
    asked = json.dumps(_asked(report), ensure_ascii=False)
    example = in_brief(example_of(report), 200)
    quoted = {key: json.dumps(value, ensure_ascii=False) for key, value in example.items()}
    given = ", ".join(text if key in ("text", "messages") else f"{key}={text}" for key, text in quoted.items())
    given = "" if _writes_for_a_head(report) else asked if chats else given
    lines: list[str] = []
    if given:
        given += ", max_new_tokens=40" if report.get("pipeline_tag") == "text-generation" else ""
        lines += ["", "or, in three lines:", "", "```python", "from hf_lm import pipeline", ""]
        lines += [f'answer = pipeline("{report["pipeline_tag"]}", model=".")', f"print(answer({given}))", "```"]
    if chats:
        lines += [
            "",
            "It answers in the form of its chat template:",
            "",
            "```python",
            f"messages = {asked}",
            'options = {"add_generation_prompt": True, "return_tensors": "pt", "return_dict": True}',
            "prompt = tokenizer.apply_chat_template(messages, **options)",
            "print(tokenizer.decode(model.generate(**prompt, max_new_tokens=40)[0], skip_special_tokens=True))",
            "```",
        ]
    return lines


def _asked(report: dict[str, Any]) -> list[dict[str, str]]:
    """The messages of the first sample, each shortened; a greeting where there is none."""
    messages = next(iter(report.get("samples", [])), {}).get("messages") or [{"role": "user", "content": "Hello."}]
    return in_brief({"messages": messages}, 200)["messages"]


def _writes_for_a_head(report: dict[str, Any]) -> bool:
    """Whether the model writes what the pipeline of its task takes from a head."""
    heads = {"text-classification": "SequenceClassification", "question-answering": "QuestionAnswering"}
    return heads.get(report.get("pipeline_tag", ""), "") not in report.get("model", {}).get("auto_class", "")


def _bases(model: dict[str, Any]) -> str:
    """The checkpoints that training started from: one, or an encoder's and a decoder's."""
    names = [name for name in (model["base"], model.get("decoder")) if name]
    shown = (f"[{n}](https://huggingface.co/{n})" if is_hub_id(n) else in_code(Path(n).name) for n in names)
    return " and ".join(shown)


def _headline(report: dict[str, Any]) -> str:
    """The main metric as a sentence, on the last split; a published one precedes one cut from train."""
    name, cut = report.get("main_metric", ""), report.get("data", {}).get("cut_from_train", [])
    splits = list(report.get("metrics", {}).items())[::-1]
    for split, metrics in sorted(splits, key=lambda item: item[0] in cut):
        if name in metrics:
            value = f" {split.capitalize()} {SHOWN.get(name, (name,))[0]}: {in_words(name, metrics[name])}"
            return value + (f"; {in_table(baseline)}." if (baseline := beside(name, metrics[name])) else "")
    return ""


def _numbers(report: dict[str, Any], folder: Path) -> str:
    if not report.get("metrics"):
        return ""
    unit = report.get("unit", "examples")
    rows = [
        (split, SHOWN.get(name, (name,))[0], in_words(name, metric), in_table(beside(name, metric)))
        for split, metrics in report["metrics"].items()
        for name, metric in metrics.items()
    ]
    head = ("split", "metric", f"value (95 % interval over {unit})", "baseline")
    lines = ["## How good it is", "", *table(head, rows)]
    yardsticks = report.get("yardsticks", {})
    if yardsticks:
        lines += [
            "",
            f"For comparison, the compressor `lzma` needs {yardsticks['lzma']:.3f} bits per byte for the test text "
            f"alone and {yardsticks['lzma_with_train']:.3f} after the training text: the larger the difference, the "
            "more the test text repeats the training text.",
        ]
    for name, signature in report.get("signatures", {}).items():
        lines += ["", f"{SHOWN[name][0]}: `{signature}`"]
    if sentences := warnings(report):
        lines += ["", *(f"- {in_table(sentence)}" for sentence in sentences)]
    for name, shown in (("metric", "validation by step"), ("loss", "loss")):
        if (folder / "plots" / f"{name}.png").is_file():
            lines += ["", f"![{shown}](plots/{name}.png)"]
    logged = {key for entry in report.get("history", []) for key in entry}
    for name, (key, title, _) in TUNING.items():
        if key in logged:
            lines += ["", f"![{title}](plots/{name}.png)"]
    return "\n".join(lines)


def _classes(report: dict[str, Any]) -> str:
    """Precision, recall and F1 of each class on the last split measured."""
    if not report.get("classes"):
        return ""
    rows = [
        (in_table(label), f"{scores['rows']:,}", *(f"{scores[key]:.1f} %" for key in ("precision", "recall", "f1")))
        for label, scores in report["classes"].items()
    ]
    *_, split = report.get("metrics") or ["the last split"]
    return "\n".join([f"Each class on {split}:", "", *table(("class", "rows", "precision", "recall", "F1"), rows)])


def _few_labels(report: dict[str, Any], folder: Path) -> str:
    """The learning curve of a run of self-training."""
    curve = report.get("learning_curve")
    if not curve:
        return ""
    seeds = len(curve["seeds"])
    over = f"{seeds} seeds and examples" if seeds > 1 else "examples, for one seed alone"
    metric = f"{SHOWN[curve['metric']][0]} on {curve['split']} (95 % over {over})"
    rows = []
    for point in curve["points"]:
        gain = gain_in_words(curve["metric"], point["gain"]) if "gain" in point else ""
        shown = in_words(curve["metric"], point)
        rows.append((f"{point['labels']:,} ({point['share']:.0%})", point["method"], shown, gain))
    lines = ["## With fewer labels", "", *table(("labels", "method", metric, "against labels alone"), rows)]
    chosen = curve["chosen"]
    best = f"{chosen['method']} with {chosen['labels']:,} labels, seed {chosen['seed']}"
    lines += ["", f"This folder holds the model with the best validation metric: {best}."]
    if (folder / "plots" / "learning_curve.png").is_file():
        lines += ["", "![learning curve](plots/learning_curve.png)"]
    return "\n".join([*lines, "", *(f"- {in_table(sentence)}." for sentence in curve["said"])])


def _answers(report: dict[str, Any]) -> str:
    """The first predictions, and those furthest from the reference."""
    lines = []
    if report.get("examples"):
        lines += ["The first predictions on the last split, not selected:", "", *_table_of(report["examples"]), ""]
    if report.get("worst"):
        lines += ["<details><summary>The worst predictions</summary>", ""]
        lines += [*_table_of(report["worst"]), "", "</details>"]
    return "\n".join(lines).rstrip()


def _table_of(examples: list[dict[str, Any]]) -> list[str]:
    rows = []
    for example in examples:
        reference = example["reference"]
        reference = " / ".join(reference) or "(none)" if isinstance(reference, list) else reference
        texts = (example["input"], reference, example["prediction"] or "(empty)")
        rows.append([in_table(text[:200]) for text in texts])
    return table(("input", "reference", "prediction"), rows)


def _harness(report: dict[str, Any]) -> str:
    """The numbers of lm-evaluation-harness, where it was run."""
    if not report.get("harness"):
        return ""
    rows = []
    for task, numbers in report["harness"]["tasks"].items():
        for name, metric in numbers.items():
            error = f" ± {metric['stderr']:.2g}" if "stderr" in metric else ""
            rows.append((in_table(task), in_table(name), f"{metric['value']:.4g}{error}"))
    source = f"By lm-evaluation-harness {report['harness']['version']}, with standard errors:"
    return "\n".join(["## Harness", "", source, "", *table(("task", "metric", "value"), rows)])


def _proofs(report: dict[str, Any]) -> str:
    if not report.get("proofs"):
        return ""
    words = {True: "passed", None: "switched off", False: "failed"}
    rows = [
        (name.replace("_", " "), words[proof.get("passed")], in_table(proof["said"]))
        for name, proof in report["proofs"].items()
    ]
    heading = ["## What was proved", "", "On the model, data and batches of this run:", ""]
    return "\n".join([*heading, *table(("proof", "", "result"), rows)])


def _data(report: dict[str, Any]) -> str:
    data = report.get("data")
    if not data:
        return ""
    layout = f", {in_table(data['format'])}" if "format" in data else ""
    lines = [
        "## Data",
        "",
        f"Source: {in_code(data['source'])}{layout}, fingerprint `{data.get('fingerprint', '')[:16]}`.",
        "",
    ]
    if data.get("columns"):
        named = ", ".join(f"{name} from {in_code(column)}" for name, column in data["columns"].items())
        lines[-2] += f" Columns: {named}."
    if scripts := _scripts(data):
        lines[-2] += f" Its scripts, by letters: {scripts}."
    splits = [split for split in ("train", "validation", "test") if split in data]
    columns = [key for key, value in data.get("train", {}).items() if isinstance(value, int)]
    if columns:
        rows = [(split, *(f"{data[split][key]:,}" for key in columns)) for split in splits]
        lines += table(("split", *columns), rows)
    lines += ["", *(f"- {in_table(note)}." for note in data.get("notes", []))]
    repaired = [f"{count:,} {key.replace('_', ' ')}" for key, count in data.get("cleaned", {}).items() if count]
    if repaired:
        lines.append(f"- Dropped or repaired: {', '.join(repaired)}.")
    tokenizer = report.get("tokenizer")
    if tokenizer:
        bytes_per_token = [f"{name} {part['bytes_per_token']:.2f}" for name, part in tokenizer.get("text", {}).items()]
        lines.append(
            f"- Tokenizer: {tokenizer['vocab_size']:,} entries; {tokenizer['unused']:,} of them do not occur in "
        )
        lines[-1] += f"the first 2 MB of each text, of which bytes per token are: {', '.join(bytes_per_token)}."
    return "\n".join(lines)


def _scripts(data: dict[str, Any]) -> str:
    shown = [f"{script} ({share:.0%})" for script, share in data.get("scripts", {}).items() if share >= 0.01]
    return ", ".join(shown)


def _training(report: dict[str, Any], folder: Path) -> str:
    speed = report.get("speed", {})
    lines = ["## Training", ""]
    lines.append(f"{report.get('device', '')}; {time_in_words(report)}.")
    if "tokens_per_second" in speed:
        lines[-1] += (
            f" {speed['tokens_per_second']:,.0f} tokens per second, {speed['utilisation']:.0%} of the device's "
            f"measured matrix speed; peak memory {speed['peak_memory_bytes'] / 2**20:,.0f} MiB."
        )
    if planned := plan_in_words(report):
        lines[-1] += f" {planned}."
    if report.get("recipe"):
        lines += ["", "This run, with every argument that is not the recipe's default:"]
        lines += ["", fenced(_command(report["recipe"], report.get("arguments", {})), "bash")]
        here = folder.name if folder.is_absolute() else folder.as_posix()
        name = (read_run(folder) or {}).get("hub_model_id") or here
        again = shlex.join(["hf-lm", "reproduce", name])
        lines += ["", "Run again and compared with the numbers above:", "", fenced(again, "bash")]
    if run := read_run(folder):
        # Absolute paths are of no use to a reader and may be private.
        shown = {k: v for k, v in run.items() if not (isinstance(v, str) and Path(v).is_absolute())}
        text = yaml.safe_dump(shown, sort_keys=False, allow_unicode=True)
        lines += ["", "<details><summary>run.yaml</summary>", "", fenced(text, "yaml"), "", "</details>"]
    lines += ["", f"Versions: {', '.join(f'{name} {number}' for name, number in report.get('versions', {}).items())}."]
    return "\n".join(lines)


def _command(recipe: str, arguments: dict[str, Any]) -> str:
    """The command of a run. Absolute paths are reduced to their last part."""
    lines = [f"accelerate launch recipes/{recipe}.py"]
    for key, value in arguments.items():
        if key == "output_dir":
            continue
        values = value if isinstance(value, list) else [json.dumps(value) if isinstance(value, dict) else value]
        values = [Path(text).name if Path(text).is_absolute() else text for text in map(_typed, values)]
        lines.append(f"--{key} {shlex.join(values)}")
    return " \\\n  ".join(lines)


def _typed(value: object) -> str:
    """A value as a user types it: 30 for 30.0."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _samples(report: dict[str, Any]) -> str:
    samples = report.get("samples")
    if not samples:
        return ""
    default = "Continuations of held-out text, temperature 0.8, not selected. The prompt is in brackets."
    lines = ["## Samples", "", report.get("sampled", default)]
    for sample in samples:
        lines += ["", fenced(f"[{sample['prompt']}]{sample['continuation']}")]
    return "\n".join(lines)


def _limits(report: dict[str, Any]) -> str:
    """What the checks of this run showed, and what was not measured."""
    data, limits = report.get("data", {}), []
    for split, overlap in data.get("overlap", {}).items():
        if overlap["rows"]:
            limits.append(
                f"{overlap['rows']:,} rows of {split} ({overlap['share']:.1%}) also occur in the training data: its "
                "numbers are better than they would be on new text."
            )
    leakage = report.get("proofs", {}).get("leakage", {})
    if leakage.get("passed") is not None:
        limits.append(f"{leakage['said'][:1].upper()}{leakage['said'][1:]}.")
    for split, metrics in report.get("metrics", {}).items():
        baselines = {name: metric["baseline"] for name, metric in metrics.items() if metric.get("baseline")}
        worse = [SHOWN.get(name, (name,))[0].strip() for name, baseline in baselines.items() if not baseline["beaten"]]
        if worse:
            limits.append(f"On {split} it does not beat its baseline in {', '.join(worse)} by more than chance.")
    if (truncated := data.get("train", {}).get("truncated", 0)) >= 0.01:
        limits.append(f"{truncated:.0%} of the training inputs were truncated: it reads the beginning of long inputs.")
    if scripts := _scripts(data):
        limits.append(f"The letters of its training data are {scripts}: it knows little of other scripts.")
    safety = report.get("safety", {}).get("findings", [])
    measured = "" if safety else "Neither its bias nor the toxicity of its output has been measured in this run. "
    if report.get("pipeline_tag") in ("text-classification", "token-classification", "question-answering"):
        measured = "" if safety else "Its bias has not been measured in this run. "
        general = "It repeats the labels of its training data, errors and prejudices included. "
    else:
        general = "A language model repeats what its training text holds, errors and prejudices included. "
        measured += "It may reproduce training text word for word. "
    general += f"{measured}The numbers above hold for text like the test split and for no other."
    items = [f"- {in_table(limit)}" for limit in [*limits, *safety]]
    return "\n".join(["## Limits", "", general, "", *items]).rstrip()
