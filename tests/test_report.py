"""The report has one shape; the card is valid for the Hub, and text in it stays text."""

import html
import json
import re
import runpy
import sys
from types import SimpleNamespace

import psutil
import pytest
import torch
import yaml
from huggingface_hub import ModelCard, metadata_load
from huggingface_hub.repocard_data import eval_results_to_model_index, model_index_to_eval_results
from loopback_hub import hub  # noqa: F401  (a fixture)

import hf_lm.reporting.report
from hf_lm.reporting.card import _headline, write_card
from hf_lm.reporting.plots import draw_plots
from hf_lm.reporting.report import save_report, show_report

REPORT = {
    "recipe": "pretrain",
    "pipeline_tag": "text-generation",
    "main_metric": "bits_per_byte",
    "unit": "documents",
    "seconds": 241.0,
    "device": "1 process (cpu, 2 threads), float32",
    "versions": {"hf_lm": "0.1.0"},
    "data": {
        "source": "demo",
        "fingerprint": "abcdef",
        "notes": ["split by module | with a pipe"],
        "cleaned": {"nul_characters": 2, "empty_rows": 0},
        "train": {"documents": 10, "tokens": 1000, "bytes": 3000},
        "test": {"documents": 2, "tokens": 100, "bytes": 300},
    },
    "tokenizer": {"vocab_size": 4096, "unused": 3, "text": {"train": {"bytes_per_token": 3.1}}},
    "model": {"architecture": "GPT2LMHeadModel", "auto_class": "AutoModelForCausalLM", "model_type": "gpt2"}
    | {"parameters": 1234, "trainable": 1234},
    "proofs": {
        "loss_invariance": {"passed": True, "said": "a batch of 4 | and 4 batches of 1", "largest_difference": 1e-7},
        "learnable": {"passed": None, "said": "switched off"},
    },
    "metrics": {
        "test": {
            "bits_per_byte": {
                "value": 1.9,
                "low": 1.8,
                "high": 2.0,
                "baseline": {"name": "unigram", "value": 3.3, "beaten": True},
            },
            "word_perplexity": {"value": 5e9, "baseline": {"name": "unigram", "value": float("inf"), "beaten": True}},
        }
    },
    "yardsticks": {"lzma": 2.8, "lzma_with_train": 1.6},
    "samples": [{"prompt": "def", "continuation": "```\n---\n# <script>alert(1)</script>\n````\x1b[2J"}],
    "speed": {"tokens_per_second": 5000.0, "utilisation": 0.6, "peak_memory_bytes": 2**30},
    "history": [
        {"step": 1, "loss": 8.0, "learning_rate": 1e-3, "tokens_per_second": 5000.0},
        {"step": 2, "loss": 7.0, "learning_rate": 1e-3, "tokens_per_second": 5100.0},
        {"step": 2, "eval_loss": 7.1, "eval_bits_per_byte": 2.0, "eval_bits_per_byte_low": 1.9}
        | {"eval_bits_per_byte_high": 2.1},
    ],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("my-model")
    (folder / "run.yaml").write_text(yaml.safe_dump({"dataset": "/home/someone/private", "seed": 1}))
    report = save_report(REPORT, folder)
    draw_plots(report, folder)
    write_card(report, folder)
    return folder


def test_the_report_is_json_without_nan(folder):
    saved = json.loads((folder / "report.json").read_text(), parse_constant=lambda name: pytest.fail(name))
    assert saved["metrics"]["test"]["bits_per_byte"] == REPORT["metrics"]["test"]["bits_per_byte"]
    assert "value" not in saved["metrics"]["test"]["word_perplexity"]["baseline"]  # absent, not null
    assert saved["proofs"]["learnable"]["passed"] is None


def test_every_plot_is_drawn(folder):
    assert {path.name for path in (folder / "plots").iterdir()} == {
        *("loss.png", "learning_rate.png", "throughput.png", "metric.png")
    }


def test_the_card_is_valid_and_says_numbers_with_intervals(folder):
    card = ModelCard.load(folder / "README.md")
    assert card.data.library_name == "transformers"
    results = {result.metric_type: result for result in card.data.eval_results}
    assert results["bits_per_byte"].metric_value == 1.9
    assert "1.8 to 2" in results["bits_per_byte"].metric_name
    text = card.content
    assert "1.900 (1.800 to 2.000) | unigram 3.300 |" in text
    assert "| loss invariance | passed |" in text
    assert "| learnable | switched off |" in text
    assert "/home/someone" not in text
    assert "AutoModelForCausalLM.from_pretrained" in text


FINE_TUNED = {
    "recipe": "sentiment",
    "pipeline_tag": "text-classification",
    "main_metric": "accuracy",
    "unit": "examples",
    "seconds": 60.0,
    "arguments": {"dataset": "/home/someone/评论", "label_column": "a b", "eval_steps": 30.0}
    | {"skip_proofs": ["x", "y"], "output_dir": "/home/someone/out"},
    "data": {
        "source": "user/reviews:zh",
        "format": "rows of .tsv",
        "columns": {"text": "0", "label": "1"},
        "languages": ["zh"],
        "scripts": {"Han": 0.98, "Latin": 0.02},
        "train": {"rows": 100, "tokens": 1000, "truncated": 0.2, "tokens_lost": 0.1},
        "overlap": {"test": {"rows": 3, "exact": 2, "share": 0.1}},
    },
    "model": {"architecture": "BertForSequenceClassification", "auto_class": "AutoModelForSequenceClassification"}
    | {"parameters": 1234, "base": "user/base"},
    "metrics": {
        split: {"accuracy": {"value": value, "low": value - 1, "high": value + 1}
                | {"baseline": {"name": "majority class", "value": 50.0, "beaten": value > 52}}}
        for split, value in (("validation", 90.0), ("test", 51.0))
    },
    "example": {"text": '房间很干净，服务也好。\n---\n"quoted" ```'},
    "examples": [{"input": "很好 | <b>", "reference": "positive", "prediction": "negative", "score": 0.1}],
    "safety": {"findings": ["It prefers the stereotyped sentence in 58 % of pairs."]},
}  # fmt: skip


@pytest.fixture
def card(tmp_path):
    write_card(FINE_TUNED, tmp_path)
    return ModelCard.load(tmp_path / "README.md")


def test_the_metadata_passes_the_hub_and_comes_back_whole(card, hub, monkeypatch, tmp_path):  # noqa: F811
    for name, value in hub.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.url)
    card.validate()
    assert hub.requests == ["POST /api/validate-yaml"]
    card.data.language = ["Chinese"]
    with pytest.raises(ValueError, match="codes"):
        card.validate()
    saved = metadata_load(tmp_path / "README.md")
    name, results = model_index_to_eval_results(saved["model-index"])
    assert eval_results_to_model_index(name, results) == saved["model-index"]
    assert [(result.dataset_split, result.metric_value) for result in results] == [("validation", 90), ("test", 51)]
    assert "license" not in saved  # its owner's to give
    assert "# license:" in (tmp_path / "README.md").read_text(encoding="utf-8")


def test_the_metadata_names_language_data_base_and_an_example_to_try(card):
    assert card.data.language == ["zh"]
    assert card.data.datasets == ["user/reviews"]
    assert card.data.base_model == "user/base"
    assert card.data.to_dict()["widget"] == [FINE_TUNED["example"]]
    assert 'answer("房间很干净，服务也好。\\n---' in card.text


def test_the_card_says_how_to_repeat_the_run_and_what_its_checks_found(card):
    command = card.text.split("```bash\n")[1].split("\n```")[0]
    expected = ["--dataset '评论'", "--label_column 'a b'", "--eval_steps 30", "--skip_proofs x y"]
    assert command.split(" \\\n  ") == ["accelerate launch recipes/sentiment.py", *expected]
    assert "/home/someone" not in card.content
    limits = card.text.split("## Limits")[1]
    for said in (
        *("3 rows of test (10.0%) also stand in train", "On test it does not beat its baseline in accuracy"),
        *("20% of what it was trained on was cut", "Han (98%)", "- It prefers the stereotyped sentence"),
    ):
        assert said in limits
    assert "has been measured in this run" not in limits
    assert "On validation it does not" not in limits
    assert "| 很好 \\| &lt;b> | positive | negative |" in card.text


def test_text_of_a_model_cannot_break_out_of_its_block(folder):
    lines = (folder / "README.md").read_text().splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("## Samples"))
    fence = next(line for line in lines[start:] if line.startswith("`````"))
    inside = lines[lines.index(fence, start) + 1 :]
    assert "````" in "\n".join(inside[: inside.index(fence)])
    assert "# <script>" in "\n".join(inside[: inside.index(fence)])
    tables = [line for line in lines if line.startswith("| loss invariance")]
    assert tables[0].count(" | ") == 2
    assert "\\|" in tables[0]


def test_a_report_with_less_in_it_still_makes_a_card(tmp_path):
    write_card({"recipe": "pretrain", "seconds": 1.0, "data": {"source": "x"}, "history": []}, tmp_path)
    assert ModelCard.load(tmp_path / "README.md").data.tags == ["hf_lm"]
    assert draw_plots({"history": []}, tmp_path) == []


def test_the_terminal_shows_numbers_baselines_and_no_control_characters(capsys):
    show_report(REPORT, "out")
    printed = capsys.readouterr().out
    assert "1.900 (1.800 to 2.000)" in printed
    assert "unigram 3.300\n" in printed
    assert "beyond all bounds" in printed
    assert "left out: learnable" in printed
    assert "\x1b" not in printed
    assert max(map(len, printed.splitlines())) <= 120


def test_a_system_without_resource_measures_memory_otherwise(monkeypatch):
    """As on Windows, where psutil knows the peak."""
    monkeypatch.setitem(sys.modules, "resource", None)  # its import now raises
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(psutil.Process, "memory_info", lambda self: SimpleNamespace(peak_wset=7), raising=True)
    report = runpy.run_path(hf_lm.reporting.report.__file__)
    assert report["peak_memory_bytes"]() == 7


HOSTILE = (
    "![t](https://evil.example/p.png) [click](https://evil.example) <https://evil.example> <img src=x> &lt;b&gt; "
    "**a** __b__ _c_ ~~d~~ `e` snake_case a|b \\[f](g) \x1b[2J"
)


def test_text_of_data_is_shown_as_text():
    from hf_lm.reporting.markdown import in_code, in_table

    markdown_it = pytest.importorskip("markdown_it")
    renderer = markdown_it.MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    shown = HOSTILE.replace("\x1b", "\N{REPLACEMENT CHARACTER}")
    for text in ("{}", "- {}", "| a |\n|---|\n| {} |"):
        rendered = renderer.render(text.format(in_table(HOSTILE)))
        tags = set(re.findall(r"</?(\w+)", rendered))
        assert tags <= {"p", "ul", "li", "table", "thead", "tbody", "tr", "th", "td"}, rendered
        assert shown in html.unescape(re.sub(r"<[^>]+>", "", rendered))
    code = renderer.render(in_code(HOSTILE))
    assert set(re.findall(r"</?(\w+)", code)) == {"p", "code"}
    assert html.unescape(re.sub(r"<[^>]+>", "", code)).strip() == shown.replace("`", "'")


def test_a_published_split_is_the_headline_before_one_that_was_cut_from_train():
    metrics = {split: {"accuracy": {"value": 80.0}} for split in ("validation", "test")}

    def headline(*cut):
        return _headline({"main_metric": "accuracy", "metrics": metrics, "data": {"cut_from_train": list(cut)}})

    assert headline("test").startswith("Validation")
    assert headline().startswith("Test")
    assert headline("validation", "test").startswith("Test")
