"""A checkpoint before its weights are read: its configuration, family and positions, or why it cannot be used."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import psutil
import torch
from huggingface_hub import constants, is_offline_mode, try_to_load_from_cache
from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError
from safetensors import safe_open
from transformers import MODEL_FOR_MASKED_LM_MAPPING, AutoConfig, PreTrainedConfig, PreTrainedTokenizerBase
from transformers.utils.hub import cached_file, extract_commit_hash
from transformers.utils.peft_utils import find_adapter_config_file

from hf_lm.files import MODEL, hash_contents_once, hash_text
from hf_lm.parsing.ranges import excessive

CONFIG = "config.json"
WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
ADAPTER = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
ADAPTED = "adapted_config.json"  # beside an adapter: the config.json of its merged model; see save_adapted
# RoBERTa and its kin count positions from the padding token's id on: of 514 they can use 512.
COUNT_FROM_PAD = ("roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "roberta-prelayernorm", "data2vec-text")
ABSENT_IS_NONE = {  # options of cached_file
    f"_raise_exceptions_for_{what}": False for what in ("missing_entries", "connection_errors", "gated_repo")
}


def commit_of(name_or_path: str) -> str:
    """The commit at which a checkpoint of the Hub was last read here; "" of a folder. transformers records it nowhere.

    It asks the cache and not the Hub, which may have moved on since the weights were read.
    """
    if not name_or_path or Path(name_or_path).is_dir():
        return ""
    cached = (try_to_load_from_cache(name_or_path, name) for name in (CONFIG, ADAPTER))
    return next((extract_commit_hash(path, None) or "" for path in cached if isinstance(path, str)), "")


def model_fingerprint(name_or_path: str) -> str:
    """Twelve digits that change with what a checkpoint answers: with the files of a folder, the commit of a name.

    Those of an adapter change with its base too. Much is not read again (`hash_contents_once`). Raises OSError or
    ValueError in one line.
    """
    base = (find_adapter(name_or_path) or {}).get("base_model_name_or_path")
    commits, files = [], []
    for place in filter(None, (base, name_or_path)):
        if not Path(place).is_dir():
            load_config(place)  # asks the Hub
            commits.append(f"{place} {commit_of(place)}")
        found = [path for name in MODEL for path in Path(place).glob(name)] + [*Path(place).glob("target_tokenizer/*")]
        files += [(path.name, path) for path in sorted(found)]
    return hash_text(f"{commits} {hash_contents_once(files)}").hex()[:12]


def load_config(name_or_path: str) -> PreTrainedConfig:
    """The configuration of a checkpoint, in a folder or on the Hub; of an adapter, that of its merged model.

    Raises OSError or ValueError in one line.
    """
    name_or_path = str(name_or_path)
    if (adapter := find_adapter(name_or_path)) is not None:
        base = adapter["base_model_name_or_path"]
        if Path(base).resolve() == Path(name_or_path).resolve():
            raise ValueError(f"{name_or_path} is an adapter that names itself as its base: correct its {ADAPTER}.")
        try:
            config = load_config(base)
        except OSError as error:
            raise OSError(
                f"{name_or_path} is an adapter for {base}, which is not there ({error}) Put it there, or set "
                f"base_model_name_or_path in {ADAPTER} to where it is."
            ) from error
        adapted = cached_file(name_or_path, ADAPTED, **ABSENT_IS_NONE)
        if adapted:
            _check_counts(name_or_path, adapted)
            return AutoConfig.from_pretrained(adapted, trust_remote_code=False)
        if classes := _classes(name_or_path):
            config.num_labels = classes
        return config
    check_checkpoint(name_or_path)
    _check_counts(name_or_path, cached_file(name_or_path, CONFIG, **ABSENT_IS_NONE))
    try:
        # False rather than None: None would ask on the terminal whether to run the checkpoint's code.
        return AutoConfig.from_pretrained(name_or_path, trust_remote_code=False)
    except Exception as error:  # a value of another type raises what its reader happens to raise
        if problem := unreachable(name_or_path, error):
            raise OSError(problem) from error
        if "custom code" in str(error):
            raise ValueError(f"{name_or_path} needs code of its own, and hf_lm runs no code from a model.") from error
        if isinstance(error, ValueError):
            raise ValueError(f"{name_or_path}: transformers knows no such model: {why(error)}") from error
        raise OSError(f"cannot read the {CONFIG} of {name_or_path}: {why(error)}") from error


def _check_counts(name_or_path: str, file: str | None) -> None:
    """Raise ValueError where a configuration counts what would fill the memory before a weight is read."""
    try:
        problem = excessive(json.loads(Path(file).read_text(encoding="utf-8"))) if file else ""
    except (OSError, ValueError, RecursionError):  # its reader says what is wrong
        return
    if problem:
        raise ValueError(f"{name_or_path}: {problem}: restore the {CONFIG} that was saved with the weights.")


def check_memory(parameters: int, shape: str) -> None:
    """Raise ValueError where the weights of a new model, in float32, would not fit into this machine's memory."""
    gigabytes, there = 4 * parameters / 1e9, psutil.virtual_memory().total / 1e9
    if gigabytes > there and torch.get_default_device().type != "meta":
        raise ValueError(
            f"{shape}: {parameters:,} parameters need {gigabytes:,.0f} GB; this machine has {there:,.0f} GB."
        )


def special_ids(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """The ids of a tokenizer's begin, end and padding token, as a configuration takes them; None for one it lacks."""
    return {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}


def set_labels(config: PreTrainedConfig, labels: Sequence[str]) -> None:
    """Name the classes of a configuration; without `labels` it is unchanged."""
    if labels:
        config.num_labels = len(labels)
        config.id2label = dict(enumerate(labels))
        config.label2id = {label: i for i, label in enumerate(labels)}


def unreachable(name_or_path: str, error: Exception) -> str:
    """What to do about an error of the Hub for this name; "" where the error has another cause."""
    causes = _causes(error)
    what = f"{name_or_path} is neither a folder here nor "
    if any(isinstance(cause, GatedRepoError) for cause in causes):
        return f"{name_or_path} is gated: accept its terms on its page, then run `hf auth login`."
    if any(isinstance(cause, RepositoryNotFoundError) for cause in causes):
        return what + "a public model on the Hub; check the name, or `hf auth login` if it is private."
    if not any(isinstance(cause, LocalEntryNotFoundError) for cause in causes):
        return ""
    if is_offline_mode():
        return (
            what + "in the local cache; check the name, or unset HF_HUB_OFFLINE, which keeps the Hub from being asked."
        )
    return what + f"in the local cache, and {constants.ENDPOINT} cannot be reached; check the name and the network."


def family(config: PreTrainedConfig) -> Literal["encoder", "decoder", "encoder-decoder"]:
    """Which of the three a checkpoint is; it decides which tasks the checkpoint can do, and how."""
    if config.is_encoder_decoder:
        return "encoder-decoder"
    return "encoder" if type(config) in MODEL_FOR_MASKED_LM_MAPPING else "decoder"


def context_length(config: PreTrainedConfig, *, written: bool = False) -> int:
    """Positions that a model has; 0 where there is no limit, as in a recurrent one.

    Of an encoder-decoder made of two checkpoints those of the encoder, or with `written` those of the decoder.
    """
    if config.model_type == "encoder-decoder":
        config = config.decoder if written else config.encoder
    config = config.get_text_config()
    positions = max(0, getattr(config, "max_position_embeddings", 0) or 0)
    if config.model_type in COUNT_FROM_PAD and positions:
        positions -= config.pad_token_id + 1
    return positions


def check_checkpoint(name_or_path: str) -> None:
    """Raise OSError where a folder is missing or holds no complete model in safetensors. A name on the Hub passes."""
    folder = Path(name_or_path)
    if not folder.is_dir():
        if folder.exists():
            raise NotADirectoryError(f"{name_or_path} is a file; give the folder that holds {CONFIG} and the weights.")
        if is_path(name_or_path):
            raise FileNotFoundError(f"there is no folder {name_or_path}.")
        return
    names = {path.name for path in folder.iterdir()}
    if CONFIG in names and names.intersection(WEIGHTS):
        return
    pickled = sorted(name for name in names if name.endswith((".bin", ".pt", ".pth")) and name != "training_args.bin")
    checkpoints = [path.parent for path in folder.glob(f"checkpoint-*/{CONFIG}")]
    if checkpoints:
        newest = max(checkpoints, key=lambda path: path.stat().st_mtime)
        problem = f"holds no finished model, but checkpoints of a run: give {newest}"
    elif CONFIG not in names:
        problem = f"has no {CONFIG}, so it is not the folder of a model"
    elif pickled:
        problem = f"has its weights pickled ({pickled[0]}), which can run code: save them as safetensors first"
    else:
        problem = f"has a {CONFIG} but no weights ({' or '.join(WEIGHTS)})"
    raise FileNotFoundError(f"{name_or_path} {problem}.")


def is_path(name: str) -> bool:
    """Whether a name can only be a path here: a name on the Hub has one slash at most."""
    return name.startswith(("/", ".", "~")) or name.count("/") > 1 or "\\" in name


def find_adapter(name_or_path: str) -> dict[str, Any] | None:
    """adapter_config.json of a folder or of a name on the Hub; None for a complete model.

    Raises ValueError where it names no base.
    """
    if (Path(name_or_path) / CONFIG).is_file():
        return None
    try:
        file = find_adapter_config_file(name_or_path)
    except OSError:
        return None  # load_config reports what is wrong with the name
    if file is None:
        return None
    try:
        adapter = json.loads(Path(file).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{name_or_path}: {ADAPTER} is not JSON: {error}") from None
    base = adapter.get("base_model_name_or_path") if isinstance(adapter, dict) else None
    if not base or not isinstance(base, str):
        raise ValueError(
            f"{name_or_path} is an adapter that names no base model: set base_model_name_or_path in its {ADAPTER}."
        )
    return adapter


def adapter_weights(name_or_path: str) -> str:
    """The file that holds an adapter's weights. Raises FileNotFoundError where it is missing or pickled."""
    weights = cached_file(name_or_path, ADAPTER_WEIGHTS, **ABSENT_IS_NONE)
    if weights is None:
        pickled = (Path(name_or_path) / "adapter_model.bin").is_file()
        problem = (
            "has its weights pickled (adapter_model.bin), which can run code: save them as safetensors first"
            if pickled
            else f"is an adapter without weights ({ADAPTER_WEIGHTS})"
        )
        raise FileNotFoundError(f"{name_or_path} {problem}.")
    return weights


def _classes(name_or_path: str) -> int:
    """How many classes an adapter's head has; 0 where the adapter has no head. For adapters made elsewhere."""
    weights = Path(name_or_path) / ADAPTER_WEIGHTS
    if not weights.is_file():
        return 0
    with safe_open(weights, "pt") as file:
        heads = [
            key for key in list(file.keys()) if re.search(r"\.(classifier|score|classifier\.out_proj)\.weight$", key)
        ]
        return file.get_slice(heads[-1]).get_shape()[0] if heads else 0


def _causes(error: BaseException | None) -> list[BaseException]:
    causes = []
    while error is not None:
        causes.append(error)
        error = error.__cause__ or error.__context__
    return causes


def why(error: Exception) -> str:
    """The first line of an error's message, or its class."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def architecture(config: PreTrainedConfig) -> str:
    """The class that a checkpoint was saved as, or its model type."""
    return (config.architectures or [config.model_type])[0]
