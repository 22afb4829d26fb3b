"""A file of inputs through a model into a file of lines, in pieces that survive being stopped.

`hf-lm predict` answers with a pipeline, `hf-lm generate --output` continues prompts.
"""

import json
import sys
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path
from typing import Any

from tqdm import tqdm

from hf_lm.data.reading import SUFFIXES, read_lines, read_rows, suffix
from hf_lm.data.tables import pick_column
from hf_lm.decoding import Decoding

PIPELINES = {
    "sentiment": "text-classification",
    "question_answering": "question-answering",
    "summarization": "summarization",
    "translation": "translation",
}
COLUMNS = ("text", "prompt", "source", "sentence", "document", "article", "input", "content", "0")
PIECE = 256  # inputs between two writes

Answer = Callable[[list[Any]], Iterable[dict[str, Any]]]


def predict(task: str, model: str, source: str, output: str, *, column: str = "") -> int:
    """Write a line of JSON per input, in order: {"input", "prediction", ...}; returns how many lines there are.

    `source` is a .txt file with an input a line, or a table, whose `column` is read ("" guesses; question answering
    reads `question` and `context`). See `write_lines` for what is kept of an output that is there.
    """
    if task not in PIPELINES:
        raise ValueError(f"there is no task {task!r}; there are {', '.join(PIPELINES)}.")
    inputs = read_questions(source) if task == "question_answering" else read_texts(source, column)

    def start() -> Answer:
        from hf_lm.pipelines import pipeline

        made = pipeline(PIPELINES[task], model=model)
        return lambda piece: map(_prediction, made(piece, truncation=True, batch_size=32))

    return write_lines(inputs, output, start, description=task)


def generate_lines(model: str, prompts: list[str], output: str, *, device: str | None = None, **decoding: Any) -> int:
    """Write a line of JSON per prompt, in order; returns how many lines there are.

    {"input", "continuations": [{"text", "log_probability", "log_probability_per_token", "tokens", "ended"}, ...],
    "model", "settings"}. See `write_lines` for what is kept of an output that is there.
    """
    settings = vars(Decoding(**decoding)) | {"stop": list(Decoding(**decoding).stop)}
    piece = 4 * settings.pop("batch_size")  # the batch has no effect on the text

    def start() -> Answer:
        from hf_lm.generation import generate, load_writer

        loaded = load_writer(model, device=device)
        return lambda piece: (
            {
                "continuations": [
                    {
                        "text": one.text,
                        "log_probability": one.log_probability,
                        "log_probability_per_token": one.per_token,
                        "tokens": len(one.log_probs),
                        "ended": one.ended,
                    }
                    for one in found
                ]
            }
            for found in generate(*loaded, piece, **decoding)
        )

    shared = {"model": model, "settings": settings}
    return write_lines(prompts, output, start, description="writing", shared=shared, piece=piece)


def write_lines(
    inputs: list[Any],
    output: str,
    start: Callable[[], Answer],
    *,
    description: str,
    shared: dict[str, Any] | None = None,
    piece: int = PIECE,
) -> int:
    """Write a line of JSON per input, in order: {"input", what is answered, what is `shared`}; returns their number.

    Lines that `output` already holds are kept and their inputs skipped, so that the same command goes on where it was
    stopped. `start`, called where inputs are left, loads the model and returns what answers a list of inputs. Raises
    ValueError if the lines belong to other inputs, or something else is shared.
    """
    path, shared = Path(output), shared or {}
    done = _complete_lines(path)
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
                said = _difference(kept.get(key), value)
                raise ValueError(f"{path}, line {number}: other {key} than now ({said}); choose another --output.")
    rest = iter(inputs[len(done) :])
    written = len(done)
    path.parent.mkdir(parents=True, exist_ok=True)
    answer = start() if written < len(inputs) else None
    with (
        path.open("a", encoding="utf-8") as file,
        tqdm(total=len(inputs), initial=written, desc=description, disable=None) as bar,
    ):
        try:
            while some := list(islice(rest, piece)):
                for given, found in zip(some, answer(some), strict=True):
                    file.write(json.dumps({"input": given, **found, **shared}, ensure_ascii=False) + "\n")
                file.flush()
                written += len(some)
                bar.update(len(some))
        except KeyboardInterrupt:
            bar.close()
            print(f"stopped: {path} holds {written:,} of {len(inputs):,}; the same command goes on.", file=sys.stderr)
            raise
    return len(inputs)


def _difference(one: Any, other: Any) -> str:
    if isinstance(one, dict) and isinstance(other, dict):
        keys = [key for key in other if one.get(key) != other[key]]
        return ", ".join(f"{key} {one.get(key)}, not {other[key]}" for key in keys)
    return f"{one}, not {other}"


def read_texts(source: str, column: str = "") -> list[str]:
    """The texts of a file: a .txt's lines, or a table's column. Raises FileNotFoundError or ValueError in one line."""
    path = _found(source)
    if suffix(path) == ".txt" or suffix(path) not in SUFFIXES:
        texts = [line for line in read_lines(path) if line.strip()]
        if not texts:
            raise ValueError(f"{source} is empty.")
        return texts
    rows = _rows(path)
    name = pick_column(rows, column, COLUMNS, option="--column", where=source)
    return [str(row[name]) for row in rows]


def read_questions(source: str) -> list[dict[str, str]]:
    """{"question", "context"} of each row of a table. Raises FileNotFoundError or ValueError in one line."""
    path = _found(source)
    if suffix(path) == ".txt" or suffix(path) not in SUFFIXES:
        raise ValueError(f"{source}: question answering needs a table with the columns question and context.")
    rows = _rows(path)
    for name in ("question", "context"):
        pick_column(rows, name, (), option="that name", where=source)
    return [{name: str(row[name]) for name in ("question", "context")} for row in rows]


def _found(source: str) -> Path:
    if not Path(source).is_file():
        raise FileNotFoundError(f"there is no file {source}.")
    return Path(source)


def _rows(path: Path) -> list[dict[str, Any]]:
    rows = read_rows(path)
    if not rows:
        raise ValueError(f"{path} is empty.")
    return rows


def _complete_lines(path: Path) -> list[str]:
    """The whole lines of a file; a last line that was cut short is taken off the file."""
    if not path.is_file():
        return []
    text = path.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        path.write_text(whole, encoding="utf-8")
    return whole.split("\n")[:-1]  # not splitlines: U+2028 ends no line of JSON


def _prediction(found: Any) -> dict[str, Any]:
    found = found[0] if isinstance(found, list) else found
    if "label" in found:
        return {"prediction": found["label"], "score": found["score"]}
    if "answer" in found:
        return {"prediction": found["answer"], **{key: found[key] for key in ("score", "start", "end")}}
    return {"prediction": next(iter(found.values()))}
