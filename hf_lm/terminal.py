"""Text on a terminal: shown as text, as it comes, and side by side."""

import shutil
import sys
import unicodedata
from collections.abc import Callable, Iterator, Sequence

# What a model or a file says must not move the cursor or recolour the screen: control characters are shown as pictures.
CONTROLS = {i: 0x2400 + i for i in range(32) if chr(i) not in "\n\t"} | {0x7F: 0x2421}
CONTROLS |= dict.fromkeys(range(0x80, 0xA0), 0xFFFD)


def printable(text: str) -> str:
    """Text with its control characters made visible; line ends and tabs stay."""
    return text.translate(CONTROLS)


def show(pieces: Iterator[str], *, write: Callable[[str], object] | None = None) -> bool:
    """Print pieces as they come, and a line end. Ctrl-C ends them: whether they came to their own end."""
    write = write or _write
    try:
        for piece in pieces:
            write(printable(piece))
    except KeyboardInterrupt:
        return False
    finally:
        close = getattr(pieces, "close", None)
        if close is not None:
            close()  # a writer in a thread stops
        write("\n")
    return True


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


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
    columns = [
        [*wrap(title, column), "─" * column, *wrap(printable(text).strip("\n"), column)]
        for title, text in zip(titles, texts, strict=True)
    ]
    rows = range(max(map(len, columns)))
    cells = [[lines[row] if row < len(lines) else "" for lines in columns] for row in rows]
    return "\n".join(" │ ".join(cell + " " * (column - width_of(cell)) for cell in row).rstrip() for row in cells)
