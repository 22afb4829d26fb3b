"""Recipes are found wherever hf-lm is installed, copied without losing anything, and run as if typed."""

import ast
import json
import os
import signal
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from hf_lm.hub.credentials import masked
from hf_lm.launching import LAUNCH_OPTIONS, _split, copy_recipe, find_recipes

ROOT = Path(__file__).parent.parent


def test_every_recipe_says_what_it_does_and_every_configuration_belongs_to_one():
    recipes = find_recipes()
    assert set(recipes) == {path.stem for path in (ROOT / "recipes").glob("*.py")}
    assert all(recipe.said.endswith(".") for recipe in recipes.values())
    assigned = [path for recipe in recipes.values() for path in recipe.configs]
    assert sorted(assigned) == sorted((ROOT / "recipes" / "configs").glob("*.yaml"))


def test_a_configuration_belongs_to_the_longest_name_it_begins_with(tmp_path):
    (tmp_path / "configs").mkdir()
    for name in ("chat.py", "chat_long.py", "configs/chat_long_alpaca.yaml", "configs/chatter.yaml"):
        (tmp_path / name).write_text('"""Says."""\n')
    found = find_recipes(tmp_path)
    assert [path.name for path in found["chat_long"].configs] == ["chat_long_alpaca.yaml"]
    assert found["chat"].configs == ()


def test_the_wheel_carries_what_a_checkout_has():
    wheel = pytest.importorskip("hatchling.builders.wheel").WheelBuilder(str(ROOT))
    carried = {file.distribution_path for file in wheel.recurse_included_files()}
    recipes = ROOT / "recipes"
    there = [path for path in recipes.rglob("*") if path.suffix in (".py", ".yaml", ".sh")]
    assert {f"hf_lm/recipes/{path.relative_to(recipes).as_posix()}" for path in there} <= carried
    assert {"hf_lm/cli.py", "hf_lm/py.typed", "hf_lm/safety/words/insults.txt"} <= carried


def test_an_installed_package_finds_its_own_recipes_and_no_neighbour_of_that_name(tmp_path, monkeypatch):
    package = tmp_path / "site" / "hf_lm"
    for folder, said in ((package / "recipes", "Ours."), (tmp_path / "site" / "recipes", "Cooking.")):
        folder.mkdir(parents=True)
        (folder / "pretrain.py").write_text(f'"""{said}"""\n')
    monkeypatch.setattr("hf_lm.launching.__file__", str(package / "launching.py"))
    assert [recipe.said for recipe in find_recipes().values()] == ["Ours."]


def test_a_copy_runs_says_how_it_is_called_and_overwrites_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    written = copy_recipe("pretrain", "mine")
    assert {path.name for path in written} >= {"pretrain.py", "pretrain_gpt2_wikitext2.yaml"}
    text = Path("mine/pretrain.py").read_text()
    assert "accelerate launch mine/pretrain.py --config mine/configs/pretrain_gpt2_wikitext2.yaml" in text
    original = (ROOT / "recipes" / "pretrain.py").read_text()
    assert text.split('"""')[2:] == original.split('"""')[2:]
    Path("mine/pretrain.py").write_text("changed")
    Path("mine/configs/pretrain_rnn_wikitext2.yaml").unlink()
    with pytest.raises(FileExistsError, match=r"mine/pretrain\.py.*nothing was written"):
        copy_recipe("pretrain", "mine")
    assert Path("mine/pretrain.py").read_text() == "changed"
    assert not Path("mine/configs/pretrain_rnn_wikitext2.yaml").exists()
    with pytest.raises(ValueError, match="Did you mean 'sentiment'"):
        copy_recipe("sentimant", "mine")


def test_a_recipe_is_not_copied_into_a_file(tmp_path):
    (tmp_path / "mine").write_text("")
    for folder in (tmp_path / "mine", tmp_path / "mine" / "more"):
        with pytest.raises(NotADirectoryError, match="mine is a file: give another folder"):
            copy_recipe("pretrain", folder)


def test_what_follows_the_name_is_the_recipes_and_what_stands_before_it_accelerates():
    path = ROOT / "recipes" / "sentiment.py"
    untouched = ["--lora_rank", "8", "--debug", "--label_column=-1", "--", "--help", "pretrain", ""]
    assert _split(["sentiment", *untouched]) == ([], path, untouched)
    assert _split(["--mixed_precision", "bf16", "--debug", "sentiment", "--debug"]) == (
        ["--mixed_precision", "bf16", "--debug"],
        path,
        ["--debug"],
    )
    assert _split(["sentiment", "--num_processes", "4", "--seed", "1", "--gpu_ids=0,1"]) == (
        ["--num_processes", "4", "--gpu_ids=0,1"],
        path,
        ["--seed", "1"],
    )
    assert _split(["sentiment", "--num_processes=2", "--use_cpu"])[0] == ["--multi_gpu", "--num_processes=2"]
    assert _split(["sentiment", "--num_processes", "1", "--use_cpu"])[0] == ["--num_processes", "1"]
    with pytest.raises(ValueError, match=r"no recipe 'sentimant'.*Did you mean 'sentiment'"):
        _split(["sentimant", "--dataset", "pretrain"])
    with pytest.raises(FileNotFoundError, match=r"no file mine\.py"):
        _split(["mine.py"])
    with pytest.raises(ValueError, match="no recipe is named"):
        _split(["--num_processes", "2"])


def test_no_recipe_has_an_option_that_would_go_to_accelerate():
    from hf_lm.arguments import FineTuningArguments, TrainingArguments

    taken = {name.removeprefix("--") for name in LAUNCH_OPTIONS}
    assert not taken & {field.name for own in (FineTuningArguments, TrainingArguments) for field in fields(own)}
    for recipe in find_recipes().values():
        nodes = ast.walk(ast.parse(recipe.path.read_text()))
        assert not taken & {node.target.id for node in nodes if isinstance(node, ast.AnnAssign)}


SCRIPT = """
import json, os, signal, sys, time

def stop(number, frame):
    print("stopping", flush=True)
    sys.exit(128 + number)

signal.signal(signal.SIGTERM, stop)
about = {"pid": os.getpid(), "argv": sys.argv[1:], "rank": os.environ.get("RANK")}
sys.stdout.write(json.dumps(about) + "\\n")  # in one piece: two processes share the pipe
sys.stdout.flush()
if "--wait" in sys.argv:
    time.sleep(60)
sys.exit(7)
"""


def start(*arguments) -> subprocess.Popen:
    command = [sys.executable, "-m", "hf_lm.cli", "run", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)


def test_arguments_and_exit_codes_go_through_and_a_signal_reaches_the_recipe(tmp_path):
    script = tmp_path / "mine.py"
    script.write_text(SCRIPT)
    ended, waiting = start(script, "--text", "a b"), start(script, "--wait")
    out, error = ended.communicate(timeout=60)
    assert json.loads(out)["argv"] == ["--text", "a b"]
    assert ended.returncode == 7
    assert error == f"accelerate launch {script} --text 'a b'\n"  # and no traceback of the launcher

    recipe = json.loads(waiting.stdout.readline())
    assert recipe["pid"] == waiting.pid  # one process: nothing can be left behind
    waiting.send_signal(signal.SIGTERM)
    assert waiting.communicate(timeout=60)[0] == "stopping\n"
    assert waiting.returncode == 128 + signal.SIGTERM


@pytest.mark.parametrize(
    "given", [["--hub_token", "hf_x"], ["--hub_token=hf_x"], ["--api-key", "hf_x", "--seed", "1"]]
)
def test_the_printed_command_shows_no_token(given, capsys, monkeypatch):
    from accelerate.commands import launch as accelerate_launch

    from hf_lm.launching import launch

    launched = []
    monkeypatch.setattr(accelerate_launch, "launch_command", lambda args: launched.extend(args.training_script_args))
    with pytest.raises(SystemExit):
        launch(["sentiment", "--max_new_tokens", "8", *given])
    shown = capsys.readouterr().err
    assert "hf_x" not in shown
    assert "--max_new_tokens 8" in shown
    assert "***" in shown
    assert launched == ["--max_new_tokens", "8", *given]


@pytest.mark.parametrize("debug", [False, True])
def test_no_error_shows_a_token_not_even_its_traceback(debug, capsys, monkeypatch):
    from hf_lm.hub.credentials import report_errors

    monkeypatch.setattr(sys, "argv", ["sentiment.py", "--hub_token", "hf_given"])
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setenv("HF_TOKEN", "hf_set")
    report_errors(debug=debug)
    try:
        raise RuntimeError(f"refused: hf_set of hf_given, {'hf_' + 'x' * 34}.")
    except RuntimeError as error:
        sys.excepthook(type(error), error, error.__traceback__)
    shown = capsys.readouterr().err
    assert "refused: *** of ***, ***." in shown
    assert ("Traceback" in shown) == debug


@pytest.mark.slow
def test_two_processes_on_a_cpu_are_two_and_none_is_left(tmp_path):
    script = tmp_path / "mine.py"
    script.write_text(SCRIPT)
    run = start(script, "--num_processes", 2, "--wait", "--use_cpu")
    ranks = [json.loads(run.stdout.readline()) for _ in range(2)]
    assert {rank["rank"] for rank in ranks} == {"0", "1"}
    run.send_signal(signal.SIGTERM)
    run.communicate(timeout=60)
    assert run.returncode == 128 + signal.SIGTERM
    assert not any(os.path.exists(f"/proc/{rank['pid']}") for rank in ranks)


def test_an_error_of_a_process_without_arguments_is_masked(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["hf-lm"])
    assert masked("token hf_" + "a" * 34) == "token ***"


def test_secrets_of_the_environment_and_passwords_of_addresses_are_masked(monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef" * 2)
    monkeypatch.setenv("SHORT_KEY", "a")  # of which every text has some
    said = masked("at https://ann:s3cret@host/v1 with 0123456789abcdef0123456789abcdef")
    assert said == "at https://***@host/v1 with ***"
