"""From a file of inputs to a file of JSON lines; a stopped run continues.

`hf-lm predict` uses a pipeline, `hf-lm generate --output` continues prompts.
"""

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from tqdm import tqdm

from hf_lm.data.reading import SUFFIXES, clean, read_lines, read_rows, suffix
from hf_lm.data.tables import pick_column
from hf_lm.files import held, holder, naming, refuse_foreign
from hf_lm.inference.decoding import Decoding

COLUMNS = (  # as the recipes and prompts call a text
    *("text", "prompt", "source", "src", "sentence", "document", "article", "dialogue", "input", "review", "body"),
    *("content", "comment", "tweet", "0"),
)
PIECE = 256  # inputs between two writes

Input = str | dict[str, str]  # a text, or a question and its context
Answer = Callable[[list[Any]], Iterable[dict[str, Any]]]  # from inputs to what is written beside each


def predict(task: str, model: str, source: str, output: str, *, column: str = "") -> int:
    """Write a line of JSON per input, in order; returns their number.

    {"input", "prediction", ..., "model", "fingerprint", "task"}.

    `source` is a .txt file with an input a line, or a table, whose `column` is read: "" guesses; question answering
    reads `question` and `context`, or the two columns that are listed with a comma. `write_lines` says how an
    existing output is continued.
    """
    from hf_lm.tasks.by_name import task_named

    asked = task_named(task)
    if len(asked.inputs) > 1:
        inputs: Sequence[Input] = read_columns(source, asked.inputs, column)
    else:
        inputs = read_texts(source, column, lists=asked.read_from == "source")

    def start() -> Answer:
        from hf_lm.inference.pipelines import pipeline

        made = pipeline(asked.pipeline_tag, model=model, **asked.pipeline_options)

        def answer(piece: list[Any]) -> Iterable[dict[str, Any]]:
            answers = made(piece, batch_size=32)
            answers = [answers] if isinstance(answers, dict) else answers  # a dict: of one question
            return map(asked.prediction_of, piece, answers)

        return answer

    return write_lines(inputs, output, start, model=model, source=source, description=task, shared={"task": task})


def generate_lines(
    model: str, prompts: list[str], output: str, *, source: str = "", device: str | None = None, **decoding: Any
) -> int:
    """Write a line of JSON per prompt, in order; returns their number.

    {"input", "continuations": [{"text", "log_probability", "log_probability_per_token", "tokens", "ended"}, ...],
    "model", "fingerprint", "settings"}. `source`: the file that the prompts were read from. `write_lines` says how an
    existing output is continued.
    """
    settings: dict[str, Any] = vars(Decoding(**decoding)) | {"stop": list(Decoding(**decoding).stop)}
    piece = 4 * settings.pop("batch_size")  # the batch has no effect on the text

    def start() -> Answer:
        from hf_lm.inference.generate import generate, load_writer

        loaded = load_writer(model, device=device)
        return lambda piece: (
            {
                "continuations": [
                    {
                        "text": text.text,
                        "log_probability": text.log_probability,
                        "log_probability_per_token": text.per_token,
                        "tokens": len(text.log_probs),
                        "ended": text.ended,
                    }
                    for text in continuations
                ]
            }
            for continuations in generate(*loaded, piece, **decoding)
        )

    shared = {"settings": settings}
    return write_lines(
        prompts, output, start, model=model, source=source, description="writing", shared=shared, piece=piece
    )


def write_lines(
    inputs: Sequence[Input],
    output: str,
    start: Callable[[], Answer],
    *,
    model: str,
    shared: dict[str, Any],
    source: str = "",
    description: str,
    piece: int = PIECE,
) -> int:
    """Write a line of JSON per input, in order: {"input", the answer, "model", "fingerprint", `shared`}; returns their
    number.

    Lines that `output` already holds are kept and their inputs skipped, so that the same command continues where it
    was stopped; an unfinished last line is written again. `start`, called if inputs are left, loads the model and
    returns what answers a list of inputs. Raises ValueError or FileExistsError, and changes nothing, if `output` is
    the `source` of the inputs, is not a file of such lines, has other inputs, another model or other `shared` values,
    or is written by another process.
    """
    from hf_lm.models.configuration import model_fingerprint

    path = Path(output)
    if source and path.exists() and path.samefile(source):
        raise ValueError(f"--output {output} is the file that is read: give another --output.")
    refuse_foreign(path, ours=_is_ours, option="--output")
    shared = {"model": model, "fingerprint": model_fingerprint(model), **shared}
    path.parent.mkdir(parents=True, exist_ok=True)
    with _alone(path):
        written = _keep_lines(path, inputs, shared) if path.is_file() else 0
        rest = iter(inputs[written:])
        answer = start() if written < len(inputs) else None
        with (
            naming(path),
            path.open("a", encoding="utf-8") as file,
            tqdm(total=len(inputs), initial=written, desc=description, disable=None) as bar,
        ):
            try:
                while answer and (some := list(islice(rest, piece))):
                    for given, answered in zip(some, answer(some), strict=True):
                        file.write(json.dumps({"input": given, **answered, **shared}, ensure_ascii=False) + "\n")
                    file.flush()
                    written += len(some)
                    bar.update(len(some))
            except KeyboardInterrupt:
                bar.close()
                said = f"stopped: {path} holds {written:,} of {len(inputs):,}; the same command resumes."
                print(said, file=sys.stderr)
                raise
    return len(inputs)


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Hold a file as the only command that writes it; a pipe or a device is nobody's."""
    with contextlib.ExitStack() as until_written:
        lock = path.with_name(f".{path.name}.lock")
        try:
            if path.is_file() or not path.exists():
                until_written.enter_context(held(lock))
        except BlockingIOError:
            raise FileExistsError(f"{path} is being written ({holder(lock)}): give another --output.") from None
        yield


def _keep_lines(path: Path, inputs: Sequence[Input], shared: dict[str, Any]) -> int:
    """The number of complete lines of a file; truncates an incomplete last one. Raises ValueError for other lines."""
    data = path.read_bytes()
    size = data.rfind(b"\n") + 1  # of the complete lines
    done = data[:size].split(b"\n")[:-1]
    if len(done) > len(inputs):
        raise ValueError(f"{path} holds {len(done):,} lines for {len(inputs):,} inputs: choose another --output.")
    for number, (line, given) in enumerate(zip(done, inputs, strict=False), 1):
        try:
            kept = json.loads(line)
        except ValueError:
            kept = None
        if not isinstance(kept, dict) or kept.get("input") != given:
            raise ValueError(f"{path}, line {number}: not the answer to this run's input; choose another --output.")
        for key, value in shared.items():
            if kept.get(key) != value:
                change = _difference(kept.get(key), value)
                what = "fingerprint of the model" if key == "fingerprint" else key
                raise ValueError(f"{path}, line {number}: other {what} than now ({change}); choose another --output.")
    if tail := data[size:]:
        given = [json.dumps({"input": given}, ensure_ascii=False).encode() for given in inputs[len(done) :][:1]]
        begun = given[0][:-1] if given else b""  # of the next line
        if not begun or tail[: len(begun)] != begun[: len(tail)]:
            raise ValueError(
                f"{path}, line {len(done) + 1}: neither a complete line nor the beginning of the next answer; choose "
                "another --output."
            )
        os.truncate(path, size)
    return len(done)


def _is_ours(path: Path) -> bool:
    """Whether a file is empty or begins with a line that `write_lines` writes for `predict` or `generate_lines`.

    Of a first line that was cut short `_keep_lines` compares the input.
    """
    with path.open("rb") as file:
        line = file.readline()
    try:
        row = json.loads(line)
    except ValueError:
        begin = b'{"input": '
        return not line.endswith(b"\n") and line[: len(begin)] == begin[: len(line)]
    return {"input", "model"} <= row.keys() and bool({"prediction", "continuations"} & row.keys())


def _difference(before: object, now: object) -> str:
    if isinstance(before, dict) and isinstance(now, dict):
        return ", ".join(f"{key} {before.get(key)}, not {now[key]}" for key in now if before.get(key) != now[key])
    return f"{before}, not {now}"


def read_texts(source: str, column: str = "", *, lists: bool = False) -> list[str]:
    """The texts of a file: a .txt's lines, or a table's column; a number counts in a table without a header.

    With `lists` a text may be a list of sentences, and a column one of those in `translation`, as in training. Raises
    FileNotFoundError or ValueError in one line.
    """
    path = _existing(source)
    if not column.isdigit() and (suffix(path) == ".txt" or suffix(path) not in SUFFIXES):
        if column:
            raise ValueError(
                f"--column {column}: {source} has lines, not columns; a number counts cells between tabs."
            )
        texts = [line for line in read_lines(path) if line.strip()]
        if not texts:
            raise ValueError(f"{source} is empty.")
        return texts
    rows = _rows(path, column)
    if lists:
        from hf_lm.tasks.translation import with_languages

        rows = with_languages(rows)
    name = pick_column(rows, column, COLUMNS, option="--column", where=source)
    return [_text(row, name, source, number, lists=lists) for number, row in enumerate(rows, 1)]


def read_columns(source: str, names: Sequence[str], columns: str = "") -> list[dict[str, str]]:
    """Each row of a table as {name: text}, and each question of SQuAD's nested articles.

    The columns are those that `columns` lists, with commas, or have these names or others that the recipe reads.
    Raises FileNotFoundError or ValueError in one line.
    """
    from hf_lm.tasks.questions import CONTEXT, QUESTION, flat_rows

    listed = columns.split(",") if columns else [""] * len(names)
    guesses = {"question": QUESTION, "context": CONTEXT}
    if len(listed) != len(names):
        raise ValueError(
            f"--column {columns}: give the columns of {' and '.join(names)}, in this order, with a comma."
        )
    path = _existing(source)
    if suffix(path) == ".txt" or suffix(path) not in SUFFIXES:
        raise ValueError(f"{source}: this task needs a table with the columns {' and '.join(names)}.")
    rows = list(flat_rows(_rows(path, listed[0]), source))
    option = f"--column {','.join(name.upper() for name in names)}"
    found = [
        pick_column(rows, asked, guesses.get(name, (name,)), option=option, where=source)
        for asked, name in zip(listed, names, strict=True)
    ]
    return [
        {name: _text(row, column, source, number) for name, column in zip(names, found, strict=True)}
        for number, row in enumerate(rows, 1)
    ]


def _text(row: dict[str, Any], name: str, source: str, number: int, *, lists: bool = False) -> str:
    """A cell as `clean` text. Raises ValueError where it is missing, null, an object, or a list that is none of
    sentences."""
    value = row.get(name)
    if lists and isinstance(value, list) and value and all(isinstance(one, str) for one in value):
        from hf_lm.tasks.text_to_text import join_sentences

        value = join_sentences(value).strip()
    if value is None or value != value or isinstance(value, list | dict):
        kind = "null" if value is None or value != value else f"a {type(value).__name__}"
        what = f"has no {name}" if name not in row else f"{name} is {kind}"
        raise ValueError(f"{source}, row {number}: {what}, where a text is needed; add it or remove the row.")
    return clean(str(value))


def _existing(source: str) -> Path:
    if not Path(source).is_file():
        raise FileNotFoundError(f"there is no file {source}.")
    return Path(source)


def _rows(path: Path, column: str) -> list[dict[str, Any]]:
    """The rows of a table, which has no header where a column is a number."""
    rows = read_rows(path, header=not column.isdigit())
    if not rows:
        raise ValueError(f"{path} is empty.")
    return rows
