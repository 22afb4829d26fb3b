"""Decoding settings, declared once: for generate, stream, write and chat, in Python and in the terminal."""

import argparse
from dataclasses import dataclass, field, fields
from typing import Any, get_type_hints

from hf_lm.parsing.ranges import (
    Amount,
    Count,
    Positive,
    PositiveShare,
    Seed,
    Share,
    Size,
    check_range,
    number,
    range_of,
)

# ruff: noqa: RUF009 - a setting is a field


def _setting(default: object, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class Decoding:
    """Settings of generation. Raises ValueError, in one line, where they exclude each other."""

    max_new_tokens: Count = _setting(0, "tokens generated at most; 0 is half the model's context, at most 128")
    temperature: Amount = _setting(0.8, "1 is the model's own distribution, lower is less random, 0 is greedy")
    top_p: PositiveShare = _setting(0.95, "sample from the most likely tokens with this probability together; 1: all")
    min_p: Share = _setting(0.0, "drop tokens less likely than this share of the most likely one; 0 drops none")
    top_k: Count = _setting(0, "sample from this many most likely tokens; 0: all")
    num_beams: Size = _setting(1, "hypotheses of the search for the most likely text; needs temperature 0")
    repetition_penalty: Positive = _setting(1.0, "above 1, tokens that already occur in the text become less likely")
    no_repeat_ngram_size: Count = _setting(0, "no sequence of this many tokens occurs twice; 0 allows it")
    stop: tuple[str, ...] = _setting((), "strings that end the text and are not part of it")
    seed: Seed = _setting(0, "the same seed gives the same text")
    num_return_sequences: Size = _setting(1, "texts for each prompt")
    batch_size: Size = _setting(32, "texts generated at once")

    def __post_init__(self) -> None:
        object.__setattr__(self, "stop", (self.stop,) if isinstance(self.stop, str) else tuple(self.stop))
        for name, kind in KINDS.items():
            if allowed := range_of(kind):
                check_range(name, getattr(self, name), allowed)
        if "" in self.stop:
            raise ValueError("a stop string is empty: every text would be empty.")
        if self.num_beams > 1 and self.temperature > 0:
            raise ValueError(
                f"num_beams is {self.num_beams}, which searches for the most likely text, and temperature is "
                f"{self.temperature}, which samples: give temperature 0, or num_beams 1."
            )
        if self.temperature == 0 and self.num_return_sequences > self.num_beams:
            raise ValueError(
                f"num_return_sequences is {self.num_return_sequences}, but with temperature 0 and num_beams "
                f"{self.num_beams} there are only {self.num_beams} texts: raise num_beams or the temperature."
            )


KINDS = get_type_hints(Decoding, include_extras=True)
SEVERAL = ("num_beams", "num_return_sequences", "batch_size")  # meaningless where one text is streamed


def add_decoding(parser: argparse.ArgumentParser, *, streams: bool = False, **defaults: float) -> None:
    """Add these settings to a subcommand as options; `defaults` replace some defaults."""
    group = parser.add_argument_group("decoding")
    for each in fields(Decoding):
        if streams and each.name in SEVERAL:
            continue
        text, default = each.metadata["help"], defaults.get(each.name, each.default)
        if each.name == "stop":
            group.add_argument(
                "--stop", action="append", default=[], metavar="STRING", help=f"{text}; may be given several times"
            )
        else:
            group.add_argument(
                f"--{each.name}",
                type=number(KINDS[each.name]),
                default=default,
                metavar="N",
                help=f"{text} (default: {default})",
            )


def decoding_of(args: argparse.Namespace) -> dict[str, Any]:
    """The settings among a subcommand's arguments, as `generate` takes them. In a stop string \\n and \\t are escapes.

    Raises ValueError in one line.
    """
    given = {each.name: getattr(args, each.name) for each in fields(Decoding) if hasattr(args, each.name)}
    given["stop"] = tuple(each.replace("\\n", "\n").replace("\\t", "\t") for each in given.get("stop", ()))
    Decoding(**given)  # wrong settings are reported before a model is loaded
    return given
