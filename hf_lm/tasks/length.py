"""How long a language model is trained where nobody says, and the rates and decay that follow from it."""

import math

from accelerate import PartialState
from torch import nn
from transformers.trainer_utils import SchedulerType

from hf_lm.arguments import TrainingArguments

PER_PARAMETER = 20  # tokens (Hoffmann et al., "Training compute-optimal large language models", 2022)
BUILT_IN = 1410  # steps on the built-in text: a first run takes minutes
MEASURED = 3  # times in a training
RATE = 5e-3  # AdamW's, which beside Muon trains the embedding, norms and biases
STEP = 2048  # tokens of a step for which it was found


def choose_length(
    args: TrainingArguments,
    model: nn.Module,
    *,
    tokens: int,
    block_size: int,
    built_in: bool = False,
    planned: bool = False,
) -> int:
    """The tokens that a training on a text of `tokens`, 0 for one without end, will read; 0 where epochs end it.

    Where `args.max_steps` is 0, it becomes BUILT_IN, or as many as read the text `enough_epochs` times, and then a
    line says so. An evaluation and a checkpoint come after each third of them, where nobody asked for others. What is
    `planned` for other devices is left in epochs. Rates and decay that nobody gave follow.
    """
    a_step = args.rows_in_step * block_size
    if args.max_steps:
        read = max(0, args.max_steps) * a_step
        shorten_warmup(args, args.max_steps)
        choose_rates(args, (read / tokens if read else args.num_train_epochs) if tokens else 1, a_step)
        return read
    parameters = count_parameters(model)
    text = tokens or PER_PARAMETER * parameters
    epochs = enough_epochs(args, model, tokens=text)
    steps = BUILT_IN if built_in else max(1, round(epochs * text / a_step))
    chosen: dict[str, float] = {"max_steps": steps}
    every = math.ceil(steps / MEASURED)
    if planned and tokens and not built_in:
        chosen, every = {"max_steps": -1, "num_train_epochs": epochs}, 1 / MEASURED
    chosen |= {key: every for key in ("eval_steps", "save_steps") if key not in args.asked}
    for key, number in chosen.items():
        setattr(args, key, number)
    args.run, args.chosen = args.run | chosen, set(chosen)
    if not (planned or built_in):
        reason = f", where more than {PER_PARAMETER} ask for a larger model" if epochs < args.num_train_epochs else ""
        times = f"{steps * a_step / tokens:.2g} times the text, " if tokens else ""
        PartialState().print(
            f"{steps:,} steps, {steps * a_step:,} tokens: {times}"
            f"{steps * a_step / parameters:.2g} for each parameter{reason} (--max_steps gives another number)"
        )
    choose_rates(args, steps * a_step / text if built_in else epochs, a_step)
    shorten_warmup(args, args.max_steps)
    return steps * a_step


def shorten_warmup(args: TrainingArguments, steps: int) -> None:
    """A warm-up that nobody gave ends where warmup_stable_decay begins to lower the rate: else the rate jumps."""
    begin = max(1, round((1 - args.decay_share) * steps))
    jumps = args.lr_scheduler_type == SchedulerType.WARMUP_STABLE_DECAY and args.warmup_steps > begin
    if steps > 0 and jumps and "warmup_steps" not in args.asked:
        args.warmup_steps = begin
        args.run, args.chosen = args.run | {"warmup_steps": begin}, args.chosen | {"warmup_steps"}


def choose_rates(args: TrainingArguments, passes: float, a_step: int) -> None:
    """What nobody gave of rates and decay, for a text that is read so many times and steps of `a_step` tokens."""
    chosen = {}
    if not args.last_norm_rate_scale:
        chosen["last_norm_rate_scale"] = last_norm_scale(passes)
    if not args.learning_rate:  # of a new model
        chosen["learning_rate"] = pretraining_rate(a_step) if args.muon_learning_rate else RATE
        if args.muon_learning_rate and "muon_weight_decay" not in args.asked:
            chosen["muon_weight_decay"] = muon_decay(passes)
    for key, number in chosen.items():
        setattr(args, key, number)
    args.run, args.chosen = args.run | chosen, args.chosen | set(chosen)


def pretraining_rate(a_step: int) -> float:
    """AdamW's rate beside Muon for steps of so many tokens: with the square root of a larger batch, at most twice.

    Four times the tokens take twice the rate (measured for the smallest and the next size: docs/experiments.md); more
    were not tried.
    """
    return RATE * min(2.0, max(1.0, a_step / STEP) ** 0.5)


def muon_decay(passes: float) -> float:
    """The weight decay of Muon's matrices: 0 for a text that is read once, 0.3 for two or three times, 1 for four.

    It keeps a model from memorising a short text. At 1 it costs a model that reads its text 1.6 times, where
    0.3 gains (measured: docs/experiments.md).
    """
    a_little, much = max(0.0, passes - 1) / 2, max(0.0, passes / 2 - 1) ** 2
    return min(1.0, max(min(0.3, a_little), much))


def last_norm_scale(passes: float) -> float:
    """The rate of the last norm, as a share of AdamW's, in a training that reads its text so many times.

    The gain of that norm scales all logits. On text that is read again it grows, because the model is confident of
    what it has seen, and then it is overconfident of what it has not (measured: docs/experiments.md).
    """
    return 1 / max(1.0, passes) ** 2


def enough_epochs(args: TrainingArguments, model: nn.Module, *, tokens: int) -> float:
    """`args.num_train_epochs`; of the recipe's default no more than read PER_PARAMETER tokens for each parameter.

    A larger model would learn more from as much work.
    """
    if "num_train_epochs" in args.asked:
        return args.num_train_epochs
    return min(args.num_train_epochs, PER_PARAMETER * count_parameters(model) / tokens)


def count_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
