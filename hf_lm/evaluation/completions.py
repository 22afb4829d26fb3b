"""Log-probabilities of given completions, and completions that a model generates, in batches of like-sized prompts."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers import GenerationConfig

from hf_lm.data.batches import Feature, Processes, TokenId, map_by_length, pad_batch
from hf_lm.evaluation.likelihood import evaluating, token_log_probs, unwrapped
from hf_lm.models.adapters import base_of
from hf_lm.models.configuration import family

Batch = dict[str, torch.Tensor]


def log_probs(
    model: torch.nn.Module, features: Sequence[Feature], *, processes: Processes | None = None
) -> list[tuple[float, int]]:
    """(summed log-probability of the labels in nats, their number) of each feature; see `token_log_probs`."""
    return [(float(row.sum()), len(row)) for row in token_log_probs(model, features, processes=processes)]


@torch.no_grad()
def generate_ids(
    model: torch.nn.Module,  # a PreTrainedModel, also inside an adapter or DDP
    prompts: Sequence[Sequence[int]],
    *,
    pad_id: TokenId,
    options: Callable[[list[int], Batch], dict[str, Any]] = lambda rows, inputs: {},
    processes: Processes | None = None,
    seed: int | None = None,
    max_tokens: int = 2**14,  # of the prompts of a batch
    max_rows: int = 64,
    description: str = "generating",
) -> list[list[list[int]]]:
    """The sequences that a model generates for each prompt, as ids without the prompt, padded to those of its batch.

    Like-sized prompts share a batch, padded on the left for a causal model. `options(rows, inputs)` gives what
    transformers' `generate` takes beside the inputs of a batch. With a `seed`, for sampling, the global random state
    is unchanged and the sequences are those of one process.
    `processes` share the work; each returns the complete result.
    """
    writer = unwrapped(model)
    causal = family(writer.config) == "decoder"
    device = next(model.parameters()).device

    def work(rows: list[int]) -> list[list[list[int]]]:
        batch = pad_batch([{"input_ids": list(prompts[i])} for i in rows], pad_id=pad_id, left=causal)
        inputs = {key: value.to(device) for key, value in batch.items()}
        with torch.random.fork_rng(enabled=seed is not None):
            if seed is not None:
                torch.manual_seed(seed + rows[0])
            ids = writer.generate(**inputs, **options(rows, inputs))
        ids = (ids[:, inputs["input_ids"].shape[1] :] if causal else ids).tolist()
        each = len(ids) // len(rows)
        return [ids[i : i + each] for i in range(0, len(ids), each)]

    lengths = [len(prompt) for prompt in prompts]
    with evaluating(writer):
        return map_by_length(
            work,
            lengths,
            accelerator=processes,
            description=description,
            max_tokens=max_tokens,
            max_rows=max_rows,
            whole=seed is not None,  # the rows of a batch are drawn from one random state
        )


@contextmanager
def plain_generation(model: torch.nn.Module) -> Iterator[None]:
    """Of the checkpoint's generation settings only `suppress_tokens`: `generate` adds its penalties, filters and beams
    to any settings that it is given.
    """
    base = base_of(unwrapped(model))
    own = base.generation_config
    base.generation_config = GenerationConfig(suppress_tokens=own.suppress_tokens)
    try:
        yield
    finally:
        base.generation_config = own


def write(
    model: torch.nn.Module,
    prompts: Sequence[Sequence[int]],
    *,
    pad_id: TokenId,
    ends: set[int],
    max_new_tokens: int,
    temperature: float = 0.0,  # 0 is greedy
    seed: int = 0,
    processes: Processes | None = None,
) -> list[list[int]]:
    """The completion of each prompt up to and with the first of the ids `ends`; without one it has `max_new_tokens`.

    Sampling draws from the whole distribution, without the checkpoint's settings (see `plain_generation`); the global
    random state is unchanged.
    """
    config = GenerationConfig(
        use_cache=True,
        max_new_tokens=max_new_tokens,
        do_sample=temperature > 0,
        eos_token_id=sorted(ends),
        pad_token_id=pad_id,
        **({"temperature": temperature, "top_k": 0, "top_p": 1.0} if temperature > 0 else {}),
    )
    options = lambda rows, inputs: {"generation_config": config}  # noqa: E731
    with plain_generation(model):
        sequences = generate_ids(
            model,
            prompts,
            pad_id=pad_id,
            options=options,
            processes=processes,
            seed=seed if temperature > 0 else None,
            max_tokens=2**12,
        )
    return [_until(ids, ends) for (ids,) in sequences]


def _until(ids: list[int], ends: set[int]) -> list[int]:
    stop = next((i for i, token in enumerate(ids) if token in ends), len(ids))
    return ids[: stop + 1]
