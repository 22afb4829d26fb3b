"""The metadata of a model card, in YAML, as the Hub reads it."""

import re
from pathlib import Path
from typing import Any


def metadata(report: dict[str, Any], folder: Path) -> str:
    """The YAML between two lines of `---`: task, languages, bases, data, and each number with its interval."""
    from huggingface_hub import EvalResult, ModelCardData

    source, model = report.get("data", {}).get("source", ""), report.get("model", {})
    known = [name for name in [re.split("[:@]", source)[0]] if is_hub_id(name)]
    example = example_of(report)
    results = [
        EvalResult(
            task_type=report.get("pipeline_tag", "text-generation"),
            dataset_type=known[0] if known else "text",
            dataset_name=report["data"]["source"],
            dataset_split=split,
            dataset_args={"documents": part["scored"], "of": part["documents"]} if "scored" in part else None,
            metric_type=name,
            metric_name=name.replace("_", " ")
            + (f" (95 % interval {metric['low']:.4g} to {metric['high']:.4g})" if "low" in metric else ""),
            metric_value=metric["value"],
        )
        for split, metrics in report.get("metrics", {}).items()
        for part in [report["data"].get(split, {})]  # of which a sample may have been scored
        for name, metric in metrics.items()
        if "value" in metric
    ]
    bases = [name for name in (model.get("base"), model.get("decoder")) if name and is_hub_id(name)]
    card = ModelCardData(
        language=report.get("data", {}).get("languages") or None,
        library_name="transformers",
        pipeline_tag=report.get("pipeline_tag"),
        tags=["hf_lm", *model.get("tags", [])],
        base_model=(bases if bases[1:] else bases[0]) if bases else None,
        datasets=known or None,
        model_name=folder.resolve().name,
        eval_results=results,
    )
    if example:
        card["widget"] = [in_brief(example, 1000)]
    # A licence is its owner's to give: the metadata is valid without one, and this line says where it goes.
    return f"---\n# license: apache-2.0   <- the licence that you give the model\n{card.to_yaml()}\n---"


def is_hub_id(name: str) -> bool:
    """Whether a name is a possible Hub id, and not a folder here."""
    return bool(re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name)) and not Path(name).exists()


def example_of(report: dict[str, Any]) -> dict[str, Any]:
    """A held-out input of the model's task: {"text"}, {"question", "context"} or {"messages"}; {} if there is none."""
    prompts = [{"text": sample["prompt"]} for sample in report.get("samples", []) if sample.get("prompt", "").strip()]
    return report.get("example") or next(iter(prompts), {})


def in_brief(example: dict[str, Any], most: int) -> dict[str, Any]:
    """An example with at most `most` characters of each of its texts, those of messages among them."""

    def brief(value: str | list[dict[str, str]]) -> str | list[dict[str, str]]:
        if isinstance(value, str):
            return shortened(value, most)
        return [message | {"content": shortened(message["content"], most)} for message in value]

    return {key: brief(value) for key, value in example.items()}


def shortened(text: str, most: int) -> str:
    """At most `most` characters of a text."""
    return text if len(text) <= most else text[: most - 4] + " ..."
