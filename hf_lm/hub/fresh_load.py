"""Load a folder in a process of its own, as anyone would who has no hf_lm: `fresh_load(folder=..., ...)`.

The same file is the program of that process. It imports nothing of this package, because what only works with it must
fail here. The process reads a request as JSON from stdin, and writes a line of JSON and then the logits to stdout.
"""

import contextlib
import gc
import io
import json
import os
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

# The auto class by the mapping that has an architecture, in the order in which they are tried.
AUTO_CLASSES = {
    "CAUSAL_LM": "AutoModelForCausalLM",
    "SEQ_TO_SEQ_CAUSAL_LM": "AutoModelForSeq2SeqLM",
    "QUESTION_ANSWERING": "AutoModelForQuestionAnswering",
    "SEQUENCE_CLASSIFICATION": "AutoModelForSequenceClassification",
    "TOKEN_CLASSIFICATION": "AutoModelForTokenClassification",
    "MASKED_LM": "AutoModelForMaskedLM",
}
HEADS = ("score.weight", "classifier.weight", "classifier.out_proj.weight")  # of classification, one row a class

TARGET = "target_tokenizer"  # as hf_lm.models.target_tokenizer has it


def fresh_load(*, patience: float | None = None, **request: object) -> tuple[dict[str, Any], Any]:
    """A fresh process's answer about a folder, and its logits, None without `inputs`: see `describe` and `compute`.

    The process uses neither a network nor an accelerator, and ends with this one, or after `patience` seconds. Raises
    ChildProcessError with the last line of its error.
    """
    return begin_fresh_load(patience=patience, **request)()


def begin_fresh_load(*, patience: float | None = None, **request: object) -> Callable[[], tuple[dict[str, Any], Any]]:
    """As `fresh_load`, which waits only when what is returned is called: this process can go on meanwhile."""
    environment = {k: v for k, v in os.environ.items() if k not in ("RANK", "LOCAL_RANK", "WORLD_SIZE")}
    environment |= {"CUDA_VISIBLE_DEVICES": "", "PYTHONIOENCODING": "utf-8", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-I", __file__, str(os.getpid())]
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, env=environment)
    asked = cast(IO[bytes], process.stdin)
    process.stdin = None  # or communicate would flush what is closed
    with contextlib.suppress(BrokenPipeError), asked:  # it has ended, and its error says why
        asked.write(json.dumps(request).encode())
    return lambda: _answer(process, patience)


def _answer(process: subprocess.Popen[bytes], patience: float | None) -> tuple[dict[str, Any], Any]:
    import numpy as np

    try:
        out, errors = process.communicate(timeout=patience)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise ChildProcessError(f"it took more than {patience} s: by a regular expression without end?") from None
    if process.returncode:
        lines = errors.decode("utf-8", "replace").strip().splitlines()
        raise ChildProcessError(lines[-1] if lines else f"exit code {process.returncode}")
    line, _, logits = out.partition(b"\n")
    return json.loads(line), np.load(io.BytesIO(logits)) if logits else None


def main() -> None:
    if os.name == "posix":
        threading.Thread(target=_end_with_parent, args=(int(sys.argv[1]),), daemon=True).start()
    request = json.load(sys.stdin)
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no answer
    warnings.simplefilter("ignore")
    if not request["adapter"]:
        sys.modules["peft"] = None  # type: ignore[assignment]  # who has no peft must be able to load it
    answer, logits = (compute if "inputs" in request else describe)(**request)
    out.write(json.dumps(answer).encode() + b"\n" + logits)
    out.close()
    gc.freeze()  # or Python looks through all that was imported for a second when it ends


def _end_with_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def compute(
    folder: str,
    adapter: bool,
    trust: bool,
    auto_class: str,
    options: dict,  # for from_pretrained
    inputs: dict[str, list],
    texts: list[str],
    targets: list[str],  # texts for the target tokenizer
) -> tuple[list[list[int]], bytes]:
    """The token ids of `texts` and `targets` without special tokens, and the logits in float32 as np.save has them."""
    import numpy as np
    import torch
    import transformers

    loader = getattr(transformers, auto_class)
    model = loader.from_pretrained(folder, trust_remote_code=trust, dtype="float32", **options).eval()
    for module in model.modules():
        module.support_avx512bf16_for_cpu = False  # bitsandbytes would round 4-bit weights once more
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=trust)
    with torch.no_grad():
        outputs = model(**{name: torch.tensor(values) for name, values in inputs.items()})
    logits = outputs.logits if "logits" in outputs else torch.stack([outputs.start_logits, outputs.end_logits])
    ids = _encode(tokenizer, texts)
    if targets:
        ids += _encode(transformers.AutoTokenizer.from_pretrained(folder, subfolder=TARGET), targets)
    saved = io.BytesIO()
    np.save(saved, logits.numpy())
    return ids, saved.getvalue()


def _encode(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    if tokenizer.is_fast:
        tokenizer.backend_tokenizer.encode_special_tokens = True
    return [tokenizer.encode(text, add_special_tokens=False) for text in texts]


def describe(folder: str, adapter: bool, trust: bool, auto_class: str) -> tuple[dict[str, Any], bytes]:
    """Facts about a folder's model and tokenizer; `auto_class` "" follows from its configuration."""
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    untrusted = {"trust_remote_code": False}
    source = folder
    loading: dict[str, Any] = {"use_safetensors": True, "output_loading_info": not adapter, "trust_remote_code": trust}
    loading["attn_implementation"] = "eager"  # or a configuration may name a repository of kernels
    if adapter:
        source = json.loads(Path(folder, "adapter_config.json").read_text())["base_model_name_or_path"]
        classes = _classes(Path(folder, "adapter_model.safetensors"))
        if classes and auto_class in ("", "AutoModelForSequenceClassification"):
            auto_class, loading["num_labels"] = "AutoModelForSequenceClassification", classes
    config = transformers.AutoConfig.from_pretrained(source, trust_remote_code=trust)
    if auto_class not in (*AUTO_CLASSES.values(), "AutoModel"):  # a report may name any
        auto_class = _auto_class(config)
    model = getattr(transformers, auto_class).from_pretrained(folder, **loading)
    model, missing = (model, []) if adapter else (model[0], sorted(model[1]["missing_keys"]))
    model.eval()
    own = not adapter or Path(folder, "tokenizer_config.json").is_file()
    place = folder if own else source
    tokenizer = target = transformers.AutoTokenizer.from_pretrained(place, **untrusted)
    if Path(place, TARGET).is_dir():
        target = transformers.AutoTokenizer.from_pretrained(place, subfolder=TARGET, **untrusted)

    encoded = tokenizer("A model reads this. 春眠不觉晓", return_tensors="pt")
    longest = getattr(config, "max_position_embeddings", None)  # a model may have room for less than this text
    inputs = {name: encoded[name][:, :longest] for name in ("input_ids", "attention_mask") if name in encoded}
    if config.is_encoder_decoder:
        inputs["decoder_input_ids"] = torch.tensor([target("A")["input_ids"][:1]])
    ids, rows = inputs["input_ids"], model.get_input_embeddings().weight.shape[0]
    with torch.no_grad():  # where the tokenizer has no ids beyond the embedding
        finite = not (ids.numel() and int(ids.max()) < rows) or bool(torch.isfinite(model(**inputs)[0]).all())
    ends = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    written = []  # ids and embedding rows of the target, where another tokenizer encodes it
    if target is not tokenizer:
        written = [max(target.get_vocab().values()) + 1, model.get_output_embeddings().weight.shape[0]]
    facts = {
        "architecture": type(model).__name__,
        "auto_class": auto_class,
        "family": _family(config),
        "parameters": model.num_parameters(),
        "dtype": str(model.dtype).removeprefix("torch."),
        "missing": missing[:3],
        "finite": finite,
        "rows": rows,
        "tokens": max(tokenizer.get_vocab().values(), default=-1) + 1,
        "encodes": bool(ids.numel()),
        "pad": [target.pad_token_id, target.pad_token],
        "eos": [target.eos_token_id, target.eos_token],
        "written": written,
        "generates": auto_class in ("AutoModelForCausalLM", "AutoModelForSeq2SeqLM"),
        "ends": ends if isinstance(ends, list) else [] if ends is None else [ends],
        "template": bool(tokenizer.chat_template),
    }
    return facts, b""


def _auto_class(config: "PreTrainedConfig") -> str:
    from transformers.models.auto import modeling_auto

    named = [name for name in getattr(config, "auto_map", None) or {} if name.startswith("AutoModelFor")]
    if named:
        return named[0]
    architecture = (config.architectures or [""])[0]
    for kind, auto_class in AUTO_CLASSES.items():
        if architecture in getattr(modeling_auto, f"MODEL_FOR_{kind}_MAPPING_NAMES").values():
            return auto_class
    return "AutoModel"


def _family(config: "PreTrainedConfig") -> str:
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    if config.is_encoder_decoder:
        return "encoder-decoder"
    return "encoder" if config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES else "decoder"


def _classes(weights: Path) -> int:
    """Classes of the head in an adapter's weights, which its configuration does not name; 0 where it has none."""
    from safetensors import safe_open

    with safe_open(weights, "pt") as file:
        heads = [name for name in file.keys() if name.endswith(HEADS)]  # noqa: SIM118  (it is no dict)
        return file.get_slice(heads[-1]).get_shape()[0] if heads else 0


if __name__ == "__main__":
    main()
