"""A conversation with a model, in the tokenizer's chat template: history, streamed answers, files of messages.

talk = Conversation(*load_writer("out/chat"), system="Answer in one sentence.")
for piece in talk.say("What is a tokenizer?"):
    print(piece, end="", flush=True)
"""

import copy
import json
from collections.abc import Generator
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_lm.data.reading import clean
from hf_lm.files import refuse_foreign, write_whole
from hf_lm.inference.decoding import Decoding
from hf_lm.inference.generate import encode_prompt, stream, tokens_to_write
from hf_lm.models.configuration import context_length
from hf_lm.tokenization.chat_template import Message, encode_chats, end_of_turn

ROLES = ("system", "user", "assistant")

# For a model without a chat template. All lines of a message but the first are indented: they cannot look like a turn.
PLAIN = (
    "{{ bos_token or '' }}"
    "{% for message in messages %}"
    "{% if message.role == 'system' %}{{ message.content | trim }}\n\n"
    "{% else %}{{ 'User' if message.role == 'user' else 'Assistant' }}: "
    "{{ message.content | trim | replace('\n', '\n  ') }}\n"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)
TEMPLATES = {"plain": PLAIN}


def choose_template(tokenizer: PreTrainedTokenizerBase, template: str = "") -> str:
    """The tokenizer's own chat template, a built-in one by name, or that of a Jinja file.

    Raises ValueError or OSError in one line where there is none.
    """
    own = tokenizer.chat_template
    if not template:
        if not own:
            raise ValueError(
                f"{tokenizer.name_or_path or 'the tokenizer'} has no chat template: give --template plain, which "
                "works with any model, or --template FILE with the one (Jinja) that it was trained with."
            )
        return tokenizer.get_chat_template()
    if isinstance(own, dict) and template in own:
        return own[template]
    if template in TEMPLATES:
        return TEMPLATES[template]
    try:
        return Path(template).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        raise FileNotFoundError(
            f"--template {template} is neither a text file nor the name of a template; there are "
            f"{', '.join([*(own if isinstance(own, dict) else ()), *TEMPLATES])}."
        ) from None


class Conversation:
    """Messages, and a model that answers them. Raises ValueError in one line where there is no template.

    `left_out`: how many of the oldest messages were omitted for the last answer, because the context was full. They
    stay in `messages`. `decoding` are the fields of hf_lm.inference.decoding.Decoding.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        system: str = "",
        template: str = "",
        messages: list[Message] | None = None,
        **decoding: Any,
    ) -> None:
        self.model, self.tokenizer, self.decoding = model, tokenizer, decoding
        self.settings = Decoding(**decoding)
        encode_prompt(
            model, tokenizer, "a", max_new_tokens=self.settings.max_new_tokens
        )  # refuses an answer that is too long
        self.template = choose_template(tokenizer, template)
        self.end_ids, self.stop = end_of_turn(tokenizer, template=self.template)
        self.messages: list[Message] = copy.deepcopy(messages or [])
        self.left_out = 0
        self.tries = 0  # answers given to the last message
        if system:
            self.set_system(system)

    @property
    def system(self) -> str:
        """The system prompt; "" where there is none."""
        first = self.messages[0] if self.messages else {}
        return first["content"] if first.get("role") == "system" else ""

    def set_system(self, text: str) -> None:
        """Replace the system prompt; "" removes it."""
        rest = self.messages[1:] if self.system else self.messages
        self.messages = ([{"role": "system", "content": text}] if text else []) + rest

    def say(self, text: str) -> Generator[str]:
        """Add a message and return the answer in pieces; when the iterator is closed, the text so far is kept.

        Raises ValueError, and adds nothing, where the message does not fit into the context.
        """
        messages = [*self.messages, {"role": "user", "content": text}]
        ids, left_out = self.encode(messages)
        self.messages, self.left_out, self.tries = messages, left_out, 0
        return self._answer(ids)

    def regenerate(self) -> Generator[str]:
        """Another answer to the last message, with the next seed."""
        end = self._last_question() + 1
        ids, self.left_out = self.encode(self.messages[:end])
        self.messages = self.messages[:end]
        self.tries += 1
        return self._answer(ids)

    def undo(self) -> str:
        """Remove the last message and its answer, and return the message."""
        at = self._last_question()
        text, self.messages, self.tries = self.messages[at]["content"], self.messages[:at], 0
        return text

    def reset(self) -> None:
        """Remove all messages except the system prompt."""
        self.messages, self.left_out, self.tries = self.messages[:1] if self.system else [], 0, 0

    def encode(self, messages: list[Message]) -> tuple[list[int], int]:
        """(ids of the prompt, number of the oldest messages that were omitted to fit the context).

        Messages are omitted up to a user's message; the system prompt and the last message stay. They are encoded as
        in training: a control token that a message contains is text.
        """
        first = 1 if messages and messages[0]["role"] == "system" else 0
        questions = [i for i, message in enumerate(messages) if message["role"] == "user"]
        positions = context_length(self.model.config)
        budget = positions - tokens_to_write(self.model, self.settings.max_new_tokens) if positions else None
        ids = []
        for start in dict.fromkeys([first, *questions]):
            ids = self._encode(messages[:first] + messages[start:])
            if budget is None or len(ids) <= budget:
                return ids, start - first
        raise ValueError(
            f"the message has {len(ids):,} tokens in the chat template, and the model's context of {positions:,} "
            f"leaves {budget:,} besides the answer: shorten it, or lower --max_new_tokens."
        )

    def save(self, path: str | Path) -> None:
        """Append the conversation to a file as a line of {"messages": [...]}, or replace an earlier state of it there.

        Other lines are unchanged. Raises FileExistsError for a file that holds anything but conversations.
        """
        path = Path(path).expanduser().resolve()
        refuse_foreign(path, ours=lambda path: all(map(_messages, _lines(path))), option="file to /save")
        before = path.read_bytes() if path.is_file() else b""
        *others, last = before.splitlines(keepends=True) or [b""]  # of bytes: U+2028 ends no line
        earlier = _messages(last) if last else None
        if earlier and last.rstrip() == _line(earlier) and self.messages[: len(earlier)] == earlier:
            before = b"".join(others)
        separator = b"" if not before or before.endswith(b"\n") else b"\n"
        write_whole(path, before + separator + _line(self.messages) + b"\n")

    def _answer(self, ids: list[int]) -> Generator[str]:
        seed, stop = self.settings.seed + self.tries, (*self.settings.stop, *self.stop)
        options = self.decoding | {"seed": seed, "stop": stop}
        pieces = stream(self.model, self.tokenizer, ids, end_ids=self.end_ids, **options)
        answer = {"role": "assistant", "content": ""}
        self.messages.append(answer)

        def pieces_of_answer() -> Generator[str]:
            try:
                for piece in pieces:
                    piece = piece if answer["content"] else piece.lstrip()
                    answer["content"] += piece
                    if piece:
                        yield piece
            finally:
                pieces.close()
                answer["content"] = answer["content"].rstrip()

        return pieces_of_answer()

    def _last_question(self) -> int:
        for at in range(len(self.messages) - 1, -1, -1):
            if self.messages[at]["role"] == "user":
                return at
        raise ValueError("there is no message yet.")

    def _encode(self, messages: list[Message]) -> list[int]:
        [(ids, _)] = encode_chats(self.tokenizer, [messages], prompt=True, template=self.template)
        return ids


def load_conversation(path: str | Path) -> list[Message]:
    """The messages of a file's last line. Raises OSError or ValueError in one line."""
    if not Path(path).expanduser().is_file():
        raise FileNotFoundError(f"there is no file {path} with a conversation.")
    lines = _lines(Path(path).expanduser())
    if not lines:
        raise ValueError(f"{path} is empty: it holds no conversation.")
    messages = _messages(lines[-1])
    if messages is None:
        raise ValueError(
            f'{path}, line {len(lines)}: not a conversation; expected {{"messages": [{{"role": "user", "content": '
            '"..."}, ...]} with roles system (first only), user and assistant.'
        )
    return messages


def _lines(path: Path) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not UTF-8 text, so it holds no conversation.") from None
    return [line for line in text.split("\n") if line.strip()]  # not splitlines: U+2028 ends no line of JSON


def _line(messages: list[Message]) -> bytes:
    return json.dumps({"messages": messages}, ensure_ascii=False).encode()


def _messages(line: str | bytes) -> list[Message] | None:
    try:
        messages = json.loads(line)["messages"]
        kept = [{"role": message["role"], "content": clean(message["content"])} for message in messages]
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    valid = all(each["role"] in ROLES[0 if i == 0 else 1 :] for i, each in enumerate(kept))
    return kept if valid else None
