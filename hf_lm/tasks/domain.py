"""Unlabelled text of a domain as a training set: what an encoder or a decoder learns before it sees a label."""

from collections.abc import Sequence

import torch
from transformers import DataCollatorForLanguageModeling, PreTrainedTokenizerBase

from hf_lm.data.batches import Feature, pad_batch
from hf_lm.losses import label_loss, next_token_loss
from hf_lm.tokenizer import encode_documents, frame_of


class DomainText:
    """A text a row for masked (encoders) or causal (decoders) language modelling; there is nothing to measure on.

    Of an encoder 15 % of the tokens are predicted, chosen anew each time a row is read (Devlin et al., arXiv
    1810.04805). `max_length`: tokens of a text, special ones included; what is beyond is not read.
    """

    recipe = "domain"

    def __init__(
        self, texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, *, masked: bool, max_length: int
    ) -> None:
        if masked and tokenizer.mask_token_id is None:
            raise ValueError("the tokenizer has no mask token, so an encoder cannot learn from text without labels.")
        self.tokenizer, self.masked = tokenizer, masked
        self.loss, self.shifts_labels = (label_loss, False) if masked else (next_token_loss, True)
        frame = frame_of(tokenizer, causal=not masked)
        after = frame.after if masked or tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
        room = max_length - len(frame.before) - len(after)
        encoded = encode_documents(tokenizer, list(texts))
        rows = [[*frame.before, *ids[:room], *(after if len(ids) <= room else frame.after)] for ids in encoded if ids]
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
