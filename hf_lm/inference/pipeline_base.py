"""What the pipelines of this library share: loading, devices, options, and inputs that come as a stream."""

import difflib
import inspect
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import RevisionNotFoundError
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from hf_lm.data.batches import TokenId
from hf_lm.models.configuration import family, load_config, unreachable
from hf_lm.models.devices import device_named
from hf_lm.models.loading import load_weights
from hf_lm.models.target_tokenizer import find_target, has_target_tokenizer
from hf_lm.tokenization.tokenizer import load_tokenizer, set_pad

AT_ONCE = 256  # inputs of a stream that are read ahead, to batch those of similar length
UNREAD = ["*.bin", "*.pt", "*.pth", "*.ckpt", "*.h5", "*.msgpack", "*.ot", "*.onnx*", "*.gguf"]
# Options of transformers 4 that are accepted: texts are always padded, and truncated to the positions of the model.
NO_EFFECT = ("num_workers", "padding", "return_text", "trust_remote_code", "truncation", "use_fast")


def download(name: str, revision: str | None, token: str | bool | None) -> str:
    """The folder of a Hub id at a revision, or with a token of its own; any other name stays."""
    if (revision is None and token is None) or Path(name).is_dir():
        return name
    try:
        return snapshot_download(name, revision=revision, token=token, ignore_patterns=UNREAD)
    except RevisionNotFoundError:
        raise OSError(f"{name} has no revision {revision!r}.") from None
    except OSError as error:
        if message := unreachable(name, error):
            raise OSError(f"{message} The revision asked for is {revision!r}.") from error
        raise


def tokenizer_given(
    tokenizer: str | tuple[str, dict[str, Any]] | PreTrainedTokenizerBase,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
) -> PreTrainedTokenizerBase:
    """A tokenizer of whatever form `pipeline` takes it in."""
    name, options = tokenizer if isinstance(tokenizer, tuple) else (tokenizer, {})
    refuse_code(options)
    if not isinstance(name, str):
        return name
    options = {key: value for key, value in options.items() if key not in ("use_fast", "trust_remote_code")}
    return load_tokenizer(download(name, revision, token), **options)


def refuse_code(options: dict[str, Any]) -> None:
    if options.get("trust_remote_code"):
        raise ValueError("pipeline: trust_remote_code is refused: hf_lm runs no code from a model.")


class BasePipeline:
    """A model, its tokenizer and device, the options of a call, and answers to a stream of inputs."""

    auto_classes: dict[str, Any]
    _together: Callable[..., list[Any]]  # the answers to a list of inputs, in their order

    def __init__(
        self,
        task: str,
        model: str | PreTrainedModel | None,
        tokenizer: str | tuple[str, dict[str, Any]] | PreTrainedTokenizerBase | None = None,
        *,
        config: str | PreTrainedConfig | None = None,
        revision: str | None = None,
        token: str | bool | None = None,
        dtype: str | torch.dtype = "auto",
        torch_dtype: str | torch.dtype | None = None,  # its name before transformers 5
        device: int | str | torch.device | None = None,  # None is the first accelerator, if there is one
        device_map: str | dict[str, int | str] | None = None,
        model_kwargs: dict[str, Any] | None = None,  # of from_pretrained
        framework: str | None = None,
        batch_size: int = 32,
        **options: Any,
    ) -> None:
        loading = {"dtype": torch_dtype or dtype, "device_map": device_map, **(model_kwargs or {})}
        refuse_code(loading | options)
        if framework not in (None, "pt"):
            raise ValueError(f"{task}: framework={framework!r} is refused: there is only pt, PyTorch.")
        if device is not None and loading["device_map"] is not None:
            raise ValueError(f"{task}: give device or device_map, not both.")
        if model is None:
            raise ValueError(f"pipeline({task!r}) needs model=..., a folder or a Hub id.")
        at = {"revision": loading.pop("revision", revision), "token": token}
        if isinstance(model, str):
            model = download(model, **at)
            tokenizer = tokenizer or model
            device = 0 if device is None and loading["device_map"] is None else device
            model = self._load(model, config, loading)
        if tokenizer is None:
            raise ValueError(f"{task}: a model that is given as an object needs tokenizer=... beside it.")
        self.task, self.tokenizer = task, tokenizer_given(tokenizer, **at)
        self.model: Any = model.eval()  # the types of PreTrainedModel lack `generate`
        if not has_target_tokenizer(self.tokenizer) and self.tokenizer.name_or_path:
            find_target(self.tokenizer, self.tokenizer.name_or_path)
        set_pad(self.tokenizer)
        self.pad_id: TokenId = self.tokenizer.pad_token_id
        self.batch_size, self.causal = batch_size, family(model.config) == "decoder"
        if isinstance(device, int):
            accelerator = torch.accelerator.current_accelerator(check_available=True)
            device = "cpu" if device < 0 or accelerator is None else torch.device(accelerator.type, device)
        self.device = device_named(device) if device is not None else model.device
        if device is not None:
            self.model.to(self.device)
        self.known = getattr(self.model.config, "task_specific_params", None) or {}
        self.settings = self.known.get(task, {})  # with which a model of the recipes was measured
        self.options: dict[str, Any] = {}
        self.options = self._options(options)

    def _load(self, name: str, config: str | PreTrainedConfig | None, options: dict[str, Any]) -> PreTrainedModel:
        if not isinstance(config, PreTrainedConfig):
            config = load_config(config or name)
        kept: dict[str, Any] = {k: v for k, v in options.items() if v is not None and k != "trust_remote_code"}
        kept |= {"dtype": kept.pop("torch_dtype", kept["dtype"]), "use_safetensors": True}
        return load_weights(self.auto_classes[family(config)], name, config, **kept)

    def option_names(self) -> set[str]:
        """The options that a call takes, and that can be given when the pipeline is made."""
        return set(inspect.signature(self._together).parameters)

    def _options(self, options: dict[str, Any]) -> dict[str, Any]:
        """All options of a call. Raises ValueError for one that does not exist."""
        names = self.option_names()
        for name in options.keys() - names - {*NO_EFFECT}:
            near = difflib.get_close_matches(name, names, n=1)
            raise ValueError(f"{self.task} has no option {name!r}." + (f" Did you mean {near[0]}?" if near else ""))
        return self.options | {name: value for name, value in options.items() if name not in NO_EFFECT}

    def _stream(self, inputs: Iterator[Any], options: dict[str, Any]) -> Iterator[Any]:
        """An answer for each input, AT_ONCE of which are read ahead."""
        while some := list(islice(inputs, AT_ONCE)):
            yield from self._together(some, **options)
