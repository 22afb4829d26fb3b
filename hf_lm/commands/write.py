"""write with a model in the terminal: continue, choose among alternatives, undo"""

import argparse
import itertools
from collections.abc import Callable, Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_lm.files import refuse_foreign, write_whole
from hf_lm.hub.credentials import error_line, printable
from hf_lm.inference.decoding import add_decoding, decoding_of
from hf_lm.reporting.terminal import Reader, percent, quiet, show, side_by_side

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from hf_lm.inference.generate import Continuation
    from hf_lm.inference.writing import Draft

EXAMPLE = "hf-lm write out/pretrain draft.txt"
HELP = """\
TEXT              is added to the draft
Enter             the model continues
/three [N]        three continuations (or N), side by side; type a number to take it
/line [TEXT]      begin a new line
/undo  /redo      undo the last change; make it again
/show             the whole draft
/save [FILE]      write it
/help  /quit      this list; leave. So do Ctrl-D, and Ctrl-C twice; one Ctrl-C stops the model
`a token` is the probability of each token, as a geometric mean."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="a folder, an adapter's folder or a Hub id")
    parser.add_argument("file", nargs="?", default="", help="a text to continue, and where /save writes")
    parser.add_argument("--device", default=None, help="cpu, cuda, cuda:1, mps ...; the accelerator if there is one")
    add_decoding(parser, streams=True, max_new_tokens=32)


def run(args: argparse.Namespace) -> None:
    decoding = decoding_of(args)
    from hf_lm.inference.generate import load_writer
    from hf_lm.inference.writing import Draft

    path = Path(args.file).expanduser()
    if args.file and path.is_dir():
        raise IsADirectoryError(f"{args.file} is a folder; give a file of text.")
    try:
        text = path.read_bytes().decode() if args.file and path.exists() else ""
    except UnicodeDecodeError:
        raise ValueError(f"{args.file} is not UTF-8 text.") from None
    quiet()
    model, tokenizer = load_writer(args.model, device=args.device)
    print(f"{args.model}: type text, Enter lets the model continue, /help lists the rest, /quit leaves.")
    assist(model, tokenizer, Draft(text), file=args.file, **decoding)


def assist(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    draft: "Draft",
    *,
    file: str = "",
    read: Callable[[str], str] = input,
    **decoding: Any,
) -> None:
    """The loop of `hf-lm write`: lines from `read` until it is left.

    A draft that was changed and not saved is written beside its file, as FILE.unsaved, when the input ends.
    """
    desk = _Desk(model, tokenizer, draft, file, decoding)
    lines = Reader(read)
    if draft.text:
        desk.show()
    try:
        while (line := lines.next("> ")) is not None:
            try:
                if not desk.do(line, lines):
                    return
            except (ValueError, OSError) as error:
                print(f"error: {error_line(error)}")
    finally:
        desk.rescue()


class _Desk:
    """A draft, the model that continues it, and the continuations that were offered last."""

    def __init__(
        self,
        model: "PreTrainedModel",
        tokenizer: "PreTrainedTokenizerBase",
        draft: "Draft",
        file: str,
        decoding: dict[str, Any],
    ) -> None:
        self.model, self.tokenizer, self.draft, self.file, self.decoding = model, tokenizer, draft, file, decoding
        self.saved = draft.text
        self.known = {_place(file): draft.text} if file else {}  # what this session read or wrote, by file
        self.offered: list[Continuation] = []
        self.warned = False
        self.seed = decoding.get("seed", 0)

    def do(self, line: str, lines: Reader) -> bool:
        """Do what a line asks for; returns False where it ends the session."""
        command, _, rest = line.partition(" ")
        if self.offered and line.strip().isdigit():
            self.choose(int(line))
        elif not line.strip():
            self.extend(lines)
        elif not line.startswith("/"):
            self.draft.add(_joined(self.draft.text, line))
        elif command == "/line":
            self.draft.add("\n" + rest)
        elif command == "/three":
            self.offer(rest)
        elif command in ("/undo", "/redo"):
            done = self.draft.undo() if command == "/undo" else self.draft.redo()
            print(f"(…{self.tail()})" if done else f"(nothing to {command[1:]})")
        elif command == "/show":
            self.show()
        elif command == "/save":
            self.save(rest)
        elif command == "/help":
            print(HELP)
        elif command == "/quit":
            if self.draft.text != self.saved and not self.warned:
                self.warned = True
                print("(not saved: /save FILE writes it, /quit once more leaves it)")
                return True
            self.saved = self.draft.text  # left on purpose
            return False
        else:
            raise ValueError(f"there is no {command}; /help lists what there is.")
        self.warned = False
        return True

    def extend(self, lines: Reader) -> None:
        from hf_lm.inference.writing import continue_text

        written: list[str] = []
        pieces = continue_text(self.model, self.tokenizer, self.draft.text, **self.settings())
        finished = show(_kept(pieces, written))
        self.draft.add("".join(written))
        self.offered = []
        if not finished:
            lines.interrupted = True
            print("(stopped; /undo removes what was written)")
        elif not written:
            print("(the model ends the text here)")

    def offer(self, count: str) -> None:
        from hf_lm.inference.writing import alternatives

        if count and not (count.isdigit() and 1 <= int(count) <= 9):
            raise ValueError("/three takes a number from 1 to 9.")
        self.offered = alternatives(
            self.model, self.tokenizer, self.draft.text, count=int(count or 3), **self.settings()
        )
        if not self.offered:
            print("(the model has no other continuation: try once more, or a higher --temperature)")
            return
        titles = [f"{number}: {percent(each.per_token)} a token" for number, each in enumerate(self.offered, 1)]
        print(side_by_side([each.text for each in self.offered], titles))

    def choose(self, number: int) -> None:
        if not 1 <= number <= len(self.offered):
            raise ValueError(f"there are 1 to {len(self.offered)} to choose from.")
        self.draft.add(self.offered[number - 1].text)
        self.offered = []
        print(f"(…{self.tail()})")

    def show(self) -> None:
        print(printable(self.draft.text) or "(empty)")

    def save(self, file: str) -> None:
        file = file.strip() or self.file
        if not file:
            raise ValueError("/save needs the name of a file.")
        path = _place(file)
        # Also a file of this session that another program has changed is not replaced.
        refuse_foreign(path, ours=lambda path: path.read_bytes().decode() == self.known[path], option="file to /save")
        write_whole(path, self.draft.text)
        self.file = file
        self.saved = self.known[path] = self.draft.text
        print(f"(saved in {file})")

    def rescue(self) -> None:
        if self.draft.text != self.saved:
            first = f"{self.file or 'draft.txt'}.unsaved"
            names = itertools.chain([first], (f"{first}-{number}" for number in itertools.count(2)))
            file = next(name for name in names if not _place(name).exists())
            write_whole(_place(file), self.draft.text.encode(errors="surrogateescape"))  # typed in whatever encoding
            print(f"(not saved before; written to {file})")

    def settings(self) -> dict[str, Any]:
        """The settings with the next seed: asked again, the model offers something else."""
        self.seed += 1
        return self.decoding | {"seed": self.seed - 1}

    def tail(self) -> str:
        return printable(self.draft.text[-60:].replace("\n", "⏎"))


def _place(file: str) -> Path:
    return Path(file).expanduser().resolve()


def _kept(pieces: Generator[str], written: list[str]) -> Generator[str]:
    try:
        for piece in pieces:
            written.append(piece)
            yield piece
    finally:
        pieces.close()


def _joined(text: str, line: str) -> str:
    """A line to add: after a space, unless there is one, the line begins with a mark, or the script has no spaces."""
    from rich.cells import cell_len

    parted = not text or text[-1].isspace() or line[0].isspace() or line[0] in ".,;:!?…)]%"
    return line if parted or 2 in (cell_len(text[-1]), cell_len(line[0])) else f" {line}"
