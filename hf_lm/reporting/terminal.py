"""Text on a terminal: shown as text, as it comes, and side by side."""

import contextlib
import math
import shutil
import unicodedata
from collections.abc import Callable, Generator, Sequence

# What a model or a file says must not move the cursor or colour the screen: control characters are shown as pictures.
CONTROLS = {i: 0x2400 + i for i in range(32) if chr(i) not in "\n\t"} | {0x7F: 0x2421}
CONTROLS |= dict.fromkeys(range(0x80, 0xA0), 0xFFFD)


def printable(text: str) -> str:
    """Text with its control characters made visible; line ends and tabs stay."""
    return text.translate(CONTROLS)


def quiet() -> None:
    """No progress bars and no advice from transformers between the lines of a command, which says what matters."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()


def show(pieces: Generator[str], *, safe: bool = True) -> bool:
    """Print pieces as they come, and a line end. Ctrl-C ends them: whether they came to their own end.

    `safe` shows control characters as pictures; without, the text is printed as it is.
    """
    try:
        for piece in pieces:
            print(printable(piece) if safe else piece, end="", flush=True)
    except KeyboardInterrupt:
        return False
    finally:
        pieces.close()  # a writer in a thread stops
        print(flush=True)
    return True


class Reader:
    """Lines that a person types. Ctrl-C once asks for another; at the next line, or after a stopped answer, it leaves.

    `read` is `input`, or what a test puts in its place.
    """

    def __init__(self, read: Callable[[str], str] = input) -> None:
        self.read, self.interrupted = read, False
        with contextlib.suppress(ImportError):  # arrow keys and history, where the platform has them
            import readline  # noqa: F401

    def next(self, prompt: str) -> str | None:
        """The next line, joined with those after it that its \\ at the end asks for; None at the end of the input.

        Raises KeyboardInterrupt for the second Ctrl-C in a row.
        """
        lines: list[str] = []
        while True:
            try:
                lines.append(self.read(prompt if not lines else "… "))
            except EOFError:
                print()
                return None
            except KeyboardInterrupt:
                print()
                if self.interrupted:
                    raise
                self.interrupted, lines = True, []
                print("(Ctrl-C once more leaves)")
                continue
            self.interrupted = False
            if not lines[-1].endswith("\\"):
                return "\n".join(lines)
            lines[-1] = lines[-1][:-1]


def percent(nats: float) -> str:
    """A mean log-probability per token as a probability."""
    share = 100 * math.exp(nats)
    return f"{share:.0f} %" if share >= 10 else f"{share:.2g} %"


def width_of(text: str) -> int:
    """Cells that a text takes on a terminal: two for a Chinese character, none for a combining mark."""
    return sum(_cells(character) for character in text)


def _cells(character: str) -> int:
    if unicodedata.combining(character) or unicodedata.category(character) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def wrap(text: str, width: int) -> list[str]:
    """Lines of at most `width` cells: cut at a space where there is one, anywhere in a longer word or in Chinese."""
    lines = []
    for paragraph in text.expandtabs(4).split("\n"):
        line, cells, space = "", 0, 0  # space: where the line may end
        for character in paragraph:
            if cells + _cells(character) > width:
                end = space or len(line)
                lines.append(line[:end].rstrip())
                line, space = line[end:].lstrip(), 0
                cells = width_of(line)
            line, cells = line + character, cells + _cells(character)
            if character == " " or _cells(character) == 2:
                space = len(line)
        lines.append(line.rstrip())
    return lines


def side_by_side(texts: Sequence[str], titles: Sequence[str], *, width: int = 0) -> str:
    """Texts in columns under their titles; below one another where a column would be narrower than 20 cells."""
    width = width or shutil.get_terminal_size().columns
    column = (width - 3 * (len(texts) - 1)) // max(1, len(texts))
    if column < 20:
        return "\n\n".join(f"{title}\n{printable(text)}" for title, text in zip(titles, texts, strict=True))
    heads = [wrap(title, column) for title in titles]
    height = max(map(len, heads), default=0)
    columns = [
        [*head, *[""] * (height - len(head)), "─" * column, *wrap(printable(text).strip("\n"), column)]
        for head, text in zip(heads, texts, strict=True)
    ]
    rows = range(max(map(len, columns)))
    cells = [[lines[row] if row < len(lines) else "" for lines in columns] for row in rows]
    return "\n".join(" │ ".join(cell + " " * (column - width_of(cell)) for cell in row).rstrip() for row in cells)
