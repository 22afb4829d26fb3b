"""--help shows what concerns a recipe, each option described; --help_all shows the Trainer's options too."""

import re
import runpy
import sys
from argparse import SUPPRESS
from dataclasses import dataclass, fields
from pathlib import Path
from typing import ClassVar, Literal

import pytest

from hf_lm.arguments import TrainingArguments, parse_arguments
from hf_lm.parsing.help_text import comments

RECIPES = sorted((Path(__file__).parent.parent / "recipes").glob("*.py"))


@dataclass
class Base:
    rank: int = 0  # of the updates; 0 has none
    defaults: ClassVar[dict] = {"weight_decay": 0.25}


@dataclass
class Arguments(Base):
    dataset: str = "demo#1"  # a file, or 50 % of it
    kind: Literal["short", "long"] = "short"  # of text
    shares: tuple = ()
    tied: bool = True  # one matrix for both ends


@pytest.fixture
def shown(capsys, monkeypatch):
    def run(*argv: str, columns: int = 100, **defaults) -> str:
        monkeypatch.setenv("COLUMNS", str(columns))
        with pytest.raises(SystemExit) as stop:
            parse_arguments(Arguments, TrainingArguments, [*argv], fresh={"learning_rate": 0.5}, **defaults)
        assert stop.value.code == 0
        return capsys.readouterr().out

    return run


def test_an_option_is_described_by_the_comment_beside_it(shown):
    text = shown("--help")
    assert re.search(r"^  --dataset TEXT +a file, or 50 % of it \(default: demo#1\)$", text, re.MULTILINE)
    assert re.search(r"^  --rank N +of the updates; 0 has none \(default: 0\)$", text, re.MULTILINE)
    assert re.search(r"^  --kind short\|long +of text \(default: short\)$", text, re.MULTILINE)
    assert re.search(r"^  --tied true\|false +one matrix for both ends \(default: True\)$", text, re.MULTILINE)
    assert not re.search(f"--no.tied|{SUPPRESS}", text)


def test_the_recipe_comes_first_and_the_base_class_after_its_own(shown):
    text = shown("--help")
    places = [text.index(word) for word in ("This recipe:", "--dataset", "--rank", "Every run:", "--output_dir")]
    assert places == sorted(places)


def test_the_trainers_options_are_shown_where_the_recipe_sets_them_or_all_are_asked_for(shown):
    short, long = (
        set(re.findall(r"^  --(\w+)", shown(option, adam_beta2=0.95), re.MULTILINE)) for option in ("-h", "--help_all")
    )
    assert {"adam_beta2", "weight_decay", "muon_learning_rate", "seed", "config"} < short
    assert not {"ddp_timeout", "adam_epsilon"} & short
    assert {f.name for c in (TrainingArguments, Arguments) for f in fields(c) if f.init} < long
    assert short < long


@pytest.mark.parametrize("option", ["--help", "--help_all"])
def test_a_recipe_that_trains_nothing_shows_the_training_options_that_concern_it(option, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["corpus.py", option])
    with pytest.raises(SystemExit):
        runpy.run_path(str(next(path for path in RECIPES if path.stem == "corpus")), run_name="__main__")
    text = capsys.readouterr().out
    shown = set(re.findall(r"^  --(\w+)", text[text.index("Every run:") :], re.MULTILINE))
    general = {"config", "print_config", "allow_code", "debug"}
    assert shown == {"output_dir", "overwrite_output_dir", "resume_from_checkpoint"} | general
    assert "--help_all" not in text


def test_defaults_are_those_of_this_run(shown, tmp_path):
    (tmp_path / "run.yaml").write_text("rank: 7\n")
    text = " ".join(shown("--help", "--config", str(tmp_path / "run.yaml")).split())
    assert "of the updates; 0 has none (default: 7)" in text
    assert "(default: 0.5, with --model 5e-05)" in text


@pytest.mark.parametrize("columns", [40, 80, 200])
def test_lines_fit_the_terminal(shown, columns):
    lines = shown("-h", columns=columns).split("\n")
    assert max(len(line) for line in lines if "--" not in line) <= max(columns, 60)
    assert max(len(line) for line in lines) > 0.9 * max(columns, 60)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_option_of_a_recipe_has_a_description(path, monkeypatch):
    recipe = runpy.run_path(str(path), run_name=path.stem)["Arguments"]
    module = type(sys)(recipe.__module__)
    module.__file__ = str(path)
    monkeypatch.setitem(sys.modules, recipe.__module__, module)
    missing = {f.name for f in fields(recipe) if not f.metadata.get("help")} - set(comments(recipe))
    assert not missing
