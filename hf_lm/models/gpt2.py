"""Randomly initialised GPT-2 models by size."""

from transformers import GenerationConfig, GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerBase

from hf_lm.models.configuration import check_memory, special_ids
from hf_lm.parsing.suggestions import did_you_mean

# small to xl are the four that were published (124 M, 355 M, 774 M and 1.6 B parameters with their vocabulary).
SIZES = {
    "tiny": {"n_layer": 2, "n_head": 4, "n_embd": 256, "block_size": 128},
    "mini": {"n_layer": 6, "n_head": 6, "n_embd": 384, "block_size": 512},
    "small": {"n_layer": 12, "n_head": 12, "n_embd": 768, "block_size": 1024},
    "medium": {"n_layer": 24, "n_head": 16, "n_embd": 1024, "block_size": 1024},
    "large": {"n_layer": 36, "n_head": 20, "n_embd": 1280, "block_size": 1024},
    "xl": {"n_layer": 48, "n_head": 25, "n_embd": 1600, "block_size": 1024},
}


def new_gpt2(
    tokenizer: PreTrainedTokenizerBase,
    *,
    size: str = "tiny",
    n_layer: int = 0,  # 0 is the size's own, here and below
    n_head: int = 0,
    n_embd: int = 0,
    block_size: int = 0,  # tokens the model can see at once
    dropout: float = 0.0,
    embd_dropout: float | None = None,  # None is dropout, here and below
    resid_dropout: float | None = None,
    attn_dropout: float | None = None,
) -> GPT2LMHeadModel:
    """A GPT-2 with random weights for the tokenizer's vocabulary, embedding and output tied.

    The embedding's rows are rounded up to a multiple of 64, which is faster on GPUs, and `config.vocab_size` counts
    them all, as AutoModel needs. Training lowers the spare rows' logits; `generate` never picks one, because the
    generation configuration lists them in `suppress_tokens`.

    Dropout has three places: the sum of the embeddings, what attention and MLP add to the residual stream, and the
    attention weights. Raises ValueError for an unknown size or a shape that cannot be.
    """
    if size not in SIZES:
        hint = did_you_mean(size, SIZES)
        raise ValueError(f"there is no GPT-2 size {size!r}; choose one of {', '.join(SIZES)}.{hint}")
    given = {"n_layer": n_layer, "n_head": n_head, "n_embd": n_embd, "block_size": block_size}
    for name, value in given.items():
        if value < 0:
            raise ValueError(f"{name}={value} is negative; give a positive number, or 0 for that of size={size!r}.")
    shape = {name: value or SIZES[size][name] for name, value in given.items()}
    _check_shape(shape["n_head"], shape["n_embd"], shape["block_size"])
    dropouts = _dropouts(dropout, embd=embd_dropout, resid=resid_dropout, attn=attn_dropout)

    used = set(tokenizer.get_vocab().values())
    vocab_size = 64 * (max(used) // 64 + 1)
    embedded = (vocab_size + shape["block_size"]) * shape["n_embd"]
    check_memory(
        embedded + 12 * shape["n_layer"] * shape["n_embd"] ** 2, ", ".join(f"{k}={v:,}" for k, v in shape.items())
    )
    config = GPT2Config(
        vocab_size=vocab_size,
        n_positions=shape["block_size"],
        n_ctx=shape["block_size"],  # pyright: ignore[reportCallIssue] - not transformers', but mlx-lm and llama.cpp read it
        n_embd=shape["n_embd"],
        n_layer=shape["n_layer"],
        n_head=shape["n_head"],
        **dropouts,
        activation_function="gelu_pytorch_tanh",  # GPT-2's gelu_new, the same function in one kernel instead of eight
        **special_ids(tokenizer),
    )
    model = GPT2LMHeadModel(config)
    model.generation_config = GenerationConfig(
        max_new_tokens=min(128, shape["block_size"] // 2),  # as many tokens are left for a prompt
        suppress_tokens=sorted(set(range(vocab_size)) - used) or None,
        **special_ids(tokenizer),
    )
    return model


def _check_shape(n_head: int, n_embd: int, block_size: int) -> None:
    if n_embd % n_head:
        lower = n_embd // n_head * n_head
        choices = [str(n) for n in (lower, lower + n_head) if n > 0]
        raise ValueError(
            f"n_embd={n_embd} is not divisible by n_head={n_head}, so the heads cannot share it evenly; "
            f"try n_embd={' or '.join(choices)}, or another n_head."
        )
    if block_size < 2:
        raise ValueError(f"block_size={block_size} leaves no next token to predict; give at least 2.")


def _dropouts(dropout: float, **places: float | None) -> dict[str, float]:
    """The fields of the configuration; a place without its own has that of all."""
    fields = {f"{place}_pdrop": dropout if own is None else own for place, own in places.items()}
    for name, probability in {"dropout": dropout, **fields}.items():
        if not 0 <= probability < 1:
            raise ValueError(f"{name}={probability} is not a probability below 1; give 0 (none) up to 0.9.")
    return fields
