"""The chat model that a recipe tunes: a checkpoint, or for a demo a tiny one that has learned a little."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from accelerate import PartialState
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_lm import dry_run
from hf_lm.data.batches import TokenId, pad_batch
from hf_lm.data.conversations import as_text
from hf_lm.data.tables import Row
from hf_lm.models.gpt2 import new_gpt2
from hf_lm.models.loading import load_causal_lm
from hf_lm.tasks.losses import next_token_loss
from hf_lm.tokenization.chat_template import Message, encode_chats, set_chat_template
from hf_lm.tokenization.tokenizer import load_tokenizer, set_pad, train_bpe

Chat = Sequence[Message]


def chat_model(
    name_or_path: str,
    chats: Iterable[Chat],
    *,
    template: str = "",
    vocab_size: int,
    block_size: int,
    n_embd: int = 0,  # 0 is that of new_gpt2
    steps: int = 0,  # of the warm-up
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, list[str]]:
    """A causal model, its tokenizer with a chat template, and notes on both for the report.

    Without a name it is a tiny GPT-2 with a tokenizer trained on `chats`, warmed up on their answers; the sizes and
    steps are its. `template`: a Jinja file; "" keeps the tokenizer's own, or gives it a small one. Raises OSError or
    ValueError where there is no such checkpoint or template.
    """
    if name_or_path:
        tokenizer = load_tokenizer(name_or_path)
        set_pad(tokenizer)
        model = load_causal_lm(name_or_path, tokenizer=tokenizer)
        return model, tokenizer, [set_chat_template(tokenizer, template)]
    chats = list(chats)
    tokenizer = train_bpe(map(as_text, chats), vocab_size=vocab_size)
    model = new_gpt2(tokenizer, n_embd=n_embd, block_size=block_size)
    notes = [set_chat_template(tokenizer, template)]
    if steps:
        warm_up(model, tokenizer, chats, steps=steps, seed=torch.initial_seed())
        notes.append(f"the model is a tiny one, first trained on the answers of train for {steps} steps")
    else:
        notes.append("the model was not pretrained: it knows only these conversations, and is weak")
    return model, tokenizer, notes


def with_answers(rows: Iterable[Row], *columns: str) -> Iterable[Chat]:
    """The conversations of rows, each ended by the answer in a column: one conversation for each of the columns."""
    for row in rows:
        for column in columns:
            yield [*row["messages"], {"role": "assistant", "content": row[column]}]


def warm_up(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, chats: Sequence[Chat], *, steps: int, seed: int = 0
) -> None:
    """Train a model in place on the answers of chats drawn at random, with AdamW and a linear decay.

    Equal seeds give equal models, so that a resumed run starts from the same one. A dry run leaves the model as it is.
    """
    if dry_run.active():
        return
    features = [
        {"input_ids": ids, "labels": [i if learns else -100 for i, learns in zip(ids, learned, strict=True)]}
        for ids, learned in encode_chats(tokenizer, chats)
    ]
    generator = torch.Generator().manual_seed(seed)
    optimizer: Any = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / 20) * (1 - step / steps)
    )
    pad_id: TokenId = tokenizer.pad_token_id
    model.train()
    silent = not PartialState().is_local_main_process
    for _ in tqdm(range(steps), desc="warming up the tiny model", delay=2, mininterval=2, disable=silent):
        drawn = torch.randint(len(features), (32,), generator=generator).tolist()
        batch = pad_batch([features[i] for i in drawn], pad_id=pad_id)
        outputs = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False)
        loss = next_token_loss(outputs, batch) / (batch["labels"][:, 1:] != -100).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    model.eval()
