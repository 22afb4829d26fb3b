"""Tasks of models that answer in a conversation, and those that measure one beside the model as it came."""

import copy
from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_lm.data.batches import Processes
from hf_lm.data.conversations import as_text
from hf_lm.data.tables import Row
from hf_lm.evaluation.completions import write
from hf_lm.models.adapters import is_adapted, merged
from hf_lm.models.configuration import context_length
from hf_lm.tasks.rows import Scores
from hf_lm.tasks.supervised import Supervised
from hf_lm.tokenization.chat_template import encode_chats

SAMPLES = 4  # questions that the report shows answers to


class Answers(Supervised):
    """Rows have {"messages"}; the model answers until one of `ends`, in `max_new_tokens` at most."""

    pipeline_tag, auto_class = "text-generation", "AutoModelForCausalLM"
    ends: set[int]
    max_new_tokens: int

    def set_generation(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        """Let the published model stop where an answer ends, and after `max_new_tokens`."""
        model.generation_config.update(
            max_new_tokens=self.max_new_tokens,
            max_length=None,
            eos_token_id=sorted(self.ends) if len(self.ends) > 1 else min(self.ends),
            pad_token_id=tokenizer.pad_token_id,
        )

    def text_of(self, row: Row) -> str:
        return as_text(row["messages"])

    def question(self, row: Row) -> list[dict[str, str]]:
        """A conversation up to where the model answers."""
        return row["messages"]

    def example(self) -> dict[str, Any]:
        """The messages of the held-out question that is nearest to a line in length; never its answer."""
        asked = map(self.question, self.table.rows[self.splits[-1]][:200])
        return {"messages": min(asked, key=lambda messages: abs(len(as_text(messages)) - 80))}

    def samples(self, model: PreTrainedModel) -> list[dict[str, Any]]:
        """What a model answers, greedily, to SAMPLES held-out questions, spread over them; as text and as messages."""
        rows = self.table.rows[self.splits[-1]]
        asked = [self.question(row) for row in rows[:: max(1, len(rows) // SAMPLES)][:SAMPLES]]
        room = max(1, (context_length(model.config) or 2**20) - self.max_new_tokens)
        prompts = [ids[-room:] for ids, _ in encode_chats(self.tokenizer, asked, prompt=True)]
        texts = self.tokenizer.batch_decode(self.write(model, prompts), skip_special_tokens=True)
        return [
            {"prompt": as_text(one) + "\n", "continuation": text, "messages": one}
            for one, text in zip(asked, texts, strict=True)
        ]

    def write(
        self,
        model: PreTrainedModel,
        prompts: list[list[int]],
        *,
        temperature: float = 0.0,
        processes: Processes | None = None,
    ) -> list[list[int]]:
        return write(
            model,
            prompts,
            pad_id=self.tokenizer.pad_token_id,
            ends=self.ends,
            max_new_tokens=self.max_new_tokens,
            temperature=temperature,
            processes=processes,
        )

    def report(self, measured: Mapping[str, Scores]) -> dict[str, Any]:
        sampled = "Answers to held-out questions, greedy, not chosen. The question stands in brackets."
        return super().report(measured) | {"sampled": sampled}


class BesideReference(Answers):
    """Keeps a frozen copy of the model as it came, complete where that is an adapter on a base."""

    _reference: PreTrainedModel | None = None

    @property
    def reference(self) -> PreTrainedModel:
        """The model as it came; `snapshot_reference` keeps it."""
        assert self._reference is not None, "snapshot_reference comes first"
        return self._reference

    def snapshot_reference(self, model: PreTrainedModel) -> None:
        """Keep a frozen copy of the model as it comes: the reference. Once."""
        if self._reference is None:
            copied = copy.deepcopy(model)
            copied = merged(copied) if is_adapted(copied) else copied
            self._reference = copied.eval().requires_grad_(False)
