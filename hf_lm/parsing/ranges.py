"""The numbers that an argument may be, declared in its type: `max_length: Size = 256`, `type=number(Count)`.

And those that a model's configuration may count, which is a stranger's: `excessive`.
"""

import math
from argparse import ArgumentTypeError
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, get_args, get_origin

LARGEST = 2**31 - 1  # of an integer: what tensors' sizes and seeds are stored in


@dataclass(frozen=True)
class Range:
    """Finite numbers from `low` to `high`; `above` and `below` leave out the bound itself."""

    low: float = -math.inf
    high: float = math.inf
    above: bool = False
    below: bool = False

    def refusal(self, value: float) -> str:
        """What a value must be, in words; "" where it is that."""
        if isinstance(value, float) and not math.isfinite(value):
            return "it must be a finite number"
        if value < self.low or (self.above and value == self.low):
            return f"it must be {'more than ' if self.above else ''}{self.low:,}{'' if self.above else ' or more'}"
        if value > self.high or (self.below and value == self.high):
            return f"it must be {'less than ' if self.below else ''}{self.high:,}{'' if self.below else ' or less'}"
        return ""


Count = Annotated[int, Range(0, LARGEST)]
Size = Annotated[int, Range(1, LARGEST)]
Amount = Annotated[float, Range(0)]
Positive = Annotated[float, Range(0, above=True)]
Share = Annotated[float, Range(0, 1)]  # both ends included
PositiveShare = Annotated[float, Range(0, 1, above=True)]
Decay = Annotated[float, Range(0, 1, below=True)]  # what a mean keeps of its past
Port = Annotated[int, Range(0, 65535)]
Tokens = Annotated[int, Range(0)]  # of a corpus, which is longer than any tensor
Layers = Annotated[int, Range(0, 1000)]
Seed = Annotated[int, Range(0, 2**32 - 1)]


def range_of(kind: object) -> Range | None:
    """The range that a type declares, itself or for its items; every float must be finite."""
    if get_origin(kind) is Annotated:
        return next((note for note in get_args(kind)[1:] if isinstance(note, Range)), None)
    if kind is float:
        return Range()
    return next((found for part in get_args(kind) if (found := range_of(part))), None)


def check_range(name: str, value: object, allowed: Range) -> None:
    """Raise ValueError where a number, or one of a list, is out of range. None and text are not numbers."""
    for each in value if isinstance(value, list | tuple) else [value]:
        if isinstance(each, int | float) and (refusal := allowed.refusal(each)):
            raise ValueError(f"{name} is {each}; {refusal}.")


def number(kind: object) -> Callable[[str], Any]:
    """A type of argparse for one of the types above."""
    plain, allowed = get_args(kind)[0], range_of(kind)

    def parse(text: str) -> Any:
        try:
            value = plain(text)
        except ValueError:
            raise ArgumentTypeError(f"{text!r} is not {'an integer' if plain is int else 'a number'}") from None
        if allowed and (refusal := allowed.refusal(value)):
            raise ArgumentTypeError(f"{text} is out of range; {refusal}")
        return value

    return parse


# The numbers that the Trainer's own arguments may be; a None among them leaves the choice to the Trainer.
_SIZE, _COUNT, _AMOUNT, _POSITIVE, _DECAY, _SEED = map(range_of, (Size, Count, Amount, Positive, Decay, Seed))
TRAINER_RANGES = {
    **dict.fromkeys(("per_device_train_batch_size", "per_device_eval_batch_size"), _SIZE),
    **dict.fromkeys(("gradient_accumulation_steps", "eval_accumulation_steps", "torch_empty_cache_steps"), _SIZE),
    **dict.fromkeys(("dataloader_prefetch_factor", "ddp_bucket_cap_mb", "ddp_timeout"), _SIZE),
    **dict.fromkeys(("dataloader_num_workers", "save_total_limit"), _COUNT),
    **dict.fromkeys(("warmup_steps", "weight_decay", "max_grad_norm", "eval_delay", "neftune_noise_alpha"), _AMOUNT),
    **dict.fromkeys(("num_train_epochs", "logging_steps", "eval_steps", "save_steps", "adam_epsilon"), _POSITIVE),
    **dict.fromkeys(("adam_beta1", "adam_beta2"), _DECAY),
    **dict.fromkeys(("seed", "data_seed"), _SEED),
    "max_steps": Range(-1, 2**31 - 1),
    "learning_rate": Range(0, 1000),  # of more, the first step overflows
}


def check_ranges(values: Mapping[str, object], kinds: Mapping[str, object], origin: Mapping[str, str]) -> None:
    """Raise ValueError for a value out of the range of its type, or of the Trainer's argument of that name.

    In the error `origin`, where it was given, stands before the name.
    """
    for name, kind in kinds.items():
        if allowed := TRAINER_RANGES.get(name) or range_of(kind):
            check_range(f"{origin.get(name, '')}{name}", values[name], allowed)


# What a configuration may count, by a part of its key: each is an object in memory before a weight is read.
MOST = {"layer": 10_000, "expert": 100_000, "num_labels": 1_000_000}


def excessive(config: object) -> str:
    """A number of layers, experts or classes in a configuration that no model has, in words; "" for none."""
    for key, value in config.items() if isinstance(config, dict) else ():
        if nested := excessive(value):
            return nested
        most = min((most for part, most in MOST.items() if part in str(key)), default=None)
        if most and isinstance(value, int) and value > most:
            return f"{key} is {value:,}, more than any model has ({most:,} at most)"
    return ""
