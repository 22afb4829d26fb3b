"""text after a prompt, or after each prompt of a file"""

import argparse
import sys
from typing import TYPE_CHECKING

from hf_lm.hub.credentials import printable
from hf_lm.inference.decoding import add_decoding, decoding_of
from hf_lm.reporting.terminal import percent, quiet, show

if TYPE_CHECKING:
    from hf_lm.inference.generate import Continuation

EXAMPLE = 'hf-lm generate out/pretrain "The function returns"'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="a folder, an adapter's folder or a Hub id")
    parser.add_argument("prompt", nargs="*", help="without a prompt a document is generated from its beginning")
    parser.add_argument("--prompts", default="", metavar="FILE", help="a .txt with a prompt a line, or a table")
    parser.add_argument("--column", default="", help="column of the table that is read; guessed if not given")
    parser.add_argument("--output", default="", metavar="FILE", help=".jsonl; an existing one is continued")
    parser.add_argument("--device", default=None, help="cpu, cuda, cuda:1, mps ...; the accelerator if there is one")
    add_decoding(parser)


def run(args: argparse.Namespace) -> None:
    decoding = decoding_of(args)
    if args.prompt and args.prompts:
        raise ValueError("prompts come from the command line or from a file: give a prompt or --prompts, not both.")
    from hf_lm.data.reading import clean
    from hf_lm.inference.predict import generate_lines, read_texts

    quiet()
    prompts = read_texts(args.prompts, args.column) if args.prompts else [clean(each) for each in args.prompt or [""]]
    if args.output:
        lines = generate_lines(args.model, prompts, args.output, source=args.prompts, device=args.device, **decoding)
        print(f"{lines:,} prompts with their continuations in {args.output}")
        return
    from hf_lm.inference.generate import generate, load_writer, stream

    model, tokenizer = load_writer(args.model, device=args.device)
    live = sys.stdout.isatty()
    if len(prompts) == args.num_return_sequences == args.num_beams == 1:
        pieces = stream(model, tokenizer, prompts[0], **decoding)
        print(f"\033[1m{printable(prompts[0])}\033[0m" if live else "", end="", flush=True)
        if not show(pieces, safe=live):
            raise KeyboardInterrupt
        return
    for prompt, continuations in zip(prompts, generate(model, tokenizer, prompts, **decoding), strict=True):
        for number, continuation in enumerate(continuations, 1):
            print(_heading(prompt, number, continuation))
            print(printable(continuation.text) if live else continuation.text)


def _heading(prompt: str, number: int, continuation: "Continuation") -> str:
    start = printable(" ".join(prompt.split()))
    start = start if len(start) <= 40 else f"{start[:39]}…"
    size = f"{len(continuation.log_probs)} tokens, {percent(continuation.per_token)} a token"
    return f"── {start or 'a document'} · {number} · {size}, log p {continuation.log_probability:.1f}"
