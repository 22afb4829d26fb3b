"""talk to a model in the terminal"""

import argparse
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING

from hf_lm.hub.credentials import error_line, printable
from hf_lm.inference.decoding import add_decoding, decoding_of
from hf_lm.reporting.terminal import Reader, quiet, show

if TYPE_CHECKING:
    from hf_lm.inference.chat import Conversation

EXAMPLE = 'hf-lm chat out/chat --system "Answer in one sentence."'
HELP = """\
/regenerate      another answer to the last message
/undo            remove the last message and its answer
/system [TEXT]   show the system prompt, or set it; /system - removes it
/reset           remove everything but the system prompt
/save FILE       add the conversation to a .jsonl file; --load FILE continues it
/help            this list
/quit            leave; so do Ctrl-D, and Ctrl-C twice. One Ctrl-C stops an answer
A line that ends with \\ continues in the next one. Begin with a space to send a message that starts with a slash."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="a folder, an adapter's folder or a Hub id")
    parser.add_argument("--system", default="", metavar="TEXT", help="the system prompt")
    parser.add_argument("--template", default="", metavar="FILE", help="a chat template in Jinja, or `plain`")
    parser.add_argument("--load", default="", metavar="FILE", help="continue the last conversation of a .jsonl file")
    parser.add_argument("--device", default=None, help="cpu, cuda, cuda:1, mps ...; the accelerator if there is one")
    add_decoding(parser, streams=True)


def run(args: argparse.Namespace) -> None:
    decoding = decoding_of(args)
    from hf_lm.data.reading import clean
    from hf_lm.inference.chat import Conversation, load_conversation
    from hf_lm.inference.generate import load_writer

    messages = load_conversation(args.load) if args.load else []
    quiet()
    model, tokenizer = load_writer(args.model, device=args.device)
    conversation = Conversation(
        model, tokenizer, system=clean(args.system), template=args.template, messages=messages, **decoding
    )
    print(f"{args.model}: /help lists what can be done here, /quit leaves.")
    talk(conversation, file=args.load)


def talk(conversation: "Conversation", *, file: str = "", read: Callable[[str], str] = input) -> None:
    """The loop of `hf-lm chat`: lines from `read` until it is left. `file` is where /save without one saves."""
    from hf_lm.data.reading import clean

    lines = Reader(read)
    while (line := lines.next("> ")) is not None:
        line = clean(line)  # a byte that is no UTF-8 is typed as half a surrogate pair
        if not line.strip():
            continue
        try:
            if not line.startswith("/"):
                _answer(conversation, conversation.say(line.strip()), lines)
                continue
            command, _, rest = line[1:].partition(" ")
            rest = rest.strip()
            if command == "quit":
                return
            if command == "help":
                print(HELP)
            elif command == "reset":
                conversation.reset()
                print("(removed)")
            elif command == "undo":
                print(f"(removed: {printable(conversation.undo())})")
            elif command == "regenerate":
                _answer(conversation, conversation.regenerate(), lines)
            elif command == "system":
                if rest:
                    conversation.set_system("" if rest == "-" else rest)
                system = printable(conversation.system)
                print(f"(system prompt: {system})" if system else "(there is no system prompt)")
            elif command == "save":
                file = rest or file
                if not file:
                    raise ValueError("/save needs the name of a file.")
                conversation.save(file)
                print(f"(saved in {file})")
            else:
                raise ValueError(f"there is no /{command}; /help lists what there is.")
        except (ValueError, OSError) as error:
            print(f"error: {error_line(error)}")


def _answer(conversation: "Conversation", pieces: Generator[str], lines: Reader) -> None:
    from hf_lm.models.configuration import context_length

    if conversation.left_out:
        positions = context_length(conversation.model.config)
        print(
            f"(the context of {positions:,} tokens is full: the oldest {conversation.left_out} messages are kept, "
            "but the model no longer sees them)"
        )
    if not show(pieces):
        lines.interrupted = True
        print("(stopped)")
    elif not conversation.messages[-1]["content"]:
        print("(the answer is empty)")
