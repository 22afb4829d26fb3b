"""Regular expressions of the user's own. They end: one that takes seconds for a text is refused."""

from collections.abc import Callable, Iterator
from typing import Any

import regex

SECONDS = 10  # for one text; an ordinary expression reads a megabyte in less than 0.1 s


class Pattern:
    """A regular expression in Python's syntax. Its methods raise ValueError where one takes too long for a text."""

    def __init__(self, text: str, *, option: str, flags: int = 0) -> None:
        self.pattern, self.option = text, option
        try:
            self._compiled = regex.compile(text, flags)
        except (regex.error, RecursionError, OverflowError) as error:
            raise ValueError(f"{option} {text!r:.100} is not a regular expression: {error}.") from None

    def search(self, text: str) -> Any:
        return self._timed(lambda: self._compiled.search(text, timeout=SECONDS))

    def fullmatch(self, text: str) -> Any:
        return self._timed(lambda: self._compiled.fullmatch(text, timeout=SECONDS))

    def starts(self, text: str, end: int) -> Iterator[int]:
        """Where the matches before `end` begin."""
        yield from self._timed(lambda: [m.start() for m in self._compiled.finditer(text, 0, end, timeout=SECONDS)])

    def _timed(self, match: Callable[[], Any]) -> Any:
        try:
            return match()
        except TimeoutError:
            raise ValueError(
                f"{self.option} {self.pattern!r:.100} took more than {SECONDS} s for one text: nested repetition, as "
                "in (a+)+, takes exponentially long; write it without."
            ) from None
