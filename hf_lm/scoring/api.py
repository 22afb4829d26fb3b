"""Models behind an OpenAI-compatible address: their requests, and how their answers are kept.

Each answer is appended to a file as it arrives, so that a run that was stopped continues with the next request.
"""

import json
import os
import random
import socket
import sys
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from urllib.request import getproxies

from tqdm import tqdm

from hf_lm.data.overlap import normal_words
from hf_lm.data.tables import Row
from hf_lm.files import hash_text, locked, naming
from hf_lm.scoring.predictions import read_predictions
from hf_lm.tasks.supervised import Supervised

if TYPE_CHECKING:
    from openai import OpenAI


@dataclass(frozen=True)
class Requests:
    """A conversation per row, each as the API takes it, and how many tokens an answer may have."""

    messages: list[list[dict[str, str]]]
    instruction: str
    max_tokens: int

    def key(self, row: int) -> str:
        """What an answer is kept under: nothing but what was asked, so that new code pays for no answer twice."""
        asked = json.dumps([self.messages[row], self.max_tokens], ensure_ascii=False)
        return hash_text(asked).hex()


def messages_of(
    task: type[Supervised],
    rows: Sequence[Row],
    train: Sequence[Row],
    *,
    labels: Sequence[str] = (),
    columns: dict[str, str] | None = None,
    few_shot: int = 0,
    instruction: str = "",
) -> Requests:
    """What a model is asked for each row: the instruction, `few_shot` examples of train as turns, the input.

    The examples are the same for all rows, drawn with a fixed seed, from each class in turn; none stands among the
    rows. Raises ValueError where train has too few, or a translation is asked for between unnamed languages.
    """
    instruction = instruction or task.instruction(train, labels, columns or {}, few_shot)
    head = [{"role": "system", "content": instruction}]
    for row in draw(task, rows, train, few_shot):
        head += [
            {"role": "user", "content": task.as_prompt(row)},
            {"role": "assistant", "content": task.as_answer(row)},
        ]
    longest = max(len(task.as_answer(row)) for row in train)
    max_tokens = min(1024, max(16, 2 * longest))  # of the shortest tokens, a character each, and some to spare
    messages = [[*head, {"role": "user", "content": task.as_prompt(row)}] for row in rows]
    return Requests(messages, instruction, max_tokens)


def draw(task: type[Supervised], rows: Sequence[Row], train: Sequence[Row], count: int) -> list[Row]:
    """`count` rows of train, none of which stands among `rows`; of classes, each in turn."""
    if not count:
        return []
    scored = {" ".join(normal_words(task.as_prompt(row))) for row in rows}
    free = [row for row in train if " ".join(normal_words(task.as_prompt(row))) not in scored]
    if count > len(free):
        raise ValueError(f"--few_shot {count}: train has {len(free)} rows that do not stand in the scored split.")
    random.Random(0).shuffle(free)
    by_label: dict[str | None, list[Row]] = defaultdict(list)
    for row in free:
        by_label[row.get("label")].append(row)
    return [row for turn in zip_longest(*by_label.values()) for row in turn if row is not None][:count]


# Asking


def complete(
    model: str,
    asked: Requests,
    rows: Sequence[int],
    *,
    base_url: str,
    path: Path,
    retries: int = 4,
    timeout: float = 60.0,  # seconds that an answer may take
    at_once: int = 4,
) -> None:
    """Ask for each of `rows` and append {"asked": its key, "answer"} to `path` as answers come.

    The key is OPENAI_API_KEY's; it is neither shown nor kept. 429, 5xx and timeouts are tried again, each time after
    a longer wait, by the official client. Raises ValueError or OSError in one line where that does not help, after
    the answers to requests in flight have been kept.
    """
    client = _client(base_url, retries=retries, timeout=timeout)
    limits: dict[str, Any] = {"max_tokens": asked.max_tokens, "temperature": 0}
    kept = 0
    with tqdm(total=len(rows), desc=f"asking {model}", delay=2, leave=False, disable=None) as bar:
        requests = _request_all(lambda row: _answer(client, model, asked.messages[row], limits), rows, at_once=at_once)
        try:
            for row, answer in requests:
                _keep(path, json.dumps({"asked": asked.key(row), "answer": answer}))
                kept += 1
                bar.update()
        except KeyboardInterrupt:
            bar.close()
            said = f"stopped: {kept} of {len(rows)} answers are kept; the same command continues from there."
            print(said, file=sys.stderr)
            raise
        except Exception as error:
            raise _in_one_line(error, model, kept, len(rows)) from error


def _keep(path: Path, answer: str) -> None:
    """Append a line, while other programs may do so too; a last line that a killed one did not end is removed."""
    with naming(path), locked(path), path.open("a+b") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - 1))
        if file.read() not in (b"", b"\n"):
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)
        file.write(answer.encode() + b"\n")


def _client(base_url: str, *, retries: int, timeout: float) -> "OpenAI":
    try:
        import openai
    except ImportError:
        raise ImportError("api: models need the openai client: pip install 'hf-lm[api]'.") from None
    key = os.environ.get("OPENAI_API_KEY", "")
    if not key and not base_url:
        raise ValueError("set OPENAI_API_KEY to the key of the API, or name another address with --base_url.")
    _check_address(base_url)
    return openai.OpenAI(api_key=key or "none", base_url=base_url or None, max_retries=retries, timeout=timeout)


def _answer(client: "OpenAI", model: str, messages: Any, limits: dict[str, Any]) -> str:
    """The answer to one conversation. A limit that the model refuses is removed from `limits`."""
    import openai

    while True:
        sent = dict(limits)
        try:
            completion = client.chat.completions.create(model=model, messages=messages, **sent)
            break
        except openai.BadRequestError as error:  # newer models refuse one or the other
            if error.param not in list(sent):  # a server may name anything, also what has no hash
                raise
            limits.pop(error.param, None)
    try:
        return (completion.choices[0].message.content or "").strip()
    except (AttributeError, IndexError, TypeError):  # a server may answer anything
        said = completion.to_json(indent=None, warnings=False) if hasattr(completion, "to_json") else str(completion)
        raise ValueError(f"{model} answered with something that is no completion: {said[:200]!r}.") from None


def _request_all(request: Callable[[int], str], rows: Iterable[int], *, at_once: int) -> Iterator[tuple[int, str]]:
    """Each row with its answer, as they come; raises the first failure when the requests in flight have ended.

    A thread per request, which does not keep a program that ends waiting.
    """
    answered: SimpleQueue[tuple[int, str, BaseException | None]] = SimpleQueue()

    def work(row: int) -> None:
        try:
            answered.put((row, request(row), None))
        except BaseException as error:
            answered.put((row, "", error))

    failure: BaseException | None = None
    left, in_flight, any_kept = iter(rows), 0, False
    while True:
        while failure is None and in_flight < (at_once if any_kept else 1):  # a single one first: it may be refused
            if (row := next(left, None)) is None:
                break
            threading.Thread(target=work, args=(row,), daemon=True).start()
            in_flight += 1
        if not in_flight:
            break
        row, answer, error = answered.get()
        in_flight -= 1
        if error is None:
            any_kept = True
            yield row, answer
        failure = failure or error
    if failure is not None:
        raise failure


def _check_address(base_url: str) -> None:
    """Raise OSError at once where nothing listens: the client would try for half a minute."""
    address = urlsplit(base_url)
    if not base_url or getproxies():
        return
    if address.scheme not in ("http", "https") or not address.hostname:
        raise ValueError(f"--base_url {base_url} is no address; give one such as http://127.0.0.1:8000/v1.")
    port = address.port or (443 if address.scheme == "https" else 80)
    try:
        socket.create_connection((address.hostname, port), 10).close()
    except OSError as error:
        raise ConnectionError(f"nothing answers at {address.hostname}:{port} ({error.strerror or error}).") from error


def _in_one_line(error: BaseException, model: str, kept: int, rows: int) -> Exception:
    import openai

    if isinstance(error, openai.AuthenticationError):
        message = "the API refused the key: set OPENAI_API_KEY to one that is valid"
    elif isinstance(error, openai.APIStatusError):
        message = f"the API answered {error.status_code}"
        body = error.body if isinstance(error.body, dict) else {}
        if why := body.get("message") or body.get("detail"):  # detail: of FastAPI, as `transformers serve` has it
            message += f", {why}"
        if error.status_code >= 500:
            message += "; its own log says why: a prompt over the model's context (lower --few_shot), perhaps"
    elif isinstance(error, openai.APITimeoutError):
        message = "the API did not answer in time"
    elif isinstance(error, openai.APIConnectionError):
        message = "the connection to the API was lost"
    elif isinstance(error, json.JSONDecodeError):
        message = "the API answered with something that is no JSON"
    else:
        message = str(error) or type(error).__name__
    if key := os.environ.get("OPENAI_API_KEY"):
        message = message.replace(key, "***")
    done = f"; {kept} of {rows} answers are kept, and the same command continues from there" if kept else ""
    return OSError(f"api:{model}: {' '.join(message.split())[:300].rstrip('.')}{done}.")


def answers_in(path: Path) -> dict[str, str]:
    """The answers that a file keeps, by what was asked; of several the last."""
    return {row["asked"]: row["answer"] for row in read_predictions(path)} if path.is_file() else {}
