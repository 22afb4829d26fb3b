"""hf-lm: light until it runs, plain when it is used wrongly."""

import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hf_lm.cli import COMMANDS, build_parser, main

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("argv", [[], ["run"]])
def test_help_imports_nothing_heavy(argv):
    code = (
        "import sys\nfrom hf_lm.cli import main\n"
        f"try: main({[*argv, '--help']!r})\n"
        "except SystemExit: pass\n"
        "outside = {m.split('.')[0] for m in sys.modules} - set(sys.stdlib_module_names) - {'hf_lm', '__main__'}\n"
        "print(sorted(m for m in outside if not m.startswith('_')))"
    )
    bare = [sys.executable, "-S", "-c", code]  # -S: what the environment's .pth files import is not ours
    done = subprocess.run(bare, capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_every_command_has_help_with_an_example_that_it_would_accept(capsys):
    parser = build_parser()
    for name in COMMANDS:
        with pytest.raises(SystemExit) as ended:
            main([name, "--help"])
        assert ended.value.code == 0
        shown = capsys.readouterr().out
        examples = [line.strip() for line in shown.split("example")[-1].splitlines() if "hf-lm " in line]
        assert examples
        for example in examples:
            command = example[example.index("hf-lm ") :].split(" && ")[0].split(" > ")[0].split("  #")[0]
            words = shlex.split(command)[1:]
            assert words[0] == name
            if name != "run":  # what follows it is for the recipe
                parser.parse_args(words)


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ([], "give a command: recipes, copy, plan"),
        (["psh"], "Did you mean 'push'?"),
        (["push", "out", "me/it", "--privat"], "hf-lm push has no option --privat. Did you mean '--private'?"),
        (["predict", "a", "b", "c", "--colum=x"], "no option --colum. Did you mean '--column'?"),
        (["push", "out", "me/it", "more"], "has no argument 'more'"),
        (["run"], "required: recipe"),
        (["completion", "cmd"], "'bash', 'zsh', 'fish'"),
    ],
)
def test_a_wrong_usage_is_one_line_and_exit_code_2(argv, said, capsys):
    with pytest.raises(SystemExit) as ended:
        main(argv)
    error = capsys.readouterr().err
    assert (ended.value.code, error.count("\n")) == (2, 1)
    assert said in error


def test_an_error_is_one_line_and_exit_code_1(capsys, tmp_path):
    with pytest.raises(SystemExit) as ended:
        main(["push", str(tmp_path / "nothing"), "me/it"])
    assert ended.value.code == 1
    assert capsys.readouterr().err == f"error: there is no folder {tmp_path / 'nothing'}.\n"
    with pytest.raises(FileNotFoundError):
        main(["--debug", "push", str(tmp_path / "nothing"), "me/it"])


class Panic(BaseException):
    """As the tokenizers library raises one."""


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (KeyError("text"), "KeyError: 'text' (test_cli.py:"),
        (RecursionError("maximum depth"), "RecursionError: maximum depth"),
        (Panic("index out of range"), "Panic: index out of range"),
        (ValueError("x" * 20_000 + " Set --model."), "Set --model."),
        (TypeError("a" * 20_000), "(test_cli.py:"),
        (ValueError("red \x1b[31m\u202e and\ntwo lines"), "red ␛[31m\ufffd and two lines"),
        (RuntimeError(""), "RuntimeError"),
    ],
)
def test_any_error_of_a_command_is_one_short_line_that_is_inert(error, said, monkeypatch, capsys):
    def fails(args):
        raise error

    monkeypatch.setattr("hf_lm.commands.recipes.run", fails)
    with pytest.raises(SystemExit) as ended:
        main(["recipes"])
    line = capsys.readouterr().err
    assert (ended.value.code, line.count("\n")) == (1, 1)
    assert said in line
    assert len(line) < 500
    with pytest.raises(type(error)):
        main(["--debug", "recipes"])


def test_the_closest_option_is_one_that_begins_alike(capsys):
    with pytest.raises(SystemExit):
        main(["generate", "m", "--temp", "1"])
    assert "Did you mean '--temperature'?" in capsys.readouterr().err


def test_ctrl_c_is_exit_code_130(monkeypatch):
    def interrupted(args):
        raise KeyboardInterrupt

    monkeypatch.setattr("hf_lm.commands.recipes.run", interrupted)
    with pytest.raises(SystemExit) as ended:
        main(["recipes"])
    assert ended.value.code == 130


def test_a_merged_model_stands_beside_its_adapter_unless_told_otherwise(monkeypatch, tmp_path):
    asked = []
    merge = lambda adapter, output: asked.append((adapter, output))  # noqa: E731
    monkeypatch.setattr("hf_lm.models.adapters.merge_adapter", merge, raising=False)
    main(["merge", f"{tmp_path}/adapter/"])
    main(["merge", f"{tmp_path}/adapter", "out/plain"])
    assert asked == [(f"{tmp_path}/adapter/", f"{tmp_path}/merged"), (f"{tmp_path}/adapter", "out/plain")]


def test_a_reader_that_leaves_is_no_error():
    line = f"{sys.executable} -m hf_lm.cli recipes | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, cwd=ROOT)
    assert done.stderr == ""
    assert done.returncode in (0, 141)  # 0 where everything was written before the reader left


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_completes_commands_recipes_options_and_files(capsys, tmp_path):
    pytest.importorskip("shtab")
    main(["completion", "bash"])
    script = tmp_path / "completion.bash"
    script.write_text(capsys.readouterr().out)
    complete = (
        'source "$1"; shift; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); '
        '_shtab_hf_lm hf-lm "${@: -1}" "${@: -2:1}"; echo "${COMPREPLY[@]}"'
    )

    def completed(*words):
        done = subprocess.run(["bash", "-c", complete, "-", script, "hf-lm", *words], capture_output=True, text=True)
        return done.stdout.split()

    (tmp_path / "folder").mkdir()
    assert completed("pus") == ["push"]
    assert completed("run", "sent") == ["sentiment"]
    assert completed("push", "--") == ["--help", "--private"]
    assert completed("push", f"{tmp_path}/fo") == [f"{tmp_path}/folder"]


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_have_a_completion_of_every_command(shell, capsys):
    pytest.importorskip("shtab")
    main(["completion", shell])
    script = capsys.readouterr().out
    assert all(name in script for name in COMMANDS)
