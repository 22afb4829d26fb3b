"""`hf-lm predict`: a file of inputs through a model into predictions.jsonl, in pieces that survive being stopped."""

import json
from itertools import islice
from pathlib import Path
from typing import Any

from tqdm import tqdm

from hf_lm.data.reading import SUFFIXES, read_lines, read_rows, suffix
from hf_lm.data.tables import pick_column

PIPELINES = {
    "sentiment": "text-classification",
    "question_answering": "question-answering",
    "summarization": "summarization",
    "translation": "translation",
}
COLUMNS = ("text", "source", "sentence", "document", "article", "input", "content", "0")
PIECE = 256  # inputs between two writes


def predict(task: str, model: str, source: str, output: str, *, column: str = "") -> int:
    """Write a line of JSON per input, in order: {"input", "prediction", ...}; returns how many lines there are.

    `source` is a .txt file with an input a line, or a table, whose `column` is read ("" guesses; question answering
    reads `question` and `context`). Lines that `output` already holds are kept and their inputs skipped, so that the
    same command goes on where it was stopped. Raises ValueError if they belong to other inputs.
    """
    if task not in PIPELINES:
        raise ValueError(f"there is no task {task!r}; there are {', '.join(PIPELINES)}.")
    inputs, path = read_inputs(task, source, column), Path(output)
    done = _complete_lines(path)
    for line, given in zip(done, inputs, strict=False):
        if json.loads(line)["input"] != given:
            raise ValueError(f"{path} holds predictions for other inputs than {source}: choose another --output.")
    from hf_lm.pipelines import pipeline

    rest = iter(inputs[len(done) :])
    with path.open("a", encoding="utf-8") as file:
        bar = tqdm(total=len(inputs), initial=len(done), desc=task, disable=None)
        made = pipeline(PIPELINES[task], model=model) if len(done) < len(inputs) else None
        while piece := list(islice(rest, PIECE)):
            for given, found in zip(piece, made(piece, truncation=True, batch_size=32), strict=True):
                file.write(json.dumps({"input": given, **_prediction(found)}, ensure_ascii=False) + "\n")
            file.flush()
            bar.update(len(piece))
        bar.close()
    return len(inputs)


def read_inputs(task: str, source: str, column: str = "") -> list[Any]:
    """The inputs of a file: texts, or {"question", "context"}. Raises FileNotFoundError or ValueError in one line."""
    path = Path(source)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {source}.")
    if suffix(path) == ".txt" or suffix(path) not in SUFFIXES:
        if task == "question_answering":
            raise ValueError(f"{source}: question answering needs a table with the columns question and context.")
        return [line for line in read_lines(path) if line.strip()]
    rows = read_rows(path)
    if not rows:
        raise ValueError(f"{source} is empty.")
    if task == "question_answering":
        for name in ("question", "context"):
            pick_column(rows, name, (), option="that name", where=source)
        return [{name: str(row[name]) for name in ("question", "context")} for row in rows]
    name = pick_column(rows, column, COLUMNS, option="--column", where=source)
    return [str(row[name]) for row in rows]


def _complete_lines(path: Path) -> list[str]:
    """The whole lines of a file; a last line that was cut short is taken off the file."""
    if not path.is_file():
        return []
    text = path.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        path.write_text(whole, encoding="utf-8")
    return whole.splitlines()


def _prediction(found: Any) -> dict[str, Any]:
    found = found[0] if isinstance(found, list) else found
    if "label" in found:
        return {"prediction": found["label"], "score": found["score"]}
    if "answer" in found:
        return {"prediction": found["answer"], **{key: found[key] for key in ("score", "start", "end")}}
    return {"prediction": next(iter(found.values()))}
