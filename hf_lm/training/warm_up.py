"""The start of a demo: a fresh model that has read a little, so that there is something to be tuned."""

from collections.abc import Sequence
from typing import Any

import torch
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_lm import dry_run
from hf_lm.data.batches import pad_batch
from hf_lm.tasks.losses import next_token_loss
from hf_lm.tokenization.chat_template import Message, encode_chats


def warm_up(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    chats: Sequence[Sequence[Message]],
    *,
    steps: int,
    batch_size: int = 32,
    learning_rate: float = 1e-3,
    seed: int = 0,
) -> None:
    """Train a model in place on the answers of chats drawn at random, with AdamW and a linear decay.

    Equal seeds give equal models, so that a resumed run starts from the same one. A dry run leaves the model as it is.
    """
    if dry_run.active():
        return
    features = [
        {"input_ids": ids, "labels": [i if said else -100 for i, said in zip(ids, learned, strict=True)]}
        for ids, learned in encode_chats(tokenizer, chats)
    ]
    dice = torch.Generator().manual_seed(seed)
    optimizer: Any = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / 20) * (1 - step / steps)
    )
    pad_id: Any = tokenizer.pad_token_id
    model.train()
    for _ in tqdm(range(steps), desc="warming up", delay=2, leave=False, disable=None):
        drawn = torch.randint(len(features), (batch_size,), generator=dice).tolist()
        batch = pad_batch([features[i] for i in drawn], pad_id=pad_id)
        outputs = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False)
        loss = next_token_loss(outputs, batch) / (batch["labels"][:, 1:] != -100).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    model.eval()
