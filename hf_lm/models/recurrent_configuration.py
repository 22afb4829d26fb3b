"""The configuration of the recurrent language model.

In a module of its own because transformers' auto classes need it while they are still being imported. This file and
recurrent.py are copied into every saved model, so they import torch and transformers and nothing else.
"""

import importlib
from typing import ClassVar

from transformers.configuration_utils import PreTrainedConfig

CELLS = ("rnn", "gru", "lstm")


class RecurrentConfig(PreTrainedConfig):
    """Shape of a RecurrentLMHeadModel. Raises ValueError for a cell that does not exist or a tie that cannot be."""

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
        dropout: float = 0.2,  # of embeddings, between the layers, and before the decoder
        tie_word_embeddings: bool = True,  # the decoder's weights are the embedding's
        use_cache: bool = True,
        bos_token_id: int | None = None,
        eos_token_id: int | None = None,
        pad_token_id: int | None = None,
        **kwargs,
    ):
        if cell not in CELLS:
            raise ValueError(f"cell={cell!r} is not a recurrent cell; choose one of {', '.join(CELLS)}.")
        if tie_word_embeddings and n_embd != hidden_size:
            raise ValueError(
                f"n_embd={n_embd} and hidden_size={hidden_size} differ, so embedding and decoder cannot share their "
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
        self.use_cache = use_cache
        super().__init__(
            tie_word_embeddings=tie_word_embeddings,
            bos_token_id=bos_token_id,
            eos_token_id=eos_token_id,
            pad_token_id=pad_token_id,
            **kwargs,
        )
        if __name__.startswith("hf_lm."):
            # Registers the model class. Not from a copy in a model's folder: there transformers does it.
            importlib.import_module("hf_lm.models.recurrent")
