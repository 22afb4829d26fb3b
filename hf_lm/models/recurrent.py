"""The recurrent language model: embedding, RNN, GRU or LSTM, and a linear output layer, as a transformers model.

Trains, generates, saves and loads like any causal model. This file is copied into every saved model, so it imports
torch and transformers and nothing else.
"""

from collections.abc import Callable
from dataclasses import fields
from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence, unpack_sequence
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GenerationConfig,
    GenerationMixin,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils.generic import can_return_tuple

CELLS = ("rnn", "gru", "lstm")
State = tuple[torch.Tensor, ...]  # (h,) or, for an LSTM, (h, c); each (layer, batch, hidden)
# The field of an output that holds the state, and the argument of `forward`: transformers 5.24 renamed both.
STATE = "cache" if "cache" in {field.name for field in fields(CausalLMOutputWithPast)} else "past_key_values"


class RecurrentConfig(PreTrainedConfig):
    """Shape of a RecurrentLMHeadModel. Raises ValueError for an unknown cell or weights that cannot be tied."""

    model_type = "hf_lm_recurrent"
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values", "cache"]
    attribute_map: ClassVar[dict[str, str]] = {"num_hidden_layers": "n_layer"}

    def __init__(
        self,
        vocab_size: int = 10000,
        n_embd: int = 200,  # width of an embedding
        hidden_size: int = 200,  # width of the recurrent state
        n_layer: int = 2,
        cell: str = "lstm",
        dropout: float = 0.2,  # of embeddings, between layers, and before the output layer; locked
        embd_dropout: float = 0.0,  # of entries of the vocabulary: their embeddings, in the whole batch
        weight_dropout: float = 0.0,  # of the weights from one state to the next
        tie_word_embeddings: bool = True,  # the output layer shares the embedding's weights
        use_cache: bool = True,
        bos_token_id: int | None = None,
        eos_token_id: int | None = None,
        pad_token_id: int | None = None,
        **kwargs: Any,
    ) -> None:
        if cell not in CELLS:
            raise ValueError(f"cell={cell!r} is not a recurrent cell; choose one of {', '.join(CELLS)}.")
        if tie_word_embeddings and n_embd != hidden_size:
            raise ValueError(
                f"n_embd={n_embd} and hidden_size={hidden_size} differ, so embedding and output layer cannot share "
                "weights; make the two equal or do not tie the weights."
            )
        if min(vocab_size, n_embd, hidden_size, n_layer) < 1:
            raise ValueError(
                "sizes must be at least 1, got "
                f"vocab_size={vocab_size}, n_embd={n_embd}, hidden_size={hidden_size}, n_layer={n_layer}."
            )
        self.vocab_size = vocab_size
        self.n_embd = n_embd
        self.hidden_size = hidden_size
        self.n_layer = n_layer
        self.cell = cell
        self.dropout = dropout
        self.embd_dropout = embd_dropout
        self.weight_dropout = weight_dropout
        self.use_cache = use_cache
        kwargs |= {"bos_token_id": bos_token_id, "eos_token_id": eos_token_id, "pad_token_id": pad_token_id}
        kwargs["tie_word_embeddings"] = tie_word_embeddings
        super().__init__(**kwargs)


class Locked(nn.RNNBase):
    """A stack of recurrent layers with the dropout of the AWD-LSTM (Merity et al. 2017, arXiv 1708.02182).

    In training each sequence has one mask for all its steps (Gal and Ghahramani 2016, arXiv 1512.05287) on what the
    first layer reads and on what each layer returns, and the weights from one state to the next have one mask a batch.
    """

    states, weights = 0.0, 0.0  # rates of dropout

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, inputs: torch.Tensor | PackedSequence, state: State | torch.Tensor | None = None
    ) -> tuple[torch.Tensor | PackedSequence, State | torch.Tensor]:
        """As that of torch's RNN, GRU and LSTM with `batch_first`; inputs (batch, time, width) or packed sequences."""
        if not (self.training and (self.states or self.weights)):
            return super().forward(inputs, state)  # pyright: ignore[reportCallIssue]
        parts = None if state is None else (state,) if isinstance(state, torch.Tensor) else state
        if isinstance(inputs, PackedSequence):
            into, back = inputs.sorted_indices, inputs.unsorted_indices
            data, final = self._layers(inputs.data, inputs.batch_sizes, _reordered(parts, into))
            output, final = PackedSequence(data, inputs.batch_sizes, into, back), _reordered(final, back)
        else:
            output, final = self._layers(inputs, None, parts)
        assert final is not None, "there is a layer"
        return output, final if isinstance(self, nn.LSTM) else final[0]

    def _layers(
        self, data: torch.Tensor, sizes: torch.Tensor | None, state: State | None
    ) -> tuple[torch.Tensor, State | None]:
        """All layers over `data` with their dropout; `sizes`: of packed sequences, how many have each step."""
        count, row = len(data), None
        if sizes is not None:
            count, row = int(sizes[0]), torch.cat([torch.arange(int(size)) for size in sizes]).to(data.device)
        is_lstm = isinstance(self, nn.LSTM)
        parts = state or (data.new_zeros(self.num_layers, count, self.hidden_size),) * (2 if is_lstm else 1)
        run: Callable = {"LSTM": torch.lstm, "GRU": torch.gru, "RNN_TANH": torch.rnn_tanh}[self.mode]
        data, last = self._drop(data, count, row), []
        for i, (from_input, from_state, *biases) in enumerate(self.all_weights):
            weights = [from_input, nn.functional.dropout(from_state, self.weights), *biases]
            before = tuple(part[i : i + 1].to(data.dtype) for part in parts)
            common = (before if is_lstm else before[0], weights, True, 1, 0.0, True, False)  # one layer, one direction
            data, *after = run(data, *common, True) if sizes is None else run(data, sizes, *common)
            data = self._drop(data, count, row)
            last.append(after)
        return data, tuple(torch.cat(part) for part in zip(*last, strict=True))

    def _drop(self, data: torch.Tensor, count: int, row: torch.Tensor | None) -> torch.Tensor:
        """Zero the same entries in all steps of each of `count` sequences; `row`: that of each step of packed ones."""
        mask = nn.functional.dropout(data.new_ones(count, data.shape[-1]), self.states)
        return data * (mask[:, None] if row is None else mask[row])


def _reordered(state: State | None, order: torch.Tensor | None) -> State | None:
    return state if state is None or order is None else tuple(part.index_select(1, order) for part in state)


class LockedRNN(Locked, nn.RNN):
    pass


class LockedGRU(Locked, nn.GRU):
    pass


class LockedLSTM(Locked, nn.LSTM):
    pass


class RecurrentLMHeadModel(PreTrainedModel, GenerationMixin):
    """A causal language model that keeps one vector per layer of the past.

    Every row starts from a zero state unless `cache` holds one.
    """

    config_class = RecurrentConfig
    _input_embed_layer = "embedding"
    _tied_weights_keys: ClassVar[dict[str, str]] = {"lm_head.weight": "embedding.weight"}
    _is_stateful = True  # the state cannot be rolled back: no assisted generation

    def __init__(self, config: RecurrentConfig):
        super().__init__(config)
        self.loss_type = "ForCausalLM"
        cell = {"rnn": LockedRNN, "gru": LockedGRU, "lstm": LockedLSTM}[config.cell]
        self.embedding = nn.Embedding(config.vocab_size, config.n_embd)
        self.rnn = cell(config.n_embd, config.hidden_size, num_layers=config.n_layer, batch_first=True)
        self.rnn.states, self.rnn.weights = config.dropout, config.weight_dropout
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Embedding | nn.Linear):
            # With the usual 0.1 the input is too weak for the cell to start learning.
            nn.init.uniform_(module.weight, -0.5, 0.5)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.RNNBase):
            bound = module.hidden_size**-0.5
            for parameter in module.parameters():
                nn.init.uniform_(parameter, -bound, bound)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: State | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        cache: State | None = None,
        output_hidden_states: bool = False,
        **kwargs: object,
    ) -> CausalLMOutputWithPast:
        """Logits (batch, time, vocab), the loss where there are labels, and the state after the last token.

        input_ids: (batch, time). Only the new tokens where a state is given.
        attention_mask: 0 marks padding, on either side; it leaves the state unchanged. May cover earlier tokens too.
        output_hidden_states: what the output layer reads, (batch, time, hidden), as the only one of `hidden_states`.
        position_ids: position 0 starts a document, from a zero state; other values are ignored.
        past_key_values, cache: the state that an earlier call returned; its name before and since transformers 5.24.
        labels: input_ids, or -100 where no loss is wanted; they are shifted here. The loss is their mean, or
            their sum over `num_items_in_batch` where that is given.
        """
        before = past_key_values if cache is None else cache
        time = input_ids.shape[1]
        embedded = self.embedding(input_ids)  # (batch, time, n_embd)
        if self.training and self.config.embd_dropout:
            kept = nn.functional.dropout(embedded.new_ones(self.config.vocab_size), self.config.embd_dropout)
            embedded = embedded * kept[input_ids][..., None]
        is_real = torch.ones_like(input_ids, dtype=torch.bool)
        if attention_mask is not None:
            is_real = attention_mask[:, -time:].bool()
        is_start = torch.zeros_like(is_real)
        if position_ids is not None:
            is_start = (position_ids[..., -time:] == 0).expand_as(is_real)

        fresh = before is None
        if (attention_mask is None or is_real.all()) and (
            position_ids is None or not is_start[:, 1 if fresh else 0 :].any()
        ):
            output, state = self._run(embedded, before)
        else:
            output, state = self._run_documents(embedded, is_real, is_start, before)

        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(output[:, kept])
        loss = None
        if labels is not None:
            loss = self.loss_function(logits, labels, vocab_size=self.config.vocab_size, **kwargs)
        use_cache = self.config.use_cache if use_cache is None else use_cache
        carried: dict[str, Any] = {STATE: state if use_cache else None}
        if output_hidden_states:
            carried["hidden_states"] = (output,)
        return CausalLMOutputWithPast(loss=loss, logits=logits, **carried)

    def _run(self, embedded: torch.Tensor | PackedSequence, state: State | None) -> tuple[Any, State]:
        """The cell over (batch, time, n_embd) or packed sequences."""
        is_lstm = self.config.cell == "lstm"
        output, final = self.rnn(embedded, state if state is None or is_lstm else state[0])
        return output, final if is_lstm else (final,)

    def _run_documents(
        self, embedded: torch.Tensor, is_real: torch.Tensor, is_start: torch.Tensor, state: State | None
    ) -> tuple[torch.Tensor, State]:
        """The cell over each run of real tokens from one start to the next, as sequences of their own.

        Other tokens cannot reach a state: isolation is exact, without masking.
        """
        is_first = is_real & (is_real.cumsum(1) == 1)  # first real token of its row
        begins = is_real & (is_start | is_first)
        lengths = (begins[is_real].cumsum(0) - 1).bincount().tolist()  # real tokens per document
        documents = pack_sequence(list(embedded[is_real].split(lengths)), enforce_sorted=False)

        carried = None
        if state is not None:
            row = begins.nonzero()[:, 0]  # of each document
            continues = (is_first & ~is_start)[begins]
            carried = tuple(part[:, row] * continues[None, :, None] for part in state)
        packed, final = self._run(documents, carried)

        real_output = torch.cat(unpack_sequence(packed))
        output = real_output.new_zeros(*is_real.shape, real_output.shape[-1])
        output[is_real] = real_output
        # For each row the state after its last document, or the previous one where the row is all padding.
        per_row = begins.sum(1)
        last = (per_row.cumsum(0) - 1).clamp(min=0)
        before = state or tuple(torch.zeros_like(part[:, last]) for part in final)
        has_tokens = (per_row > 0)[None, :, None]
        return output, tuple(torch.where(has_tokens, f[:, last], b) for f, b in zip(final, before, strict=True))

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False  # generate() starts without a cache and passes on the state that forward returns

    @staticmethod
    def _reorder_cache(past_key_values: State, beam_idx: torch.Tensor) -> State:
        """For beam search: the state of the beam that each row continues."""
        return tuple(part.index_select(1, beam_idx.to(part.device)) for part in past_key_values)


def new_recurrent(
    tokenizer: PreTrainedTokenizerBase,
    *,
    cell: str = "lstm",
    n_layer: int = 0,  # 0 is 2
    n_embd: int = 0,  # 0 is 256
    hidden_size: int = 0,  # 0 = n_embd
    dropout: float = 0.2,
    embd_dropout: float | None = None,  # none is 0
    weight_dropout: float = 0.0,
    tie_weights: bool = True,
) -> RecurrentLMHeadModel:
    """A recurrent language model with random weights for the tokenizer's vocabulary.

    Raises ValueError for an unknown cell, and for tied weights where n_embd and hidden_size differ.
    """
    n_layer, n_embd = n_layer or 2, n_embd or 256
    special_ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    config = RecurrentConfig(
        vocab_size=max(tokenizer.get_vocab().values()) + 1,
        n_embd=n_embd,
        hidden_size=hidden_size or n_embd,
        n_layer=n_layer,
        cell=cell,
        dropout=dropout,
        embd_dropout=embd_dropout or 0.0,
        weight_dropout=weight_dropout,
        tie_word_embeddings=tie_weights,
        **special_ids,
    )
    model = RecurrentLMHeadModel(config)
    model.generation_config = GenerationConfig(max_new_tokens=128, **special_ids)
    return model


if __name__ == "hf_lm.models.recurrent":  # transformers registers the copy in a model's folder where that is trusted
    AutoConfig.register(RecurrentConfig.model_type, RecurrentConfig, exist_ok=True)
    AutoModelForCausalLM.register(RecurrentConfig, RecurrentLMHeadModel, exist_ok=True)
# A copy of this file goes with every saved model, which loads with trust_remote_code where hf_lm is not installed.
RecurrentConfig.register_for_auto_class()
RecurrentLMHeadModel.register_for_auto_class("AutoModelForCausalLM")
