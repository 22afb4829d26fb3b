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
from hf_lm.hub.credentials import CONTROLS, printable
from hf_lm.reporting.card import _headline, write_card
from hf_lm.reporting.plots import draw_lengths, draw_plots, draw_scores
from hf_lm.reporting.report import save_report, show_report
from hf_lm.safety.findings import draw_safety, show_safety, write_page

HOSTILE = (
    "![t](https://evil.example/p.png) [click](https://evil.example) <https://evil.example> <img src=x> &lt;b&gt; "
    "**a** __b__ _c_ ~~d~~ `e` snake_case a|b \\[f](g) www.evil.example \u202e \x1b[2J"
)

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


def test_every_axis_has_a_label(tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    labels = []
    monkeypatch.setattr(Figure, "savefig", lambda drawing, path: labels.extend(a.get_ylabel() for a in drawing.axes))
    draw_plots(REPORT, tmp_path)
    assert len(labels) == 4
    assert all(labels), labels


@pytest.mark.parametrize(
    ("recipe", "auto_class", "unit"),
    [
        ("chat", "AutoModelForCausalLM", "nats per token"),
        ("sentiment", "AutoModelForSequenceClassification", "nats per label"),
        ("reinforce", "AutoModelForCausalLM", "mean of the objective"),
    ],
)
def test_a_loss_of_one_step_is_seen_and_has_its_unit(recipe, auto_class, unit, tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda drawing, path: drawn.extend(drawing.axes))
    draw_plots(
        {"recipe": recipe, "model": {"auto_class": auto_class}, "history": [{"step": 1, "loss": 0.7}]}, tmp_path
    )
    [axes] = drawn
    assert axes.get_ylabel() == unit
    assert axes.lines[0].get_marker() == "o"


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


def test_the_metadata_says_of_which_documents_a_number_is(tmp_path):
    report = REPORT | {"data": REPORT["data"] | {"test": {"documents": 60, "tokens": 100, "bytes": 300, "scored": 16}}}
    write_card(report, tmp_path)
    saved = metadata_load(tmp_path / "README.md")
    [*_, result] = model_index_to_eval_results(saved["model-index"])[1]
    assert result.dataset_args == {"documents": 16, "of": 60}
    write_card(REPORT, tmp_path)
    assert "args" not in metadata_load(tmp_path / "README.md")["model-index"][0]["results"][0]["dataset"]


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
        "3 rows of test (10.0%) also occur in the training data",
        "On test it does not beat its baseline in accuracy",
        "20% of the training inputs were truncated",
        "Han (98%)",
        "- It prefers the stereotyped sentence",
    ):
        assert said in limits
    assert "has been measured in this run" not in limits
    assert "On validation it does not" not in limits
    assert "| 很好 \\| &lt;b> | positive | negative |" in card.text


def test_the_card_says_of_which_text_the_tokenizer_was_measured(folder):
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "4,096 entries; 3 of them do not occur in the first 2 MB of each text" in card


def test_a_character_without_a_font_is_one_line(tmp_path, capsys):
    models = {"out/\U0001ccf0 \U0001ccf1": {"metrics": {"accuracy": {"value": 50.0}}}}
    draw_scores({"models": models, "not_compared": {}}, tmp_path / "scores.png")
    assert capsys.readouterr().err == (
        f"{tmp_path / 'scores.png'}: no font here has some of its characters, which are boxes in the picture\n"
    )


def test_the_table_of_classes_names_its_split(tmp_path):
    scores = {"rows": 1, "precision": 1.0, "recall": 1.0, "f1": 1.0}
    write_card(FINE_TUNED | {"classes": {"good": scores}}, tmp_path)
    assert "Each class on test:\n\n| class | rows |" in (tmp_path / "README.md").read_text(encoding="utf-8")


def test_the_command_that_runs_again_takes_the_folder_for_one_word(tmp_path):
    folder = tmp_path / "my run"
    folder.mkdir()
    write_card(FINE_TUNED, folder)
    assert "\nhf-lm reproduce 'my run'\n" in (folder / "README.md").read_text(encoding="utf-8")


def hostile(value):
    """The same report with all that comes from data, arguments or a model replaced by hostile text."""
    if isinstance(value, dict):
        kept = ("recipe", "pipeline_tag", "main_metric", "unit", "auto_class", "architecture", "languages")
        kept += ("device", "versions")
        return {key: item if key in kept else hostile(item) for key, item in value.items()}
    if isinstance(value, list):
        return [hostile(item) for item in value]
    return f"{HOSTILE}\n# {HOSTILE}" if isinstance(value, str) else value


LIVE = {"link_open", "image", "html_inline", "strong_open", "em_open", "s_open", "blockquote_open"}


def rendered_tokens(text):
    markdown_it = pytest.importorskip("markdown_it")
    parser = markdown_it.MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    return [inner for token in parser.parse(text) for inner in (token, *(token.children or ()))]


def test_no_text_becomes_live_in_safetys_page_or_reaches_the_terminal_as_it_is(tmp_path, capsys):
    group = {"value": 60.0, "low": 50.0, "high": 70.0, "units": 30}
    measure = {"name": HOSTILE, "source": HOSTILE, "unit": HOSTILE, "number": "{:.1f} %", "groups": {HOSTILE: group}}
    found = {"kind": "an e-mail address", "found": HOSTILE}
    models = {HOSTILE: {"made": HOSTILE, "measures": [measure], "personal": [found]}}
    safety = {"models": models, "findings": [HOSTILE], "scorer": {"measures": []}}
    write_page({"safety": safety}, tmp_path)
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    tokens = rendered_tokens(text)
    assert not {token.type for token in tokens} & LIVE
    assert sum(token.type == "td_open" for token in tokens) == 3 + 4  # no cell was divided
    show_safety(safety)
    assert not set(text + capsys.readouterr().out) & set(map(chr, CONTROLS))


@pytest.mark.parametrize("report", [REPORT, FINE_TUNED])
def test_no_text_becomes_a_link_an_image_or_html_in_the_card(report, tmp_path):
    report = hostile(report) | {"classes": {HOSTILE: {"rows": 1, "precision": 1.0, "recall": 1.0, "f1": 1.0}}}
    report["harness"] = {"version": "1", "tasks": {HOSTILE: {HOSTILE: {"value": 1.0}}}}
    report["safety"] = {"findings": [HOSTILE, f"# {HOSTILE}", f"1. {HOSTILE}"]}
    folder = tmp_path / HOSTILE.replace("/", "")
    folder.mkdir()
    write_card(report, folder)
    text = (folder / "README.md").read_text(encoding="utf-8")
    assert not set(text) & set(map(chr, CONTROLS))
    tokens = rendered_tokens(text.split("---\n", 2)[2])
    kinds = {token.type for token in tokens}
    assert not kinds & LIVE
    assert {token.content.split(">")[0] for token in tokens if token.type == "html_block"} <= {"<details", "</details"}
    assert {token.tag for token in tokens if token.type == "heading_open"} == {"h1", "h2"}
    assert sum(token.tag == "h1" for token in tokens if token.type == "heading_open") == 1
    assert "ordered_list_open" not in kinds
    bare = " ".join(re.sub(r"\\(.)", "", token.content) for token in tokens if token.type == "inline")
    assert "https://" not in re.sub(r"`[^`]*`", "", bare)  # what GitHub would make a link


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


def test_a_chat_model_is_shown_with_the_messages_of_its_first_sample(tmp_path):
    messages = [{"role": "system", "content": "Be 0."}, {"role": "user", "content": "What is 0?" + "?" * 300}]
    sample = {"prompt": "Be 0.\nWhat is 0?\n", "continuation": "0", "messages": messages}
    (tmp_path / "chat_template.jinja").touch()
    for samples, shown in (
        ([sample], [messages[0], {"role": "user", "content": "What is 0?" + "?" * 186 + " ..."}]),
        ([], [{"role": "user", "content": "Hello."}]),
    ):
        write_card(REPORT | {"pipeline_tag": "text-generation", "samples": samples}, tmp_path)
        text = (tmp_path / "README.md").read_text(encoding="utf-8")
        assert f"print(answer({json.dumps(shown)}, max_new_tokens=40))" in text
        assert f"messages = {json.dumps(shown)}" in text
    write_card(REPORT | {"samples": [sample]}, tmp_path)
    assert "[Be 0.\nWhat is 0?\n]0" in (tmp_path / "README.md").read_text(encoding="utf-8")


def test_the_widget_of_a_chat_model_holds_messages(tmp_path):
    question = [{"role": "system", "content": "Be 0."}, {"role": "user", "content": "0" * 2000}]
    report = REPORT | {"pipeline_tag": "text-generation", "example": {"messages": question}}
    write_card(report, tmp_path)
    shown = [question[0], {"role": "user", "content": "0" * 996 + " ..."}]
    assert metadata_load(tmp_path / "README.md")["widget"] == [{"messages": shown}]


def test_a_report_with_less_in_it_still_makes_a_card(tmp_path):
    write_card({"recipe": "pretrain", "seconds": 1.0, "data": {"source": "x"}, "history": []}, tmp_path)
    assert ModelCard.load(tmp_path / "README.md").data.tags == ["hf_lm"]
    assert draw_plots({"history": []}, tmp_path) == []


def test_the_terminal_shows_numbers_baselines_and_no_control_characters(capsys):
    show_report(REPORT | {"samples": [*REPORT["samples"], {"prompt": "a", "continuation": "b" + "\n" * 99}]}, "out")
    printed = capsys.readouterr().out
    assert "Sample: [a]b\n\n" in printed
    assert "\n" * 4 not in printed
    assert "1.900 (1.800 to 2.000)" in printed
    assert "unigram 3.300\n" in printed
    assert "not finite" in printed
    assert "skipped: learnable" in printed
    assert "\x1b" not in printed
    assert max(map(len, printed.splitlines())) <= 120


def test_a_system_without_resource_measures_memory_otherwise(monkeypatch):
    """As on Windows, where psutil knows the peak."""
    monkeypatch.setitem(sys.modules, "resource", None)  # its import now raises
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(psutil.Process, "memory_info", lambda self: SimpleNamespace(peak_wset=7), raising=True)
    report = runpy.run_path(hf_lm.reporting.report.__file__)
    assert report["peak_memory_bytes"]() == 7


def test_pictures_show_names_as_text(tmp_path):
    """A dollar sign begins no formula: `$\\frac$` is none that matplotlib could draw."""
    name = r"$\frac$ a_b 100 %"
    metric = {"value": 1.0, "low": 0.5, "high": 2.0}
    scores = {"models": {name: {"metrics": {name: metric}}}, "not_compared": {name: "x"}}
    lengths = {"train": {name: [1, 2, 400]}, name: {name: [1]}}
    entry = {"name": name, "source": name, "number": "{:.2f}", "groups": {name: metric | {"chance": 0.1}}}
    models = {model: {"measures": [entry]} for model in (name, "b")}
    history = [{"step": 1, f"eval_{name}": 2.0}]
    assert draw_scores(scores, tmp_path / "scores.png").is_file()
    assert draw_lengths(lengths, tmp_path).is_file()
    assert draw_safety({"models": models, "scorer": {"measures": []}}, tmp_path).is_file()
    assert len(draw_plots({"history": history, "main_metric": name}, tmp_path)) == 1


def test_text_of_data_is_shown_as_text():
    from hf_lm.reporting.markdown import in_code, in_table

    markdown_it = pytest.importorskip("markdown_it")
    renderer = markdown_it.MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    shown = printable(HOSTILE)
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

    assert headline("test").startswith(" Validation")
    assert headline().startswith(" Test")
    assert headline("validation", "test").startswith(" Test")
