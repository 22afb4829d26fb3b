"""Conversations as token ids: a chat template that marks what the assistant says; no text can forge a turn."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from hf_lm.tokenizer import encode_documents

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
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], *, prompt: bool = False
) -> list[tuple[str, bool]]:
    """A conversation as the template has it, in pieces: (text, whether the assistant says it)."""
    from transformers.utils.chat_template_utils import render_jinja_template

    try:
        rendered, spans = render_jinja_template(
            [list(messages)],
            chat_template=tokenizer.chat_template,
            return_assistant_tokens_mask=True,
            add_generation_prompt=prompt,
            **tokenizer.special_tokens_map,
        )
    except Exception as error:  # of Jinja, and whatever a template raises
        raise ValueError(f"the chat template refuses a conversation: {' '.join(str(error).split())}") from None
    text, at, pieces = rendered[0], 0, []
    for start, end in spans[0]:
        pieces += [(text[at:start], False), (text[start:end], True)]
        at = end
    return [piece for piece in [*pieces, (text[at:], False)] if piece[0]]


def encode_chats(
    tokenizer: PreTrainedTokenizerBase, conversations: Sequence[Sequence[Message]], *, prompt: bool = False
) -> list[tuple[list[int], list[bool]]]:
    """(ids, whether the assistant says each) of conversations; with `prompt`, up to where it is to speak.

    A piece is encoded by itself, as it is when a model goes on from the prompt. Special tokens stand where the
    template puts them: those that a message spells out are encoded as text.
    """
    special = {token.content: i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    at = re.compile("|".join(re.escape(token) for token in sorted(special, key=len, reverse=True)))
    hidden = {token: f"\ue000{i:x}\ue001" for token, i in special.items()}  # characters of private use
    shown = {mark: token for token, mark in hidden.items()}
    found, texts, places = [], [], []
    for messages in conversations:
        safe = [
            message | {"content": at.sub(lambda match: hidden[match[0]], message["content"])} for message in messages
        ]
        ids: list[Any] = []
        for text, learned in render(tokenizer, safe, prompt=prompt):
            end = 0
            for match in [*at.finditer(text), None]:
                part = text[end : match.start() if match else None]
                if part:
                    texts.append(re.sub("\ue000[0-9a-f]+\ue001", lambda mark: shown[mark[0]], part))
                    places.append((len(found), len(ids)))
                    ids.append((part, learned))
                if match:
                    ids.append(([special[match[0]]], learned))
                    end = match.end()
        found.append(ids)
    for (row, i), encoded in zip(places, encode_documents(tokenizer, texts), strict=True):
        found[row][i] = (encoded, found[row][i][1])
    return [
        ([i for part, _ in pieces for i in part], [learned for part, learned in pieces for _ in part])
        for pieces in found
    ]


def ends_of(tokenizer: PreTrainedTokenizerBase, generation: Any) -> set[int]:
    """The ids that end an answer: the tokenizer's and those of the generation configuration."""
    known = generation.eos_token_id
    known = known if isinstance(known, list) else [known]
    own = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.sep_token_id
    return {i for i in (own, *known) if i is not None}
