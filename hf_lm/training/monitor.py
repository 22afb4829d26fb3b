"""What a run shows while it trains: loss, tokens per second, utilisation and the time that is left."""

import functools
import sys
import time
from collections.abc import Callable
from typing import ClassVar

import torch
from transformers import PreTrainedModel, TrainingArguments
from transformers.trainer_callback import ProgressCallback, TrainerCallback, TrainerControl, TrainerState

from hf_lm.reporting.report import SHOWN

PEAK_SECONDS = 0.3  # given to measuring the speed of the device


def flops_per_token(model: PreTrainedModel, context: int, sampled_softmax: int = 0) -> int:
    """Floating-point operations of a training step per token: 6 per matrix weight, and attention over `context`.

    Embedding tables are looked up, not multiplied, so only the output head counts of them; attention costs
    12 n_layer n_embd context (Chowdhery et al., PaLM, arXiv 2204.02311, appendix B). A recurrent model has none. Of a
    head with `sampled_softmax` as many rows are multiplied.
    """
    head = model.get_output_embeddings()
    tables = {id(module.weight) for module in model.modules() if isinstance(module, torch.nn.Embedding)}
    packed = lambda p: 2 if type(p).__name__ == "Params4bit" else 1  # noqa: E731  # two weights a byte
    weights = sum(packed(p) * p.numel() for p in model.parameters() if p.ndim == 2 and id(p) not in tables)
    if head is not None and id(head.weight) in tables:  # tied
        weights += head.weight.numel()
    if sampled_softmax and head is not None:
        weights -= max(0, len(head.weight) - sampled_softmax) * head.weight.shape[1]
    config = model.config
    layers, width = getattr(config, "num_hidden_layers", 0), getattr(config, "hidden_size", 0)
    attends = any("attention" in type(module).__name__.lower() for module in model.modules())
    return 6 * weights + (12 * layers * width * context if attends else 0)


@functools.cache
def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Operations per second of a large matrix product on this device, measured: what utilisation is a share of."""
    size = 1024 if device.type == "cpu" else 8192
    drawn = torch.Generator(device).manual_seed(0)  # of its own: dropout must not depend on what else was trained
    a = torch.randn(size, size, device=device, dtype=dtype, generator=drawn)

    products = 1 if device.type == "cpu" else 3

    def product_seconds() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        start = time.perf_counter()
        for _ in range(products):
            torch.mm(a, a)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return (time.perf_counter() - start) / products

    best, end = product_seconds(), time.perf_counter() + PEAK_SECONDS
    while time.perf_counter() < end and best < PEAK_SECONDS:  # a CPU may take seconds for one in bfloat16
        best = min(best, product_seconds())
    return 2 * size**3 / best


class Speedometer(TrainerCallback):
    """Adds tokens_per_second and utilisation to the logs: training alone, without evaluation and saving.

    `tokens_seen()` counts the tokens of all processes; `flops` is what one of them costs.
    """

    def __init__(self, tokens_seen: Callable[[], int], flops: int, dtype: torch.dtype) -> None:
        self.tokens_seen, self.flops, self.dtype = tokens_seen, flops, dtype
        self.seconds, self.tokens = 0.0, 0  # of the whole run, for the report
        self._start: float | None = None  # None: the clock stands
        self._counted = 0  # tokens when it started
        self._since = (0.0, 0)  # seconds and tokens at the last measure()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        self.peak = peak_flops(args.device, self.dtype) * args.world_size

    def on_step_begin(self, *_: object, **__: object) -> None:
        if self._start is None:
            self._start, self._counted = time.perf_counter(), self.tokens_seen()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object) -> None:
        if control.should_evaluate or control.should_save:
            self._stop()

    def on_epoch_end(self, *_: object, **__: object) -> None:
        self._stop()  # an evaluation or a checkpoint may follow

    def _stop(self) -> None:
        if self._start is not None:
            self.seconds += time.perf_counter() - self._start
            self.tokens += self.tokens_seen() - self._counted
            self._start = None

    def measure(self) -> dict[str, float]:
        """The speed since the last call; the clock starts again with the next step."""
        self._stop()
        seconds, tokens = self.seconds - self._since[0], self.tokens - self._since[1]
        self._since = (self.seconds, self.tokens)
        return self._rates(tokens, seconds)

    @property
    def speed(self) -> dict[str, float]:
        """Of the whole run, as report.json holds it."""
        return self._rates(self.tokens, self.seconds)

    def _rates(self, tokens: int, seconds: float) -> dict[str, float]:
        if not seconds:
            return {}
        return {"tokens_per_second": tokens / seconds, "utilisation": tokens * self.flops / seconds / self.peak}


class Progress(ProgressCallback):
    """The Trainer's bar, with the last measurements on it in place of a dictionary per log; tqdm adds the ETA.

    In a file, such as a scheduler's log, the bar is written every `SECONDS_IN_A_FILE`, not with each step.
    """

    SECONDS_IN_A_FILE: ClassVar = 30.0
    TRAINING: ClassVar = {
        "loss": "loss {:z.3f}",
        "tokens_per_second": "{:,.0f} tok/s",
        "utilisation": "{:.0%} of peak",
    }

    def __init__(self) -> None:
        super().__init__()
        self.last: dict[str, str] = {}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        super().on_train_begin(args, state, control, **kwargs)
        if self.training_bar is not None and not sys.stderr.isatty():
            self.training_bar.mininterval = self.training_bar.maxinterval = self.SECONDS_IN_A_FILE

    def on_prediction_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        if self.training_bar is None or sys.stderr.isatty():  # in a file, evaluations within training have a line each
            super().on_prediction_step(args, state, control, **kwargs)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: object,
    ) -> None:
        if not state.is_world_process_zero or self.training_bar is None or not logs:
            return
        self.last |= {key: said.format(logs[key]) for key, said in self.TRAINING.items() if key in logs}
        keys = [key.removeprefix("eval_") for key in logs if key.startswith("eval_")]  # the main metric first
        shown = [(SHOWN[key], logs[f"eval_{key}"]) for key in keys if key in SHOWN]
        measured = [f"{name.strip()} {number.format(value)}" for (name, number), value in shown]
        if measured:
            self.last["validation"] = f"validation {measured[0]}"
            loss = [f"loss {logs['eval_loss']:.3f}"] if "eval_loss" in logs else []
            self.training_bar.write(f"step {state.global_step}: validation " + ", ".join(loss + measured))
        self.training_bar.set_postfix_str(", ".join(self.last.values()), refresh=False)  # the next step shows it
