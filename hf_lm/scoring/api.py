"""Models behind an OpenAI-compatible address: what they are asked, and how their answers are kept.

An answer is appended to a file as it comes, so that a run that is stopped, refused or cut off goes on where it was.
"""

import hashlib
import json
import os
import random
import socket
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

from tqdm import tqdm

from hf_lm.data.overlap import normal_words
from hf_lm.data.tables import Row
from hf_lm.scoring.predictions import read_predictions
from hf_lm.tasks.supervised import Supervised


@dataclass(frozen=True)
class Requests:
    """A conversation per row, each as the API takes it, and how many tokens an answer may have."""

    messages: list[list[dict[str, str]]]
    instruction: str
    max_tokens: int

    def key(self, row: int) -> str:
        """What an answer is kept under: nothing but what was asked, so that new code pays for no answer twice."""
        asked = json.dumps([self.messages[row], self.max_tokens], ensure_ascii=False)
        return hashlib.blake2b(asked.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


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
    instruction = instruction or task.instruction(train, labels=labels, columns=columns or {}, few_shot=few_shot)
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
    the answers that are on their way have been kept.
    """
    try:
        import openai
    except ImportError:
        raise ImportError("api: models need the openai client: pip install 'hf-lm[api]'.") from None
    key = os.environ.get("OPENAI_API_KEY", "")
    if not key and not base_url:
        raise ValueError("set OPENAI_API_KEY to the key of the API, or name another address with --base_url.")
    _reach(base_url)
    client = openai.OpenAI(api_key=key or "none", base_url=base_url or None, max_retries=retries, timeout=timeout)
    limits: dict[str, Any] = {"max_tokens": asked.max_tokens, "temperature": 0}

    def answer(row: int) -> str:
        while True:
            given = dict(limits)
            try:
                said = client.chat.completions.create(model=model, messages=asked.messages[row], **given)
                break
            except openai.BadRequestError as error:  # newer models refuse one or the other
                if error.param not in given:
                    raise
                limits.pop(error.param, None)
        if not getattr(said, "choices", None):
            raise ValueError(f"{model} answered with something that is no completion: {str(said)[:60]!r}.")
        return (said.choices[0].message.content or "").strip()

    _cut_to_whole_lines(path)
    waiting: dict[Future, int] = {}
    failed: BaseException | None = None
    left, kept = iter(rows), 0
    with path.open("a", encoding="utf-8") as file, ThreadPoolExecutor(at_once) as pool:
        bar = tqdm(total=len(rows), desc=f"asking {model}", delay=2, leave=False, disable=None)
        try:
            while True:
                while failed is None and len(waiting) < (at_once if kept else 1):  # one first: it may be refused
                    row = next(left, None)
                    if row is None:
                        break
                    waiting[pool.submit(answer, row)] = row
                if not waiting:
                    break
                for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                    row = waiting.pop(future)
                    if error := future.exception():
                        failed = failed or error
                        continue
                    file.write(json.dumps({"asked": asked.key(row), "answer": future.result()}) + "\n")
                    file.flush()
                    kept += 1
                    bar.update()
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            client.close()  # ends the requests that are on their way
            raise
        finally:
            bar.close()
    if failed is not None:
        raise _in_one_line(failed, model, key, kept, len(rows)) from failed


def _reach(base_url: str) -> None:
    """Raise OSError at once where nothing listens: the client would try for half a minute."""
    where = urlsplit(base_url)
    if not base_url or getproxies():
        return
    if where.scheme not in ("http", "https") or not where.hostname:
        raise ValueError(f"--base_url {base_url} is no address; give one such as http://127.0.0.1:8000/v1.")
    try:
        socket.create_connection((where.hostname, where.port or (443 if where.scheme == "https" else 80)), 10).close()
    except OSError as error:
        said = error.strerror or str(error)
        raise ConnectionError(f"nothing answers at {where.hostname}:{where.port or where.scheme} ({said}).") from error


def _in_one_line(error: BaseException, model: str, key: str, kept: int, rows: int) -> Exception:
    import openai

    status = getattr(error, "status_code", None)
    if status == 401:
        said = "the API refused the key: set OPENAI_API_KEY to one that is valid"
    elif status is not None:
        said = f"the API answered {status}"
        if isinstance(error.body, dict) and error.body.get("message"):
            said += f", {error.body['message']}"
        if status >= 500:
            said += "; its own log says why: a prompt over the model's context (lower --few_shot), perhaps"
    elif isinstance(error, openai.APITimeoutError):
        said = "the API did not answer in time"
    elif isinstance(error, openai.APIConnectionError):
        said = "the connection to the API was lost"
    elif isinstance(error, json.JSONDecodeError):
        said = "the API answered with something that is no JSON"
    else:
        said = str(error) or type(error).__name__
    said = said.replace(key, "***") if key else said
    on = f"; {kept} of {rows} answers are kept, and the same command goes on from there" if kept else ""
    return OSError(f"api:{model}: {' '.join(said.split())[:300].rstrip('.')}{on}.")


def _cut_to_whole_lines(path: Path) -> None:
    if path.is_file():
        content = path.read_bytes()
        path.write_bytes(content[: content.rfind(b"\n") + 1])


def answers_in(path: Path) -> dict[str, str]:
    """The answers that a file keeps, by what was asked; of several the last."""
    return {row["asked"]: row["answer"] for row in read_predictions(path)} if path.is_file() else {}
