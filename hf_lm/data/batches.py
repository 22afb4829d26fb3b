"""Rows of different lengths as batches: padded to the longest of the batch, the like-sized together."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from torch.utils.data import Sampler

Feature = dict[str, Any]
Processes = Accelerator | PartialState  # that share the work; with one, there is nothing to share
TokenId = Any  # an int; transformers types the ids of special tokens as int | str | list | None
MAX_LOGITS = 2**24  # that exist at once while a model is measured: 64 MiB in float32, whatever the vocabulary


def pad_batch(features: Sequence[Feature], *, pad_id: TokenId, left: bool = False) -> dict[str, torch.Tensor]:
    """Stack features into (batch, time) tensors with an attention mask, padded on the right unless `left`.

    `input_ids` is padded with `pad_id`, `labels` with -100, anything else with 0; labels that are one number, or two
    that stand for a span, are stacked as they are.
    """
    batch = {}
    for key in features[0]:
        values = [torch.as_tensor(feature[key]) for feature in features]
        fill = {"input_ids": pad_id, "decoder_input_ids": pad_id, "labels": -100}.get(key, 0)
        batch[key] = _stack(values, fill, left)
    lengths = [torch.ones(len(feature["input_ids"]), dtype=torch.long) for feature in features]
    return batch | {"attention_mask": _stack(lengths, 0, left)}


def _stack(values: list[torch.Tensor], fill: int, left: bool) -> torch.Tensor:
    if values[0].ndim == 0 or len({len(value) for value in values}) == 1:
        return torch.stack(values)
    width = max(len(value) for value in values)
    stacked = values[0].new_full((len(values), width), fill)
    for row, value in zip(stacked, values, strict=True):
        row[width - len(value) if left else 0 : width if left else len(value)] = value
    return stacked


def by_length(
    lengths: Sequence[int], *, max_tokens: int = 2**14, max_rows: int = 512, processes: int = 1
) -> Iterator[list[int]]:
    """Batches of indices, the longest rows first; each process's share of one has at most `max_tokens` with padding.

    A batch is for all `processes` together: `batch[process::processes]` is the share of one.
    """
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    position = 0
    while position < len(order):
        share = max(1, min(max_rows, max_tokens // max(1, lengths[order[position]])))
        yield order[position : position + processes * share]
        position += processes * share


class GroupedByLength(Sampler[int]):
    """Rows in an order that puts like-sized ones into a batch, and the batches into a random order, anew each epoch.

    transformers' LengthGroupedSampler hands out the batches of 50 from the longest down to the shortest: one step then
    follows another of the same kind of row, and a model that starts from nothing learns little (docs/upstream.md).
    `batch_size` counts the rows of an optimizer step, all processes and accumulated batches together, which are of
    like length. The order depends on `seed` and the epoch alone.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, *, seed: int) -> None:
        self.lengths, self.batch_size, self.seed, self.epoch = torch.as_tensor(lengths), batch_size, seed, 0

    def __len__(self) -> int:
        return len(self.lengths)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        order = torch.randperm(len(self.lengths), generator=generator)
        pools = order.split(50 * self.batch_size)  # sorted within one: batches differ between epochs
        batches = [
            batch for pool in pools for batch in pool[self.lengths[pool].argsort(stable=True)].split(self.batch_size)
        ]
        whole = [i for i, batch in enumerate(batches) if len(batch) == self.batch_size]
        rest = [i for i, batch in enumerate(batches) if len(batch) < self.batch_size]  # the last one stays last
        shuffled = [whole[i] for i in torch.randperm(len(whole), generator=generator).tolist()]
        return iter(torch.cat([batches[i] for i in shuffled + rest]).tolist())


def map_by_length(
    work: Callable[[list[int]], Sequence[Any]],
    lengths: Sequence[int],
    *,
    accelerator: Processes | None = None,
    description: str,
    max_tokens: int = 2**14,
    max_rows: int = 512,
    whole: bool = False,
) -> list[Any]:
    """`work(indices)` over batches of like-sized rows; results in the order of the rows, on every process.

    The processes of an accelerator share the rows of each batch, and all call `work` equally often: the forward of a
    sharded model needs every process. One that has no row left repeats another's and drops the result. `whole`: they
    share complete batches, the same for any number of processes, where a result depends on its batch.
    """
    from tqdm import tqdm

    index, processes = (0, 1) if accelerator is None else (accelerator.process_index, accelerator.num_processes)
    together = 1 if whole else processes
    batches = list(by_length(lengths, max_tokens=max_tokens, max_rows=max_rows, processes=together))
    shares = [[batch[process::processes] for process in range(processes)] for batch in batches]  # by turn and process
    if whole:
        shares = [
            (batches[i : i + processes] + [[]] * processes)[:processes] for i in range(0, len(batches), processes)
        ]
    shown = accelerator is None or accelerator.is_main_process
    bar = tqdm(desc=description, total=len(lengths), delay=2, leave=False, disable=None if shown else True)
    pieces = []
    with bar:
        for turn in shares:
            rows = turn[index]
            results = work(rows or turn[0][:1])
            pieces.append((rows, results if rows else ()))
            bar.update(sum(map(len, turn)))
    if processes > 1:
        from accelerate.utils import gather_object

        pieces = gather_object(pieces)
    by_row = {i: result for rows, results in pieces for i, result in zip(rows, results, strict=True)}
    return [by_row[i] for i in range(len(lengths))]
