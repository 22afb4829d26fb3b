"""Text on a terminal: shown as text, as it comes, and side by side."""

import contextlib
import math
from collections.abc import Callable, Generator, Sequence

from hf_lm.hub.credentials import printable


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


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of cells as lines with aligned columns, as wide as they need; Chinese characters take two places."""
    from rich.cells import cell_len, set_cell_size

    rows = [[printable(cell) for cell in row] for row in rows]
    widths = [max(map(cell_len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(map(set_cell_size, row, widths)).rstrip() for row in rows]


def bar(share: float, width: int = 24) -> str:
    """A bar of `width` places for a share of 1, to an eighth of a place; a share above 0 is never invisible."""
    eighths = max(round(share * width * 8), share > 0)
    return "█" * (eighths // 8) + ("", *"▏▎▍▌▋▊▉")[eighths % 8]


def side_by_side(texts: Sequence[str], titles: Sequence[str], *, width: int | None = None) -> str:
    """Texts in columns under their titles; below one another where a column would be narrower than 20 places."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(width=width, color_system=None)
    if console.width < 23 * len(texts) - 3:
        return "\n\n".join(f"{title}\n{printable(text)}" for title, text in zip(titles, texts, strict=True))
    table = Table(box=box.SIMPLE_HEAD, expand=True, show_edge=False)
    for title in titles:
        table.add_column(Text(title), ratio=1, overflow="fold")
    table.add_row(*(Text(printable(text).strip("\n")) for text in texts))
    with console.capture() as capture:
        console.print(table)
    return capture.get().rstrip("\n")
