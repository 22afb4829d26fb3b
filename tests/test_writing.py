"""The writing assistant: what it offers, how it ranks it, and a draft that can go back and forth."""

import json

import pytest
from rich.cells import cell_len

from hf_lm.commands.write import _joined, assist
from hf_lm.hub.credentials import printable
from hf_lm.inference.writing import Draft, alternatives, continue_text
from hf_lm.reporting.terminal import aligned, bar, percent, side_by_side


def test_a_draft_goes_back_and_forth():
    draft = Draft("one")
    draft.add(" two")
    draft.change("ONE two")
    draft.add("")  # no change, nothing to undo
    assert draft.text == "ONE two"
    assert draft.undo()
    assert draft.undo()
    assert (draft.text, draft.undo()) == ("one", False)
    assert draft.redo()
    assert draft.text == "one two"
    draft.add("!")  # what could be redone is gone
    assert (draft.redo(), draft.text) == (False, "one two!")


def test_a_text_goes_on_after_its_spaces(scripted, tokenizer):
    model = scripted(" one two")
    assert "".join(continue_text(model, tokenizer, "", temperature=0)) == " one two"
    assert "".join(continue_text(model, tokenizer, "   ", temperature=0)) == "one two"


@pytest.mark.parametrize("temperature", [0, 1.0])
def test_alternatives_differ_and_the_likeliest_comes_first(model, tokenizer, temperature):
    found = alternatives(model.eval(), tokenizer, "The quick", count=3, max_new_tokens=6, temperature=temperature)
    assert len({one.text for one in found}) == 3
    assert [one.per_token for one in found] == sorted((one.per_token for one in found), reverse=True)
    assert all(one.text.strip() for one in found)


def test_an_alternative_after_a_space_begins_with_none(model, tokenizer):
    found = alternatives(model.eval(), tokenizer, "The quick ", count=3, max_new_tokens=6, temperature=1.0)
    assert len({one.text for one in found}) == 3
    assert not any(one.text.startswith(" ") for one in found)


def typed(*lines):
    """What stands in for input(): lines, or an exception that is raised; then the end of the input."""
    left = list(lines)

    def read(prompt):
        if not left:
            raise EOFError
        line = left.pop(0)
        if isinstance(line, type):
            raise line
        return line

    return read


def test_a_session_of_writing(model, tokenizer, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    draft, file = Draft(), tmp_path / "draft.txt"
    lines = ["The quick", "", "/undo", "/redo", "/three", "2", "春眠", "不觉"]
    lines += ["/rewrite", "/three 0", "/foo", "/save", f"/save {file}", "more", "/quit", "/quit"]
    assist(model.eval(), tokenizer, draft, read=typed(*lines), max_new_tokens=8, temperature=1.0)
    said = capsys.readouterr().out
    assert draft.text.startswith("The quick")
    assert draft.text.endswith("春眠不觉more")  # no space between Chinese and what follows
    assert file.read_text(encoding="utf-8") == draft.text.removesuffix("more")
    for words in ("1: ", "3: ", "% a token", "no /rewrite", "from 1 to 9", "no /foo", "needs the name", "(not saved"):
        assert words in said
    assert [path.name for path in tmp_path.iterdir()] == ["draft.txt"]  # left on purpose: nothing is rescued


@pytest.mark.parametrize(
    ("text", "line", "added"),
    [("", "a", "a"), ("a", "b", " b"), ("a ", "b", "b"), ("a", ", b", ", b"), ("春", "眠", "眠"), ("a", "春", "春")],
)
def test_a_typed_line_is_joined_as_its_script_asks(text, line, added):
    assert _joined(text, line) == added


def test_a_draft_that_was_not_saved_survives_the_end_of_the_input_and_ctrl_c(model, tokenizer, tmp_path, capsys):
    file = tmp_path / "draft.txt"
    for end in ([], [KeyboardInterrupt, KeyboardInterrupt]):
        try:
            assist(model, tokenizer, Draft("a"), file=str(file), read=typed("b", *end))
        except KeyboardInterrupt:
            assert end
        assert (tmp_path / "draft.txt.unsaved").read_text() == "a b"
        assert "written to" in capsys.readouterr().out
        (tmp_path / "draft.txt.unsaved").unlink()
    assert not file.exists()


def test_a_draft_with_bytes_that_are_no_utf8_is_rescued_as_it_was_typed(tmp_path, capsys):
    file = tmp_path / "draft.txt"
    assist(None, None, Draft("a"), file=str(file), read=typed("caf\udce9", f"/save {file}"))
    assert (tmp_path / "draft.txt.unsaved").read_bytes() == b"a caf\xe9"
    assert "error: " in capsys.readouterr().out


def test_ctrl_c_while_the_model_writes_keeps_what_was_written(model, tokenizer, monkeypatch, capsys):
    def pieces(*args, **kwargs):
        yield " one"
        raise KeyboardInterrupt

    monkeypatch.setattr("hf_lm.inference.writing.continue_text", pieces)
    draft = Draft("zero")
    assist(model, tokenizer, draft, read=typed("", "/undo", "/redo", "/quit", "/quit"))
    assert draft.text == "zero one"
    assert "(stopped" in capsys.readouterr().out


def test_columns_stand_beside_each_other_whatever_the_script():
    texts = ["春眠不觉晓，处处闻啼鸟。夜来风雨声", "one two three [bold]four[/bold] :smile:", "x\x1b[31m"]
    shown = side_by_side(texts, ["1: 5 %", "2", "3"], width=70)
    lines = shown.split("\n")
    assert {cell_len(line) for line in lines} == {70}
    assert cell_len(lines[0][: lines[0].index("2")]) == cell_len(lines[2][: lines[2].index("one")])
    left = "".join(line[:14] for line in lines[2:]).replace(" ", "")
    assert left.startswith("春眠不觉晓")  # nothing lost at the end of a line
    for words in ("[bold]four[/bold]", ":smile:", "x␛[31m"):  # neither markup nor an escape
        assert words in shown
    assert side_by_side(["a", "b"], ["1", "2"], width=30) == "1\na\n\n2\nb"


def test_columns_are_aligned_whatever_the_script():
    assert aligned([["", "春眠", "x"], ["ab", "y\x1b", "春"]]) == ["    春眠  x", "ab  y␛    春"]


def test_a_bar_shows_eighths_and_every_share_above_zero():
    assert [bar(share, 4) for share in (0, 1e-9, 0.5, 17 / 32, 1)] == ["", "▏", "██", "██▏", "████"]


def test_control_characters_are_shown_not_obeyed():
    assert printable("a\x1b[31mb\r\x07\n\t\x9b") == "a␛[31mb␍␇\n\t\ufffd"
    assert printable("\u202eabc\u2066\u2028\udcff") == "�abc���"  # the order of a line, its end, half a character
    assert printable(json.loads('"春眠 👩‍👧"')) == "春眠 👩‍👧"
    assert (percent(0.0), percent(-1.0), percent(-6.0)) == ("100 %", "37 %", "0.25 %")
