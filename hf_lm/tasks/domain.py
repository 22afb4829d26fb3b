"""Unlabelled text of a domain as a training set: what a model learns before it sees a label."""

from collections.abc import Iterator, Sequence

import torch
from transformers import DataCollatorForLanguageModeling, PreTrainedTokenizerBase

from hf_lm.data.batches import Feature, pad_batch
from hf_lm.tasks.losses import label_loss, next_token_loss
from hf_lm.tasks.text_to_text import TextToText
from hf_lm.tokenization.tokenizer import encode_documents, special_tokens_around


class DomainText:
    """A text a row for masked (encoders) or causal (decoders) language modelling; there is nothing to measure on.

    Of an encoder 15 % of the tokens are predicted, chosen anew each time a row is read (Devlin et al., arXiv
    1810.04805). `max_length`: tokens of a row, special ones included; a longer text becomes several.
    """

    recipe = "domain"

    def __init__(
        self, texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, *, masked: bool, max_length: int
    ) -> None:
        if masked and tokenizer.mask_token_id is None:
            raise ValueError("the tokenizer has no mask token, so an encoder cannot learn from text without labels.")
        self.tokenizer, self.masked = tokenizer, masked
        self.loss, self.shifts_labels = (label_loss, False) if masked else (next_token_loss, True)
        self.auto_class = "AutoModelForMaskedLM" if masked else "AutoModelForCausalLM"
        frame = special_tokens_around(tokenizer, causal=not masked)
        after = frame.after if masked or tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
        room = max_length - len(frame.before) - len(after)
        rows = [
            [*frame.before, *part, *(after if last else frame.after)] for part, last in _parts(tokenizer, texts, room)
        ]
        self.train_dataset: list[Feature] = [{"input_ids": ids} for ids in rows if len(ids) > 1]
        self.context = max(1, sum(map(len, rows)) // max(1, len(rows)))
        if masked:
            self._mask = DataCollatorForLanguageModeling(tokenizer, mlm=True, mlm_probability=0.15)

    def collate(self, features: Sequence[Feature]) -> dict[str, torch.Tensor]:
        if not self.masked:
            labelled = [feature | {"labels": feature["input_ids"]} for feature in features]
            return pad_batch(labelled, pad_id=self.tokenizer.pad_token_id)
        batch = pad_batch(features, pad_id=self.tokenizer.pad_token_id)
        special = torch.isin(batch["input_ids"], torch.tensor(self.tokenizer.all_special_ids))
        special |= batch["attention_mask"] == 0
        while True:
            inputs, labels = self._mask.torch_mask_tokens(batch["input_ids"].clone(), special_tokens_mask=special)
            if (labels != -100).any() or special.all():  # a small batch may have none: there would be no loss
                return batch | {"input_ids": inputs, "labels": labels}


class DenoisedText:
    """A text a row for an encoder-decoder, which reads it with holes and writes what was there.

    As BART was taught, runs of three tokens on average, 30 % of all, become one mask each and the whole text is
    written (Lewis et al., arXiv 1910.13461). A tokenizer with T5's sentinels has it as T5 was: 15 %, and only what
    the holes held is written, each after its sentinel (Raffel et al., arXiv 1910.10683). The holes are others each
    time a row is read. `task` is the text-to-text task that follows.
    """

    recipe = "domain"

    def __init__(self, texts: Sequence[str], task: TextToText, *, max_length: int) -> None:
        self.task, self.tokenizer, self.loss, self.shifts_labels = task, task.tokenizer, task.loss, task.shifts_labels
        self.auto_class = task.auto_class
        vocabulary = task.tokenizer.get_vocab()
        self.sentinels = [vocabulary[name] for i in range(100) if (name := f"<extra_id_{i}>") in vocabulary]
        if not self.sentinels and task.tokenizer.mask_token_id is None:
            raise ValueError(
                "the tokenizer has neither a mask token nor T5's sentinels, so an encoder-decoder cannot learn from "
                "text without labels; give --method pseudo_labels."
            )
        frame = task.frame
        room = (
            min(max_length, task.max_source_length, task.max_target_length) - len(frame.before) - len(frame.after) - 2
        )
        self.train_dataset: list[Feature] = [
            {"input_ids": part} for part, _ in _parts(task.tokenizer, texts, room) if len(part) > 1
        ]
        lengths = [len(feature["input_ids"]) for feature in self.train_dataset]
        self.context = max(1, sum(lengths) // max(1, len(lengths)))

    def collate(self, features: Sequence[Feature]) -> dict[str, torch.Tensor]:
        frame, made = self.task.frame, []
        for feature in features:
            read, written = self.holes(feature["input_ids"])
            made.append(self.task.feature([*frame.before, *read, *frame.after], written))
        return self.task.collate(made)

    def holes(self, ids: list[int]) -> tuple[list[int], list[int]]:
        """What is read of a text and what is written."""
        missing = max(1, round((0.15 if self.sentinels else 0.3) * len(ids)))
        count = min(max(1, round(missing / 3)), missing, len(ids) - missing)
        count = min(count, len(self.sentinels)) if self.sentinels else count
        read, written, position = [], [], 0
        for i, (kept, hole) in enumerate(zip(_split(len(ids) - missing, count), _split(missing, count), strict=True)):
            mark = self.sentinels[i] if self.sentinels else self.tokenizer.mask_token_id
            read += [*ids[position : position + kept], mark]
            written += [mark, *ids[position + kept : position + kept + hole]]
            position += kept + hole
        return read, written if self.sentinels else ids


def _split(total: int, parts: int) -> list[int]:
    """`total` in that many parts of at least 1, at random."""
    cuts = sorted((torch.randperm(total - 1)[: parts - 1] + 1).tolist())
    return [end - start for start, end in zip([0, *cuts], [*cuts, total], strict=True)]


def _parts(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], room: int) -> Iterator[tuple[list[int], bool]]:
    """Token ids of texts, in parts of at most `room`, and whether each is the last of its text."""
    for ids in encode_documents(tokenizer, list(texts)):
        for start in range(0, len(ids), room):
            yield ids[start : start + room], start + room >= len(ids)
