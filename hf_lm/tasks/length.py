"""How long and at what rate a language model is trained where nobody says: by its size and by the text there is."""

import math

from accelerate import PartialState
from torch import nn

from hf_lm.arguments import TrainingArguments

PER_PARAMETER = 20  # tokens (Hoffmann et al., "Training compute-optimal large language models", 2022)
BUILT_IN = 675  # steps on the built-in text: a first run takes minutes
MEASURED = 3  # times in a training
RATE = 5e-3  # of AdamW, beside Muon, where a text is read once


def choose_length(
    args: TrainingArguments,
    model: nn.Module,
    *,
    tokens: int,
    block_size: int,
    built_in: bool = False,
    planned: bool = False,
) -> int:
    """The tokens that a training on a text of `tokens` will read; 0 where epochs end it (`--max_steps -1`).

    Where `args.max_steps` is 0, it becomes BUILT_IN, or as many as read the text `enough_epochs` times, and then a
    line says so. An evaluation and a checkpoint come after each third of them, where nobody asked for others. What is
    `planned` for other devices is left in epochs. Where `args.learning_rate` is 0, it becomes `rate_by_passes`.
    """
    a_step = args.rows_in_step * block_size
    if args.max_steps:
        read = max(0, args.max_steps) * a_step
        _choose_rate(args, read / tokens if read else args.num_train_epochs, say=not planned)
        return read
    epochs, parameters = enough_epochs(args, model, tokens=tokens), count_parameters(model)
    steps = BUILT_IN if built_in else max(1, round(epochs * tokens / a_step))
    chosen: dict[str, float] = {"max_steps": steps}
    every = math.ceil(steps / MEASURED)
    if planned and not built_in:
        chosen, every = {"max_steps": -1, "num_train_epochs": epochs}, 1 / MEASURED
    chosen |= {key: every for key in ("eval_steps", "save_steps") if key not in args.changed}
    for key, number in chosen.items():
        setattr(args, key, number)
    args.run, args.chosen = args.run | chosen, set(chosen)
    if not (planned or built_in):
        reason = f", where more than {PER_PARAMETER} ask for a larger model" if epochs < args.num_train_epochs else ""
        PartialState().print(
            f"{steps:,} steps, {steps * a_step:,} tokens: {steps * a_step / tokens:.2g} times the text, "
            f"{steps * a_step / parameters:.2g} for each parameter{reason} (--max_steps gives another number)"
        )
    _choose_rate(args, steps * a_step / tokens if built_in else epochs, say=not planned)
    return steps * a_step


def _choose_rate(args: TrainingArguments, passes: float, *, say: bool) -> None:
    if args.learning_rate:
        return
    args.learning_rate = rate_by_passes(passes)
    args.run, args.chosen = args.run | {"learning_rate": args.learning_rate}, args.chosen | {"learning_rate"}
    if say and passes > 1:
        PartialState().print(
            f"learning rate {args.learning_rate:.1e}, as the text is read {passes:.2g} times "
            "(--learning_rate gives another)"
        )


def rate_by_passes(passes: float) -> float:
    """AdamW's rate, beside Muon, for a new model that reads a text so many times.

    What is read again is learned by heart: at four passes the best rate was a quarter of that of one (measured:
    docs/experiments.md).
    """
    return RATE / max(1.0, passes)


def enough_epochs(args: TrainingArguments, model: nn.Module, *, tokens: int) -> float:
    """`args.num_train_epochs`; of the recipe's default no more than read PER_PARAMETER tokens for each parameter.

    A larger model would learn more from as much work.
    """
    if "num_train_epochs" in args.changed:
        return args.num_train_epochs
    return min(args.num_train_epochs, PER_PARAMETER * count_parameters(model) / tokens)


def count_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
