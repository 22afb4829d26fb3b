"""What a causal model thinks of given completions of prompts, and what it writes itself."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from transformers import GenerationConfig, PreTrainedModel

from hf_lm.data.batches import Feature, map_by_length, pad_batch


@torch.no_grad()
def log_probs(
    model: PreTrainedModel, features: Sequence[Feature], *, pad_id: int, processes: Any = None
) -> list[tuple[float, int]]:
    """(log-probability in nats of the labels, how many they are) of each feature {"input_ids", "labels"}.

    Labels of -100 are conditions, not events; padding changes nothing. `processes` (an Accelerator or PartialState)
    shares the work out; every process returns the whole.
    """
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()

    def work(rows: list[int]) -> list[tuple[float, int]]:
        batch = pad_batch([features[i] for i in rows], pad_id=pad_id)
        labels = batch.pop("labels")[:, 1:].to(device)
        logits = model(**{key: value.to(device) for key, value in batch.items()}, use_cache=False).logits[:, :-1]
        nll = F.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), reduction="none").view(labels.shape)
        sums, counts = nll.cpu().double().sum(1), (labels != -100).sum(1)
        return list(zip((-sums).tolist(), counts.tolist(), strict=True))

    lengths = [len(feature["input_ids"]) for feature in features]
    found = map_by_length(work, lengths, accelerator=processes, description="scoring", max_tokens=2**13, max_rows=64)
    model.train(was_training)
    return found


@torch.no_grad()
def write(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    *,
    pad_id: int,
    ends: set[int],
    max_new_tokens: int,
    temperature: float = 0.0,  # 0 is greedy
    seed: int = 0,
    processes: Any = None,
) -> list[list[int]]:
    """What a model writes after each prompt, up to its end token, which is kept: one that never came is missing.

    Sampling draws from the whole distribution, with a seed of its own; the state of other dice is left alone.
    """
    device = next(model.parameters()).device
    writer = getattr(model, "module", model)  # of a model in DDP
    known = writer.generation_config
    config = GenerationConfig(
        use_cache=True,
        max_new_tokens=max_new_tokens,
        do_sample=temperature > 0,
        eos_token_id=sorted(ends),
        pad_token_id=pad_id,
        suppress_tokens=known.suppress_tokens,
        **({"temperature": temperature, "top_k": 0, "top_p": 1.0} if temperature > 0 else {}),
    )
    was_training = writer.training
    writer.eval()

    def work(rows: list[int]) -> list[list[int]]:
        batch = pad_batch([{"input_ids": list(prompts[i])} for i in rows], pad_id=pad_id, left=True)
        batch = {key: value.to(device) for key, value in batch.items()}
        with torch.random.fork_rng():
            torch.manual_seed(seed + rows[0])
            ids = writer.generate(**batch, generation_config=config)
        return [_until(row, ends) for row in ids[:, batch["input_ids"].shape[1] :].tolist()]

    lengths = [len(prompt) for prompt in prompts]
    found = map_by_length(work, lengths, accelerator=processes, description="writing", max_tokens=2**12, max_rows=64)
    writer.train(was_training)
    return found


def _until(ids: list[int], ends: set[int]) -> list[int]:
    stop = next((i for i, token in enumerate(ids) if token in ends), len(ids))
    return ids[: stop + 1]
