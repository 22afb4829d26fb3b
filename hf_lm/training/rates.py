"""The learning rate for fine-tuning where none is given: it follows the width of the model."""

from torch import nn

from hf_lm.arguments import TrainingArguments
from hf_lm.models.adapters import base_of, is_adapted

WIDTH = 768  # of BERT and GPT-2 of 12 layers
USUAL, OF_TWO_SIDES = 5e-5, 1e-4  # the usual rates at that width; the second of encoder-decoders
HIGHEST = 1e-3
BY_ADAPTER = 10  # times the rate of full training


def choose_rate(args: TrainingArguments, model: nn.Module) -> str:
    """Where `args.learning_rate` is 0, set that of `fine_tuning_rate`. Returns a sentence about it, or ""."""
    if args.learning_rate:
        return ""
    args.learning_rate = fine_tuning_rate(model)
    args.run = args.run | {"learning_rate": args.learning_rate}
    return f"learning rate {args.learning_rate:.1e}, by the width of the model (--learning_rate gives another)"


def fine_tuning_rate(model: nn.Module) -> float:
    """AdamW's rate for fine-tuning a model, or an adapter on it.

    Narrower models take higher rates, by the square of the width (measured: docs/experiments.md), and an adapter ten
    times that of its base (Schulman and Thinking Machines Lab, "LoRA Without Regret", 2025).
    """
    config = base_of(model).config
    usual = OF_TWO_SIDES if config.is_encoder_decoder else USUAL
    rate = min(HIGHEST, usual * max(1, WIDTH / config.get_text_config().hidden_size) ** 2)
    return rate * BY_ADAPTER if is_adapted(model) else rate
