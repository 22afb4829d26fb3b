"""A folder as an ONNX graph, by torch's own exporter, compared with the folder through onnxruntime."""

import contextlib
import io
import warnings
from pathlib import Path
from typing import cast

import torch
import transformers
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_lm.export.placing import MARK, check_places, placed
from hf_lm.export.samples import Difference, difference, lines
from hf_lm.models.adapters import AUTO_CLASSES
from hf_lm.models.configuration import architecture, context_length, family, load_config
from hf_lm.models.loading import load_weights
from hf_lm.tokenization.tokenizer import load_tokenizer, set_pad
from hf_lm.version import __version__

try:
    import onnx  # pyright: ignore[reportMissingImports]  (extras)
    import onnxruntime  # pyright: ignore[reportMissingImports]
    import onnxscript  # noqa: F401  # pyright: ignore[reportMissingImports]  (torch's exporter needs it)
except ImportError as error:
    raise ImportError(f"export to ONNX needs {error.name}: pip install 'hf-lm[export]'.") from None

OUTPUTS = ("logits", "start_logits", "end_logits")
TOLERANCE = 1e-4  # of the largest logit: float32, summed in another order
LARGEST = 2**31 - 2**20  # bytes of a protobuf message
Inputs = dict[str, torch.Tensor]


def export_onnx(folder: str | Path, output: str | Path) -> Difference:
    """Write a folder's model as one ONNX file and return how far its logits are from the folder's on text.

    The graph's inputs are the tokenizer's (`input_ids`, `attention_mask`, `token_type_ids` where the model has types),
    int64, (batch, time), any batch and any length up to the model's; its outputs are `logits`, or `start_logits` and
    `end_logits`. Raises ValueError or OSError in one line: an adapter, an encoder-decoder, a model with code of its
    own, one of 2 GB or more, an output that is not ours, or logits that differ by more than TOLERANCE of the largest.
    """
    folder, output = str(folder), Path(output)
    check_places(folder, output, ours=_is_ours)
    tokenizer, model = _load(folder)
    with torch.no_grad():
        outputs = model(input_ids=torch.zeros(1, 2, dtype=torch.long)).keys()
    names = tuple(name for name in OUTPUTS if name in outputs)
    batches = _batches(model, tokenizer)
    graph = _Graph(model, names).eval()
    with placed(output) as aside:
        _write(graph, batches[0], names, aside, longest=context_length(model.config))
        result = _compare(graph, batches, aside)
        if not result.within:
            raise ValueError(f"nothing was written to {output}: its logits differ from those of {folder} by {result}.")
    return result


def _is_ours(path: Path) -> bool:
    try:
        return any(entry.key == MARK for entry in onnx.load(str(path), load_external_data=False).metadata_props)
    except Exception as error:  # protobuf's own
        raise ValueError(str(error)) from error


def _load(folder: str) -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
    config = load_config(folder)
    if family(config) == "encoder-decoder":
        raise ValueError(f"{folder} is a {config.model_type}: export writes one graph, and an encoder-decoder is two.")
    if config.model_type == "hf_lm_recurrent":
        raise ValueError(
            f"{folder} is a recurrent model, whose loop over a text of any length is not written as ONNX."
        )
    classes = [getattr(transformers, name) for name in (*AUTO_CLASSES.values(), "AutoModelForMaskedLM")]
    named = architecture(config)
    auto_class = next(
        (each for each in classes if getattr(each._model_mapping.get(type(config), None), "__name__", "") == named),
        None,
    )
    if auto_class is None:
        raise ValueError(f"{folder} was saved as {named}, which has no head that export knows.")
    tokenizer = load_tokenizer(folder)
    set_pad(tokenizer)
    model = load_weights(auto_class, folder, config).eval()
    if (size := 4 * model.num_parameters()) > LARGEST:
        raise ValueError(f"{folder} has {size / 1e9:.1f} GB of weights in float32; one ONNX file holds less than 2.")
    return tokenizer, model


class _Graph(torch.nn.Module):
    """A model's forward without a cache: (batch, time) inputs, a tuple of the outputs named."""

    def __init__(self, model: PreTrainedModel, names: tuple[str, ...]) -> None:
        super().__init__()
        self.model, self.names = model, names
        self.options = {"use_cache": False} if hasattr(model.config, "use_cache") else {}

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, token_type_ids: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, ...]:
        types = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        outputs = self.model(input_ids=input_ids, attention_mask=attention_mask, **types, **self.options)
        return tuple(outputs[name] for name in self.names)


def _batches(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[Inputs]:
    """Batches of text in several shapes; the first is the example that is traced."""
    longest = min(context_length(model.config) or 128, 128)
    text = lines()
    wanted = ["input_ids", "attention_mask"]
    if getattr(model.config, "type_vocab_size", 0) > 1 and "token_type_ids" in tokenizer.model_input_names:
        wanted.append("token_type_ids")
    batches = []
    for rows, per_row, length in (
        (2, 4, longest),
        (1, 1, longest // 2),
        (5, 9, longest),
        (3, 2, max(2, longest // 4)),
    ):
        texts = ["\n".join(text[i * per_row + 20 * rows : (i + 1) * per_row + 20 * rows]) for i in range(rows)]
        encoded = tokenizer(texts, padding=True, truncation=True, max_length=max(4, length), return_tensors="pt")
        batches.append({name: cast(torch.Tensor, encoded[name]) for name in wanted})
    return batches


def _write(graph: _Graph, example: Inputs, names: tuple[str, ...], path: Path, *, longest: int) -> None:
    batch = torch.export.Dim("batch")
    time = torch.export.Dim("sequence", max=longest) if longest else torch.export.Dim("sequence")
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), torch.no_grad():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            graph,
            (),
            kwargs=example,
            dynamo=True,
            verbose=False,
            input_names=list(example),
            output_names=list(names),
            dynamic_shapes={name: {0: batch, 1: time} for name in example},
        )
    assert program is not None
    program.model.metadata_props[MARK] = __version__
    program.save(str(path), external_data=False)


def _compare(graph: _Graph, batches: list[Inputs], path: Path) -> Difference:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    expected, computed, masks = [], [], []
    for batch in batches:
        with torch.no_grad():
            logits = graph(**batch)
        expected += logits
        computed += session.run(None, {name: tensor.numpy() for name, tensor in batch.items()})
        masks += [batch["attention_mask"]] * len(logits)
    return difference(expected, computed, allowed=TOLERANCE, where=masks)
