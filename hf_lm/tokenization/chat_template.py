"""Conversations as token ids: a chat template that marks the assistant's text; no message can forge a turn."""

import ctypes
import re
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import jinja2
from tokenizers import AddedToken
from transformers import GenerationConfig, PreTrainedTokenizerBase

from hf_lm.tokenization.tokenizer import encode_documents

Message = dict[str, str]  # {"role": "system" | "user" | "assistant", "content": text}

# A turn is a document: the begin token, the role, a line end, the text, and the end token.
# Like ChatML, but with tokens that a pretrained model knows: the embedding is unchanged, so LoRA can train it,
# and the end of a document that it learned in pretraining is the end of its answers.
TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if loop.first or not SAME -%}{{- BEGIN -}}{%- endif -%}"  # one token that is both occurs once
    "{{- message['role'] + '\\n' -}}"
    "{%- if message['role'] == 'assistant' -%}{%- generation -%}{{- message['content'] + END -}}{%- endgeneration -%}"
    "{%- else -%}{{- message['content'] + END -}}{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- ('' if SAME else BEGIN) + 'assistant\\n' -}}{%- endif -%}"
)
HIDDEN = re.compile("(\ue000[0-9a-f-]+\ue001)")  # replaces a control token in a message; private-use characters
SECONDS = 10  # for one conversation; an ordinary template takes less than a millisecond
LONGEST = 2**24  # characters of one conversation, which any template may multiply
MARKED = re.compile(r"\{%-?\s*generation\s*-?%\}")


def set_chat_template(tokenizer: PreTrainedTokenizerBase, file: str = "") -> str:
    """Give a tokenizer the template in `file`, or a small one where it has none; returns a sentence about it.

    A template must mark the assistant's text with {% generation %}; known ones that do not are replaced by TRL's
    versions that do. Raises ValueError or OSError in one line.
    """
    if file:
        try:
            tokenizer.chat_template = Path(file).read_text(encoding="utf-8")
        except OSError as error:
            raise OSError(f"--chat_template {file}: {error.strerror}. Give a Jinja file.") from None
        note = f"the chat template of {Path(file).name}"
    elif tokenizer.chat_template:
        note = "the tokenizer's own chat template"
    else:
        ends = (tokenizer.eos_token, tokenizer.sep_token, tokenizer.bos_token)
        end = next(token for token in ends if token is not None)
        begin = tokenizer.bos_token or ""
        words = {"SAME": str(begin == end), "BEGIN": repr(begin), "END": repr(end)}
        tokenizer.chat_template = re.sub("SAME|BEGIN|END", lambda word: words[word[0]], TEMPLATE)
        note = "a small chat template, for the tokenizer had none: a turn is a document, its role on the first line"
    if not isinstance(tokenizer.chat_template, str):
        raise ValueError("the tokenizer has several chat templates: choose one with --chat_template FILE.")
    if not MARKED.search(tokenizer.chat_template):
        tokenizer.chat_template = _marked(tokenizer)
        note += ", in TRL's version, which marks the assistant's turns"
    probe = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    if "b" not in "".join(text for text, learned in render(tokenizer, probe) if learned):
        raise ValueError("the chat template does not mark the assistant's answer: put {% generation %} around it.")
    return note


def _marked(tokenizer: PreTrainedTokenizerBase) -> str:
    from trl.chat_template_utils import get_training_chat_template

    try:
        template = get_training_chat_template(tokenizer)
    except ValueError:
        template = None
    if template is None:
        raise ValueError(
            "the tokenizer's chat template does not mark the assistant's turns with {% generation %}, which training "
            "needs: give one that does with --chat_template FILE."
        )
    return template


def render(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], *, prompt: bool = False, template: str = ""
) -> list[tuple[str, bool]]:
    """A conversation rendered by the template, in pieces: (text, whether it is the assistant's). See `render_all`."""
    return render_all(tokenizer, [messages], prompt=prompt, template=template)[0]


def render_all(
    tokenizer: PreTrainedTokenizerBase,
    conversations: Sequence[Sequence[Message]],
    *,
    prompt: bool = False,
    template: str = "",
) -> list[list[tuple[str, bool]]]:
    """Each conversation rendered by the template, in pieces: (text, whether it is the assistant's).

    `template` "" is the tokenizer's own. Raises ValueError in one line where it refuses the messages, loops for more
    than SECONDS in one conversation, or makes more than LONGEST characters of one.
    """
    from transformers.utils.chat_template_utils import render_jinja_template

    template = template or cast(str, tokenizer.chat_template)
    options: dict[str, Any] = dict(tokenizer.special_tokens_map)
    options |= {"chat_template": template, "add_generation_prompt": prompt}
    options |= {"return_assistant_tokens_mask": bool(MARKED.search(template))}

    refused: Sequence[Message] = ()

    def render_one(turns: Sequence[Message]) -> Any:
        nonlocal refused
        refused = turns
        [text], spans = render_jinja_template([list(turns)], **options)
        if len(text) > LONGEST:
            raise ValueError(f"it makes {len(text):,} characters of one conversation, more than {LONGEST:,}")
        return [text], spans

    try:
        rendered = _each_within_seconds(render_one, conversations)
    except TimeoutError:
        raise ValueError(
            f"the chat template took more than {SECONDS} s for one conversation: look at its loops, or give another."
        ) from None
    except Exception as error:  # of Jinja, and whatever a template raises
        message = " ".join(str(getattr(error, "message", None) or error).split()) or type(error).__name__
        if isinstance(error, jinja2.TemplateSyntaxError):
            raise ValueError(f"the chat template cannot be read, line {error.lineno}: {message}") from None
        turns = ", ".join(f"{turn['role']}: {turn['content']!r:.30}" for turn in refused[:4])
        turns += ", ..." if len(refused) > 4 else ""
        raise ValueError(f"the chat template refuses these messages: {message.rstrip('.')} ({turns}).") from None
    return [_pieces(text, spans[0] if spans else []) for [text], spans in rendered]


def _pieces(text: str, spans: Sequence[tuple[int, int]]) -> list[tuple[str, bool]]:
    """A text cut at the beginnings and ends of spans: (piece, whether it is a span), none empty."""
    end, pieces = 0, []
    for start, stop in spans:
        pieces += [(text[end:start], False), (text[start:stop], True)]
        end = stop
    return [piece for piece in [*pieces, (text[end:], False)] if piece[0]]


def _each_within_seconds(work: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
    """What `work` returns for each item, or raises. TimeoutError where none was done for SECONDS; it is then ended.

    One thread for all of them, because starting one takes ten times as long as an ordinary item; a thread at all,
    because signals reach the main one only, and chats are also encoded by those of a server.
    """
    results: list[Any] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            for item in items:
                results.append(work(item))
        except BaseException as error:  # raised again by the caller
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    done = -1
    while thread.is_alive():
        if done == len(results):
            timeout = ctypes.py_object(TimeoutError)
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident or 0), timeout)
            raise TimeoutError
        done = len(results)
        thread.join(SECONDS)
    if errors:
        raise errors[0]
    return results


def control_tokens(tokenizer: PreTrainedTokenizerBase, template: str = "") -> dict[int, AddedToken]:
    """The tokens that a message must not forge: the special ones, and those that the template puts around turns."""
    turns = [{"role": role, "content": "a"} for role in ("user", "assistant", "user")]
    marks = "".join(text for text, _ in render(tokenizer, turns, prompt=True, template=template))
    added = cast(dict[int, AddedToken], tokenizer.added_tokens_decoder)
    return {
        i: token for i, token in added.items() if token.special or (token.content.strip() and token.content in marks)
    }


def encode_chats(
    tokenizer: PreTrainedTokenizerBase,
    conversations: Sequence[Sequence[Message]],
    *,
    prompt: bool = False,
    template: str = "",
) -> list[tuple[list[int], list[bool]]]:
    """(ids, whether each is the assistant's) of conversations; with `prompt`, up to the beginning of its next turn.

    The text between two control tokens is encoded at once, but split where the assistant's turn starts, because a
    model continues from there. Control tokens are where the template puts them: those that a message contains are
    encoded as text. `template` "" is the tokenizer's own.
    """
    # The longest first: of two that match at one place, it is the one.
    controls = dict(sorted(control_tokens(tokenizer, template).items(), key=lambda item: -len(item[1].content)))
    ids_of = {token.content: i for i, token in controls.items()}
    spelled = re.compile("|".join(map(re.escape, [*ids_of, "\ue000"])))
    placed = re.compile("|".join(map(_with_spaces, controls.values())))
    hidden = {token: f"\ue000{i:x}\ue001" for token, i in ids_of.items()} | {"\ue000": "\ue000-\ue001"}
    shown = {mark: [token] for token, mark in hidden.items()}
    # The backend encodes only special tokens as text: any other one is encoded in two parts.
    shown |= {hidden[t.content]: [t.content[0], t.content[1:]] for t in controls.values() if not t.special}
    chats, texts, places = [], [], []
    safe = [
        [
            message | {"content": spelled.sub(lambda match: hidden[match[0]], message["content"])}
            for message in messages
        ]
        for messages in conversations
    ]
    for rendered in render_all(tokenizer, safe, prompt=prompt, template=template):
        ids: list[Any] = []
        for text, learned in rendered:
            end = 0
            for match in [*placed.finditer(text), None]:
                for part in _shown(text[end : match.start() if match else None], shown):
                    texts.append(part)
                    places.append((len(chats), len(ids)))
                    ids.append((part, learned))
                if match:
                    ids.append(([ids_of[match[cast(int, match.lastindex)]]], learned))
                    end = match.end()
        chats.append(ids)
    for (row, i), encoded in zip(places, encode_documents(tokenizer, texts), strict=True):
        chats[row][i] = (encoded, chats[row][i][1])
    return [
        ([i for part, _ in pieces for i in part], [learned for part, learned in pieces for _ in part])
        for pieces in chats
    ]


def _with_spaces(token: AddedToken) -> str:
    """A pattern for a token in a text, with the white space that it absorbs."""
    return (r"\s*" if token.lstrip else "") + f"({re.escape(token.content)})" + (r"\s*" if token.rstrip else "")


def _shown(text: str, shown: dict[str, list[str]]) -> list[str]:
    """A text with the hidden control tokens of messages restored, in the parts that are encoded separately."""
    parts = [""]
    for piece in HIDDEN.split(text):
        first, *rest = shown.get(piece, [piece])
        parts[-1] += first
        parts += rest
    return [part for part in parts if part]


def end_of_turn(tokenizer: PreTrainedTokenizerBase, *, template: str = "") -> tuple[list[int], list[str]]:
    """What the template puts after an answer: (the id that ends it, []) or ([], strings that end it).

    A base model's end token ends a document; a turn may end with another token, or with none.
    """
    marks = ["qzxqone", "qzxqtwo", "qzxqthree"]  # words of no template
    roles = ["user", "assistant", "user"]
    turns = [{"role": role, "content": mark} for role, mark in zip(roles, marks, strict=True)]
    text = "".join(piece for piece, _ in render(tokenizer, turns, template=template))
    places = [text.find(mark) for mark in marks]
    if -1 in places or places != sorted(places):
        return [], []
    after_question, after_answer = (text[places[i] + len(marks[i]) : places[i + 1]] for i in (0, 1))
    controls = control_tokens(tokenizer, template)
    ends = [i for i, token in controls.items() if after_answer.lstrip().startswith(token.content)]
    if ends:
        return [max(ends, key=lambda i: len(controls[i].content))], []
    return [], [each.rstrip() for each in (after_answer, after_question) if each.strip()]


def ends_of(tokenizer: PreTrainedTokenizerBase, generation: GenerationConfig) -> set[int]:
    """The ids that end an answer: the tokenizer's, those of the generation configuration, and the template's own."""
    known = generation.eos_token_id
    own = cast(int | None, tokenizer.sep_token_id if tokenizer.eos_token_id is None else tokenizer.eos_token_id)
    turn = end_of_turn(tokenizer)[0] if tokenizer.chat_template else []
    return {i for i in (own, *(known if isinstance(known, list) else [known]), *turn) if i is not None}
