"""The tutorial: its commands exist, its two languages are one, and it runs from the first line to the last."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from loopback_hub import hub  # noqa: F401
from test_docs import DOCS, FENCE, ROOT, check_options, commands

ENGLISH, CHINESE = DOCS / "tutorial", DOCS / "zh" / "tutorial"
STORY = ENGLISH / "story.sh"
CHAPTERS = sorted(path.name for path in ENGLISH.glob("[0-9]*.md"))
COMMENT = re.compile(r"(^|  )# .*$", re.MULTILINE)


def fences(page: Path) -> list[tuple[str, str]]:
    """(language and title, text) of each block, the comments of code removed: these are in the page's language."""
    found = FENCE.findall(page.read_text(encoding="utf-8"))
    return [(info, COMMENT.sub("", text) if info in ("bash", "python") else text) for info, text in found]


def test_both_languages_have_the_same_chapters_commands_and_outputs():
    assert 8 <= len(CHAPTERS) <= 10
    assert {path.name for path in ENGLISH.glob("*.md")} == {path.name for path in CHINESE.glob("*.md")}
    for name in CHAPTERS:
        english, chinese = fences(ENGLISH / name), fences(CHINESE / name)
        assert english == chinese, name
        languages = [info for info, _ in english]
        assert "bash" in languages, f"{name} has nothing to type"
        assert "text" in languages, f"{name} shows nothing"


def test_recipes_of_the_tutorial_have_its_options():
    lines = [line for name in CHAPTERS for line in commands(ENGLISH / name)]
    lines += STORY.read_text(encoding="utf-8").replace("\\\n", " ").splitlines()
    found = [re.match(r"hf-lm run (\w+)(.*)", line) for line in lines]
    assert sum(check_options(run[1], run[2]) for run in found if run) > 20


@pytest.mark.parametrize("folder", [ENGLISH, CHINESE], ids=["en", "zh"])
def test_each_chapter_names_functions_where_they_are(folder):
    for name in CHAPTERS:
        rows = re.findall(r"^\|.*`(\w+)` \| `([\w/]+\.py)` \|$", (folder / name).read_text("utf-8"), re.MULTILINE)
        assert rows, name
        for function, path in rows:
            text = (ROOT / path).read_text("utf-8")
            assert re.search(rf"(?:def|class) {function}\b|^{function}\b.* = ", text, re.MULTILINE), (name, function)


def environment_of(hub, folder: Path) -> dict[str, str]:  # noqa: F811
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    own = {"HF_HOME": str(folder / "home"), "PATH": path, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    return os.environ | hub.environment() | own


def run_block(language: str, text: str, *, typed: str, folder: Path, environment: dict[str, str]) -> str:
    """Run a block of code as a reader would, and press Ctrl-C where a page says so. Returns the output."""
    program = ["bash", "-e", "-c", text] if language == "bash" else [sys.executable, "-c", text]
    with subprocess.Popen(
        program, cwd=folder, env=environment, text=True, start_new_session=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    ) as run:  # fmt: skip
        run.stdin.write(typed)
        run.stdin.close()
        printed, interrupted = "", False
        for line in run.stdout:
            printed += line
            if "(Ctrl-C ends it)" in line:
                os.killpg(run.pid, signal.SIGINT)
                interrupted = True
        assert run.wait() in ((0, 130) if interrupted else (0,)), f"{text}\n{printed[-3000:]}"
    return printed


def run_notebook(path: Path, *, folder: Path, environment: dict[str, str]) -> list[str]:
    """Run the cells of a notebook in order, without Jupyter; a line that begins with `!` is the shell's. Outputs."""
    cells = [cell["source"] for cell in json.loads(path.read_text("utf-8"))["cells"] if cell["cell_type"] == "code"]
    shell = "subprocess.run({!r}, shell=True, check=True, stderr=subprocess.STDOUT)"
    lines = [[re.sub(r"^!(.*)", lambda typed: shell.format(typed[1]), line) for line in cell] for cell in cells]
    text = "print('\\f')\n".join("".join(cell) + "\n" for cell in lines)
    printed = run_block("python", f"import subprocess\n{text}", typed="", folder=folder, environment=environment)
    return printed.split("\f\n")


def run_chapter(page: Path, *, folder: Path, environment: dict[str, str]) -> str:
    """Run the blocks of a chapter in order; lines after `> ` in the block that follows are typed in. Returns all."""
    printed = ""
    found = FENCE.findall(page.read_text(encoding="utf-8"))
    for (language, text), (_, shown) in zip(found, [*found[1:], ("", "")], strict=True):
        if language in ("bash", "python"):
            typed = "".join(f"{line}\n" for line in re.findall(r"^> ?(.*)", shown, re.MULTILINE))
            printed += f"$$ {text}{run_block(language, text, typed=typed, folder=folder, environment=environment)}"
    return printed


@pytest.fixture
def work(tmp_path):
    (folder := tmp_path / "work").mkdir()
    return folder


@pytest.mark.slow
@pytest.mark.timeout(3 * 3600)
def test_the_chapters_run_in_order(hub, work):  # noqa: F811
    """Each in 15 minutes on two idle cores; what they claim of their models holds."""
    from hf_lm.scoring.compare_runs import compare_runs  # imports what the fast tests do without

    environment = environment_of(hub, work.parent)
    for name in CHAPTERS:
        run_chapter(ENGLISH / name, folder=work, environment=environment)
    folders = [str(work / "out" / name) for name in ("rnn", "small")]
    rnn = json.loads((Path(folders[0]) / "report.json").read_text())["metrics"]["test"]["bits_per_byte"]
    assert rnn["baseline"]["beaten"]
    (comparison,) = compare_runs(folders, metrics=["bits_per_byte"])["comparisons"]
    assert comparison["better"] == folders[1], comparison["said"]


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_story_runs_from_the_tokenizer_to_the_model_by_its_name(hub, work):  # noqa: F811
    run = subprocess.run(
        ["bash", str(STORY), "out", "user/story"], cwd=work, env=environment_of(hub, work.parent),
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=3000,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout[-3000:]
    assert "200 http://127.0.0.1" in run.stdout
    assert "GPT2LMHeadModel answers:" in run.stdout.splitlines()[-1]
    assert "model.safetensors" in hub.repos["user/story"]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_notebook_runs(hub, work):  # noqa: F811
    path = DOCS / "notebooks" / "first_run.ipynb"
    outputs = run_notebook(path, folder=work, environment=environment_of(hub, work.parent))
    shown = [cell["outputs"] for cell in json.loads(path.read_text("utf-8"))["cells"] if cell["cell_type"] == "code"]
    assert len(outputs) == len(shown)
    assert all(outputs)
    assert all(shown), "a cell of the notebook shows no output"
