"""`--max_hours`, `--max_cost`, `--stop_after_steps`: a run that ends with a checkpoint before its last step."""

import time
from collections.abc import Callable

from transformers import TrainingArguments
from transformers.trainer_callback import TrainerControl, TrainerState

from hf_lm.training.checkpoints import StopWithCheckpoint, over_processes

WRITING = 100e6  # bytes a second that a checkpoint is written with, until one was timed


class StopAtBudget(StopWithCheckpoint):
    """Stops training, with a checkpoint, while `seconds` since `started` still leave room for a step and the saving.

    The room is the longest step so far, an evaluation in it included, and what saving took; before anything was
    saved, what `checkpoint_bytes` take at WRITING. Step `steps` is the last in any case. All processes stop after the
    same step.
    """

    def __init__(
        self,
        seconds: float,
        *,
        started: float,
        checkpoint_bytes: int,
        steps: int = 0,  # 0: no limit
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.seconds, self.started, self.steps, self.clock = seconds, started, steps, clock
        self.saving = 1 + checkpoint_bytes / WRITING
        self._longest, self._last, self._asked = 0.0, clock(), 0.0

    def on_train_begin(self, *_: object, **__: object) -> None:
        self._last = self.clock()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object) -> None:
        now = self.clock()
        self._longest, self._last = max(self._longest, now - self._last), now
        over = now - self.started + self._longest + self.saving > self.seconds
        over = over_processes(args, over)  # clocks differ by a little, and all must stop after the same step
        if over or 0 < self.steps <= state.global_step:
            self.stop(state, control)
        self._asked = self.clock()

    def on_save(self, *_: object, **__: object) -> None:
        self.saving = max(1.0, self.clock() - self._asked)
        self._last = self.clock()
