"""Conversations, preferences and prompts with an answer that can be checked: rows as they come, made of one form."""

import re
from collections.abc import Callable, Sequence

from hf_lm.data.patterns import Pattern
from hf_lm.data.reading import clean, plain_text
from hf_lm.data.tables import Row, Table, check_columns, column_names, hold_out, pick_column
from hf_lm.tokenization.chat_template import Message

MESSAGES = ("messages", "conversations", "conversation")
PROMPT = ("prompt", "question", "query", "problem", "input")
INSTRUCTION = ("instruction", "input", "context")  # of Alpaca and Dolly: together they are a prompt
BESIDE = ("system", "history")  # of a prompt
COMPLETION = ("completion", "response", "answer", "output")
ASKED = ("prompt", *MESSAGES, "instruction", *PROMPT)  # where the answers have columns of their own
REFERENCE = ("reference", "target", *COMPLETION, "solution", "ground_truth")
ROLES = {
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "bot", "model", "chatgpt"), "assistant"),
    **dict.fromkeys(("system", "developer"), "system"),
}
CALLS = ("tool_calls", "function_call")
REASONING = ("reasoning_content", "reasoning", "thinking")
TURN = re.compile(r"(?:^|\n\n)(Human|Assistant): ?")  # a transcript of hh-rlhf
PRINTED = re.compile(r"""\s*\[\s*\{\s*['"](role|from|content|value)['"]\s*:""")  # messages in a cell of text
ASKING = re.compile(r"Human: .*\n\nAssistant:", re.DOTALL)  # one that ends where the assistant answers


def read_chat(table: Table, *, prompt: str = "", completion: str = "") -> None:
    """Reduce a table to rows of {"messages"} that end with an answer, and cut the splits it lacks.

    Rows are messages ({"role", "content"}, or ShareGPT's {"from", "value"}), a prompt and a completion, or Alpaca's
    instruction, input and output: the columns say which. A column `system` is their system turn where they
    have none, and a column `history` holds the turns before a prompt. Turns after the last answer and rows without one
    are left out and counted.
    """
    train, where = table.rows["train"], f"--dataset {table.source}"
    names = column_names(train)
    column = next((name for name in MESSAGES if any(isinstance(row.get(name), list) for row in train[:100])), "")
    if column and not prompt:
        form, asked = "messages", ()
    elif "instruction" in names and not prompt:
        completion = pick_column(train, completion, COMPLETION[::-1], option="--completion", where=where)
        form, asked = _named_columns((*INSTRUCTION, completion), names), INSTRUCTION
    elif not prompt and not set(PROMPT) & set(names) and (text := set(MESSAGES) & set(names)):
        raise ValueError(
            f"{where}: {min(text)!r} holds text where lists of messages are needed: write them as .jsonl or .parquet."
        )
    else:
        prompt = pick_column(train, prompt, PROMPT, option="--prompt", where=where)
        completion = pick_column(train, completion, COMPLETION, option="--completion", where=where)
        form, asked = "prompt and completion", (prompt,)

    check_columns(table, (*(asked or [column]), completion, *BESIDE))

    def read(row: Row) -> Row | str:
        if str(row.get("label")).strip().lower() == "false":  # of a .csv it is text
            raise ValueError(
                "its label is false, as that of an answer not to be given (KTO), and every answer is learned here: "
                "leave such rows out, or the column."
            )
        messages = _asked(row, asked, table) if asked else _messages(row.get(column), table)
        messages += _side(row.get(completion), "assistant", table) if asked else []
        while messages and messages[-1]["role"] != "assistant":
            table.left_out["turns_after_the_last_answer"] += 1
            messages.pop()
        messages = _with_system(row, messages, table)
        return _no_chat(messages) or {"messages": messages}

    _reduce(table, read, f"rows read as {form}", _first_question, "conversation", share=0.05)


def _no_chat(messages: list[Message]) -> str:
    """Why messages are nothing to learn from; "" where they are."""
    said, asked = ([turn["content"] for turn in messages if turn["role"] == role] for role in ("assistant", "user"))
    if not said:
        return "rows_without_an_answer"
    if not all(said):
        return "rows_with_an_empty_answer"
    return "rows_without_a_prompt" if asked and not any(asked) else ""


def read_preferences(table: Table) -> None:
    """Reduce a table to rows of {"messages", "chosen", "rejected"}: a prompt and two answers to it, the better first.

    Rows have a prompt of their own (an instruction with its input is one), which both sides may repeat or continue, or
    the beginning that the sides share is the prompt: of lists of messages, or of transcripts as hh-rlhf has them. A
    column `system` is its system turn where it has none. Pairs whose answers are equal or empty, or that part before
    the last answer, are left out and counted.
    """
    names, where = column_names(table.rows["train"]), f"--dataset {table.source}"
    for name in ("chosen", "rejected"):
        pick_column(table.rows["train"], name, (), option="columns chosen and rejected", where=where)
    explicit = next((name for name in ASKED if name in names), "")
    asked = INSTRUCTION if explicit == "instruction" else (explicit,) if explicit else ()
    check_columns(table, ("chosen", "rejected", *asked, *BESIDE))

    def read(row: Row) -> Row | str:
        prompt, chosen, rejected = _pair(row, asked, table)
        prompt = _with_system(row, prompt, table)
        if reason := _no_pair(prompt, chosen, rejected):
            return reason
        return {"messages": prompt, "chosen": chosen[0]["content"], "rejected": rejected[0]["content"]}

    columns = _named_columns(asked, names)
    kind = f"a prompt in {columns}" if columns else "the prompt is the beginning that both sides share"
    _reduce(table, read, f"pairs of answers; {kind}", lambda row: as_text(row["messages"]), "prompt", share=0.1)


def _pair(row: Row, asked: Sequence[str], table: Table) -> tuple[list[Message], list[Message], list[Message]]:
    """(prompt, chosen answer, rejected answer) of a row; without columns `asked` the sides share the prompt."""
    if not asked:
        return _common_beginning(row.get("chosen"), row.get("rejected"), table)
    prompt = _asked(row, asked, table)
    sides = [_side(row.get(name), "assistant", table) for name in ("chosen", "rejected")]
    shared, chosen, rejected = _parted(*sides)
    if prompt[len(prompt) - len(shared) :] == shared:  # none, or the prompt again
        return prompt, chosen, rejected
    continues = shared[0]["role"] == "assistant" and not any(turn in shared for turn in prompt[-1:])
    return [*prompt, *shared] if continues else shared, chosen, rejected  # the turns after the prompt, or all of them


def _parted(chosen: list[Message], rejected: list[Message]) -> tuple[list[Message], list[Message], list[Message]]:
    """The turns with which both begin, but for the last turn of each, and what follows them in each."""
    alike = 0
    while alike < min(len(chosen), len(rejected)) - 1 and chosen[alike] == rejected[alike]:
        alike += 1
    return chosen[:alike], chosen[alike:], rejected[alike:]


def _common_beginning(
    chosen: object, rejected: object, table: Table
) -> tuple[list[Message], list[Message], list[Message]]:
    """(prompt, chosen answer, rejected answer) of two sides that begin alike."""
    if isinstance(chosen, str) and isinstance(rejected, str) and not TURN.match(chosen):  # a text and its two ends
        differs = (i for i, (a, b) in enumerate(zip(chosen, rejected, strict=False)) if a != b)
        alike = chosen[: next(differs, min(len(chosen), len(rejected)))]
        start = max(alike.rfind(end) for end in ("\n", " ")) + 1
        return (
            _side(chosen[:start], "user", table) if start else [],
            _side(chosen[start:], "assistant", table),
            _side(rejected[start:], "assistant", table),
        )
    sides = [
        _transcript(side, table) if isinstance(side, str) else _side(side, "assistant", table)
        for side in (chosen, rejected)
    ]
    return _parted(*sides)


def _no_pair(prompt: list[Message], chosen: list[Message], rejected: list[Message]) -> str:
    """Why two sides are no pair of answers to a prompt; "" where they are."""
    if chosen == rejected:
        return "pairs_whose_answers_are_equal"
    if [message["role"] for message in (*chosen, *rejected)] != ["assistant", "assistant"]:
        return "pairs_that_part_before_the_last_answer"
    if not chosen[0]["content"] or not rejected[0]["content"]:
        return "pairs_with_an_empty_answer"
    return "" if any(turn["content"] for turn in prompt if turn["role"] != "system") else "pairs_without_a_prompt"


def read_prompts(
    table: Table, *, prompt: str = "", reference: str = "", answer_pattern: str = "", compared: bool = False
) -> None:
    """Reduce a table to rows of {"messages", "reference"}: what is asked, and the answer by which a reply is checked.

    A prompt is a column, `prompt` alone if it is given, or Alpaca's instruction and input; a column `system` is its
    system turn where it has none. Where it ends with turns of the assistant, they are no part of it, and the last is
    the reference of a table without a reference column.
    `answer_pattern` is a regular expression whose first group in the reference column is the reference ("#### (.*)" of
    GSM8K). A table without a reference column has empty ones: enough for a reward of form or length. Rows of an empty
    reference are left out and counted where answers are `compared` with it.
    """
    train, where = table.rows["train"], f"--dataset {table.source}"
    column = pick_column(train, prompt, ASKED, option="--prompt", where=where)
    asked = INSTRUCTION if column == "instruction" and not prompt else (column,)
    there = column_names(train)
    names = [name for name in REFERENCE if name in there and name not in asked]
    in_turns = not reference and not names and any(isinstance(row.get(column), list) for row in train[:100])
    if reference or names or (compared and not in_turns):
        reference = pick_column(train, reference, names, option="--reference", where=where)
    check_columns(table, (*asked, reference, *BESIDE))
    pattern = Pattern(answer_pattern, option="--answer_pattern") if answer_pattern else None

    def read(row: Row) -> Row | str:
        messages = _with_system(row, _asked(row, asked, table), table)
        answer = clean(plain_text(row.get(reference), repr(reference)), table.left_out).strip()
        if in_turns and messages and messages[-1]["role"] == "assistant":
            answer = messages[-1]["content"]
        while messages and messages[-1]["role"] == "assistant":
            messages.pop()
        found = pattern.search(answer) if pattern else None
        if pattern and not found:
            return "rows_whose_reference_lacks_the_pattern"
        if compared and not answer:
            return "rows_without_a_reference"
        if not messages or not messages[-1]["content"]:
            return "rows_without_a_prompt"
        answer = ((found[1] if found.groups() else found[0]) or "").strip() if found else answer
        return {"messages": messages, "reference": answer}

    references = f"references in {reference!r}" if reference else "no references"
    references = "references in its last turn" if in_turns else references
    said = f"prompts in {_named_columns(asked, there)}, {references}"
    _reduce(table, read, said, lambda row: row["messages"][-1]["content"], "prompt", share=0.1)


def _reduce(
    table: Table, read: Callable[[Row], Row | str], said: str, group: Callable[[Row], str], unit: str, *, share: float
) -> None:
    """Replace each row by what `read` makes of it; one for which it gives a reason is left out, and counted.

    Then a `share` of the groups is cut as validation and as test where they are missing. An error of `read` gets the
    place of its row.
    """
    for split, rows in table.rows.items():
        kept = []
        for number, row in enumerate(rows, 1):
            try:
                found = read(row)
            except ValueError as error:
                raise ValueError(f"--dataset {table.source}, {split} row {number}: {error}") from None
            if isinstance(found, str):
                table.left_out[found] += 1
            else:
                kept.append(found)
        table.rows[split] = kept
    if not table.rows["train"]:
        counted = ", ".join(f"{count:,} {reason.replace('_', ' ')}" for reason, count in table.left_out.items())
        raise ValueError(f"--dataset {table.source} has no training row that can be used: {counted or 'it is empty'}.")
    table.notes.append(said)
    hold_out(table, {"validation": share, "test": share}, group=group, unit=unit)


def _messages(value: object, table: Table) -> list[Message]:
    """Messages under one set of names; content that is a list of parts is joined."""
    if value is None or value != value:
        return []
    if not isinstance(value, list):
        raise ValueError(f"messages are {value!r:.40}; they must be a list of {{role, content}}.")
    found = []
    for message in value:
        if not isinstance(message, dict):
            raise ValueError(f"a message is {message!r:.40}; it must be an object with role and content.")
        role = message.get("role", message.get("from"))
        if not isinstance(role, str) or role not in ROLES:
            raise ValueError(f"a message has the role {role!r:.40}; there are {', '.join(ROLES)}.")
        _check_learnable(message, ROLES[role])
        content = message.get("content", message.get("value"))
        if isinstance(content, list):
            content = "".join(map(_part, content))
        text = clean(plain_text(content, "a message's content"), table.left_out).strip()
        found.append({"role": ROLES[role], "content": text})
    return found


def _check_learnable(message: Row, role: str) -> None:
    """Raises ValueError for what a message has beside its text and would be lost."""
    if field := next((name for name in CALLS if message.get(name)), ""):
        raise ValueError(f"a message calls a tool ({field}); only text can be learned: remove the field or the row.")
    if field := next((name for name in REASONING if role == "assistant" and message.get(name)), ""):
        raise ValueError(
            f"an answer has its reasoning apart ({field}), where it would be lost: write it into content, between the "
            "marks that the model knows, or remove the field."
        )
    if role == "assistant" and (message.get("weight") == 0 or message.get("train") is False):
        raise ValueError(
            "an answer is marked as not to be learned (weight 0, train false), and every answer is learned here: end "
            "the conversation before it, or remove the mark."
        )


def _part(part: object) -> str:
    """The text of a part of a message. Raises ValueError for an image or anything else that is none."""
    if isinstance(part, dict) and isinstance(part.get("text"), str):
        return part["text"]
    if isinstance(part, str):
        return part
    kind = part.get("type") if isinstance(part, dict) else None
    raise ValueError(f"a message has a part that is no text ({kind or repr(part):.40}); only text can be learned.")


def _side(value: object, role: str, table: Table) -> list[Message]:
    """A prompt or an answer, given as text or as messages."""
    if isinstance(value, dict):
        value = [value]
    if isinstance(value, list):
        return _messages(value, table)
    text = plain_text(value, f"the {role}'s text")
    if PRINTED.match(text):
        raise ValueError(f"messages are written as text ({text[:30]}): give a list of objects, as .jsonl or .parquet.")
    return [{"role": role, "content": clean(text, table.left_out).strip()}]


def _asked(row: Row, columns: Sequence[str], table: Table) -> list[Message]:
    """What a row asks: the messages of its first column, or the texts of all below one another, after its history."""
    first = row.get(columns[0])
    if isinstance(first, list | dict):
        return _side(first, "user", table)
    texts = [plain_text(row.get(column), repr(column)).strip() for column in columns]
    text = "\n\n".join(text for text in texts if text)
    question = _transcript(text, table)[:-1] if ASKING.fullmatch(text) else _side(text, "user", table)
    return [*_history(row.get("history"), table), *question]


def _history(value: object, table: Table) -> list[Message]:
    """The turns before a prompt, as LLaMA-Factory has them: a list of pairs, a question and its answer."""
    if value is None or value != value or value in ("", []):
        return []
    if not isinstance(value, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in value):
        raise ValueError(f"history is {value!r:.40}; it must be a list of pairs, a question and its answer.")
    return [turn for asked, said in value for turn in (*_side(asked, "user", table), *_side(said, "assistant", table))]


def _with_system(row: Row, messages: list[Message], table: Table) -> list[Message]:
    """Messages after what the row's column `system` says, unless they are none or have a system turn themselves."""
    if not messages or any(message["role"] == "system" for message in messages):
        return messages
    return [*(turn for turn in _side(row.get("system"), "system", table) if turn["content"]), *messages]


def _named_columns(columns: Sequence[str], there: Sequence[str]) -> str:
    """Those of the columns that a table has, in words."""
    *first, last = [repr(column) for column in columns if column in there] or [""]
    return f"{', '.join(first)} and {last}" if first else last


def _transcript(text: str, table: Table) -> list[Message]:
    parts = TURN.split(clean(text, table.left_out))[1:]
    names = {"Human": "user", "Assistant": "assistant"}
    return [
        {"role": names[name], "content": content.strip()}
        for name, content in zip(parts[::2], parts[1::2], strict=True)
    ]


def _first_question(row: Row) -> str:
    return next((message["content"] for message in row["messages"] if message["role"] == "user"), "")


def as_text(messages: Sequence[Message]) -> str:
    """What is said in a conversation, for looking it up in another split."""
    return "\n".join(message["content"] for message in messages)
