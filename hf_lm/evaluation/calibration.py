"""Temperature scaling: confidences that mean what they say (Guo et al., arXiv 1706.04599)."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from transformers import PreTrainedModel

from hf_lm.data.batches import MAX_LOGITS, Feature, Processes, map_by_length

LOGITS = ("logits", "start_logits", "end_logits")  # as heads of transformers call what a softmax is taken of
TEMPERATURES = np.geomspace(0.05, 20.0, 31)  # where every held-out answer is right, none is small enough


class LabelledBatches(Protocol):
    """What a task's likelihood needs: how features become a batch, and the loss of one."""

    @property
    def loss(self) -> Callable[[Any, dict[str, torch.Tensor]], torch.Tensor] | None: ...

    @property
    def shifts_labels(self) -> bool: ...

    def collate(self, features: Sequence[Feature]) -> dict[str, torch.Tensor]: ...


def label_log_probs(
    model: PreTrainedModel,
    task: LabelledBatches,
    features: Sequence[Feature],
    *,
    temperatures: Sequence[float] = (1.0,),
    accelerator: Processes | None = None,
    description: str = "computing confidence",
) -> tuple[np.ndarray, np.ndarray]:
    """Summed log-probabilities of the labels of each feature, (features, temperatures), and how many there are.

    A label is a class, the end of a span or a token, as the task's loss has it. The model is in eval mode.
    """
    device, loss = next(model.parameters()).device, task.loss
    if loss is None:
        raise ValueError("a likelihood of labels needs a task with a loss over them.")

    @torch.no_grad()
    def work(rows: list[int]) -> list[tuple[list[float], int]]:
        batch = {key: value.to(device) for key, value in task.collate([features[i] for i in rows]).items()}
        outputs = model(**{key: value for key, value in batch.items() if key != "labels"})
        found = []
        for i in range(len(rows)):
            row = {key: value[i : i + 1] for key, value in batch.items()}
            logits = {key: outputs[key][i : i + 1].float() for key in LOGITS if key in outputs}
            nats = [
                float(loss(type(outputs)({key: each / temperature for key, each in logits.items()}), row))
                for temperature in temperatures
            ]
            labels = row["labels"][:, 1:] if task.shifts_labels else row["labels"]
            found.append(([-each for each in nats], int((labels != -100).sum())))
        return found

    lengths = [len(feature["input_ids"]) + np.size(feature["labels"]) for feature in features]
    widest = max((np.size(feature["labels"]) for feature in features), default=1)  # labels that may be tokens
    rows = min(64, max(1, MAX_LOGITS // (widest * model.config.get_text_config().vocab_size)))
    found = map_by_length(work, lengths, accelerator=accelerator, description=description, max_rows=rows)
    return np.array([each for each, _ in found]), np.array([count for _, count in found])


def fit_temperature(nats: Callable[[np.ndarray], np.ndarray]) -> float:
    """The one temperature that minimises the negative log-likelihood of held-out labels, between 0.05 and 20.

    `nats(temperatures)` gives it for each. No prediction changes, only its confidence. The likelihood has one minimum,
    which a parabola in the logarithm of the temperature finds between the three best of a grid.
    """
    values = nats(TEMPERATURES)
    best = int(np.argmin(values))
    if best in (0, len(TEMPERATURES) - 1):
        return float(TEMPERATURES[best])
    left, middle, right = values[best - 1 : best + 2]
    step = np.log(TEMPERATURES[1] / TEMPERATURES[0])
    shift = 0.5 * (left - right) / (left - 2 * middle + right) if left + right > 2 * middle else 0.0
    return float(TEMPERATURES[best] * np.exp(shift * step))
