"""Conversations as token ids: a chat template that marks what the assistant says; no text can forge a turn."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerBase

from hf_lm.tokenization.tokenizer import encode_documents

Message = dict[str, str]  # {"role": "system" | "user" | "assistant", "content": text}

# A turn is a document: the token that begins one, the role, a line end, the text, and the token that ends one. Like
# ChatML, but with the tokens that a pretrained model already knows: nothing is added to its embedding, so that LoRA
# needs none, and the end that it learned in pretraining is the end of its answers.
TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if loop.first or not SAME -%}{{- BEGIN -}}{%- endif -%}"  # where one token is both, it stands once
    "{{- message['role'] + '\\n' -}}"
    "{%- if message['role'] == 'assistant' -%}{%- generation -%}{{- message['content'] + END -}}{%- endgeneration -%}"
    "{%- else -%}{{- message['content'] + END -}}{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- ('' if SAME else BEGIN) + 'assistant\\n' -}}{%- endif -%}"
)
HIDDEN = re.compile("(\ue000[0-9a-f-]+\ue001)")  # a control token that a message spells out; of private use
MARKED = re.compile(r"\{%-?\s*generation\s*-?%\}")


def set_chat_template(tokenizer: PreTrainedTokenizerBase, file: str = "") -> str:
    """Give a tokenizer the template in `file`, or a small one where it has none; returns what was done, in words.

    A template must mark what the assistant says with {% generation %}; the known ones that do not are replaced by
    TRL's versions that do. Raises ValueError or OSError in one line.
    """
    if file:
        try:
            tokenizer.chat_template = Path(file).read_text(encoding="utf-8")
        except OSError as error:
            raise OSError(f"--chat_template {file}: {error.strerror}. Give a Jinja file.") from None
        said = f"the chat template of {Path(file).name}"
    elif tokenizer.chat_template:
        said = "the tokenizer's own chat template"
    else:
        ends = (tokenizer.eos_token, tokenizer.sep_token, tokenizer.bos_token)
        end = next(token for token in ends if token is not None)
        begin = tokenizer.bos_token or ""
        words = {"SAME": str(begin == end), "BEGIN": repr(begin), "END": repr(end)}
        tokenizer.chat_template = re.sub("SAME|BEGIN|END", lambda word: words[word[0]], TEMPLATE)
        said = "a small chat template, for the tokenizer had none: a turn is a document, its role on the first line"
    if not isinstance(tokenizer.chat_template, str):
        raise ValueError("the tokenizer has several chat templates: choose one with --chat_template FILE.")
    if not MARKED.search(tokenizer.chat_template):
        tokenizer.chat_template = _marked(tokenizer)
        said += ", in TRL's version, which marks the assistant's turns"
    probe = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    if "b" not in "".join(text for text, learned in render(tokenizer, probe) if learned):
        raise ValueError("the chat template marks no answer as the assistant's: see {% generation %} in its manual.")
    return said


def _marked(tokenizer: PreTrainedTokenizerBase) -> str:
    from trl.chat_template_utils import get_training_chat_template

    try:
        template = get_training_chat_template(tokenizer)
    except ValueError:
        template = None
    if template is None:
        raise ValueError(
            "the tokenizer's chat template does not mark the assistant's turns with {% generation %}, so that what is "
            "learned cannot be told from what is asked: give one that does with --chat_template FILE."
        )
    return template


def render(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], *, prompt: bool = False, template: str = ""
) -> list[tuple[str, bool]]:
    """A conversation as the template has it, in pieces: (text, whether the assistant says it).

    `template` "" is the tokenizer's own. Raises ValueError in one line where it refuses the messages.
    """
    from transformers.utils.chat_template_utils import render_jinja_template

    template = template or tokenizer.chat_template
    try:
        rendered, spans = render_jinja_template(
            [list(messages)],
            chat_template=template,
            return_assistant_tokens_mask=bool(MARKED.search(template)),
            add_generation_prompt=prompt,
            **tokenizer.special_tokens_map,
        )
    except Exception as error:  # of Jinja, and whatever a template raises
        line = f", line {error.lineno}" if isinstance(error, jinja2.TemplateSyntaxError) else ""
        said = " ".join(str(getattr(error, "message", None) or error).split())
        raise ValueError(f"the chat template refuses these messages{line}: {said}") from None
    text, at, pieces = rendered[0], 0, []
    for start, end in spans[0] if spans else ():
        pieces += [(text[at:start], False), (text[start:end], True)]
        at = end
    return [piece for piece in [*pieces, (text[at:], False)] if piece[0]]


def control_tokens(tokenizer: PreTrainedTokenizerBase, template: str = "") -> dict[int, AddedToken]:
    """The tokens that a message must not forge: the special ones, and those that the template puts around turns."""
    turns = [{"role": role, "content": "a"} for role in ("user", "assistant", "user")]
    marks = "".join(text for text, _ in render(tokenizer, turns, prompt=True, template=template))
    added = tokenizer.added_tokens_decoder.items()
    return {i: token for i, token in added if token.special or (token.content.strip() and token.content in marks)}


def encode_chats(
    tokenizer: PreTrainedTokenizerBase,
    conversations: Sequence[Sequence[Message]],
    *,
    prompt: bool = False,
    template: str = "",
) -> list[tuple[list[int], list[bool]]]:
    """(ids, whether the assistant says each) of conversations; with `prompt`, up to where it is to speak.

    A piece is encoded by itself, as it is when a model continues from the prompt. Control tokens are where the
    template puts them: those that a message spells out are encoded as text. `template` "" is the tokenizer's own.
    """
    # The longest first: of two that match at one place it is the one meant.
    controls = dict(sorted(control_tokens(tokenizer, template).items(), key=lambda item: -len(item[1].content)))
    ids_of = {token.content: i for i, token in controls.items()}
    spelled = re.compile("|".join(map(re.escape, [*ids_of, "\ue000"])))
    placed = re.compile("|".join(map(_with_spaces, controls.values())))
    hidden = {token: f"\ue000{i:x}\ue001" for token, i in ids_of.items()} | {"\ue000": "\ue000-\ue001"}
    shown = {mark: [token] for token, mark in hidden.items()}
    # The backend encodes a token as text only if it is special: any other one is encoded in two parts.
    shown |= {hidden[t.content]: [t.content[0], t.content[1:]] for t in controls.values() if not t.special}
    found, texts, places = [], [], []
    for messages in conversations:
        safe = [
            message | {"content": spelled.sub(lambda match: hidden[match[0]], message["content"])}
            for message in messages
        ]
        ids: list[Any] = []
        for text, learned in render(tokenizer, safe, prompt=prompt, template=template):
            end = 0
            for match in [*placed.finditer(text), None]:
                for part in _shown(text[end : match.start() if match else None], shown):
                    texts.append(part)
                    places.append((len(found), len(ids)))
                    ids.append((part, learned))
                if match:
                    ids.append(([ids_of[match[match.lastindex]]], learned))
                    end = match.end()
        found.append(ids)
    for (row, i), encoded in zip(places, encode_documents(tokenizer, texts), strict=True):
        found[row][i] = (encoded, found[row][i][1])
    return [
        ([i for part, _ in pieces for i in part], [learned for part, learned in pieces for _ in part])
        for pieces in found
    ]


def _with_spaces(token: AddedToken) -> str:
    """What a token matches in a text: with the white space that it takes to itself."""
    return (r"\s*" if token.lstrip else "") + f"({re.escape(token.content)})" + (r"\s*" if token.rstrip else "")


def _shown(text: str, shown: dict[str, list[str]]) -> list[str]:
    """A text with what messages spelled out back in its place, in the parts that are encoded each by itself."""
    parts = [""]
    for piece in HIDDEN.split(text):
        first, *rest = shown.get(piece, [piece])
        parts[-1] += first
        parts += rest
    return [part for part in parts if part]


def ends_of(tokenizer: PreTrainedTokenizerBase, generation: Any) -> set[int]:
    """The ids that end an answer: the tokenizer's and those of the generation configuration."""
    known = generation.eos_token_id
    known = known if isinstance(known, list) else [known]
    own = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.sep_token_id
    return {i for i in (own, *known) if i is not None}
