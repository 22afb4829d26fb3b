"""Load a folder as anyone would, without hf_lm, and print what was found: run by hf_lm.hub.check, on its own.

    python -I fresh_load.py '{"folder": ..., "adapter": false, "trust": false, "auto_class": ""}'

It imports nothing of this package: what only works with it must fail here.
"""

import json
import sys
import warnings
from pathlib import Path

# Where an architecture's name says which auto class loads it, in the order in which they are tried.
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


def main(folder: str, adapter: bool, trust: bool, auto_class: str) -> dict:
    warnings.simplefilter("ignore")
    if not adapter:
        sys.modules["peft"] = None  # who has no peft must be able to load it
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    untrusted = {"trust_remote_code": False}
    source, loading = folder, {"use_safetensors": True, "output_loading_info": not adapter, "trust_remote_code": trust}
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
    if Path(place, TARGET).is_dir():  # another writes than the one that reads
        target = transformers.AutoTokenizer.from_pretrained(place, subfolder=TARGET, **untrusted)

    encoded = tokenizer("A model reads this. 春眠不觉晓", return_tensors="pt")
    inputs = {name: encoded[name] for name in ("input_ids", "attention_mask") if name in encoded}
    ids, rows = inputs["input_ids"], model.get_input_embeddings().weight.shape[0]
    finite = True
    if ids.numel() and int(ids.max()) < rows:
        if config.is_encoder_decoder:
            inputs["decoder_input_ids"] = torch.tensor([target("A")["input_ids"][:1]])
        with torch.no_grad():
            finite = bool(torch.isfinite(model(**inputs)[0]).all())
    ends = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    written = []  # ids and embedding rows of what is written, where they are others
    if target is not tokenizer:
        written = [max(target.get_vocab().values()) + 1, model.get_output_embeddings().weight.shape[0]]
    return {
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


def _auto_class(config) -> str:
    from transformers.models.auto import modeling_auto

    named = [name for name in getattr(config, "auto_map", None) or {} if name.startswith("AutoModelFor")]
    if named:
        return named[0]
    architecture = (config.architectures or [""])[0]
    for kind, auto_class in AUTO_CLASSES.items():
        if architecture in getattr(modeling_auto, f"MODEL_FOR_{kind}_MAPPING_NAMES").values():
            return auto_class
    return "AutoModel"


def _family(config) -> str:
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    if config.is_encoder_decoder:
        return "encoder-decoder"
    return "encoder" if config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES else "decoder"


def _classes(weights: Path) -> int:
    """Classes of the head that an adapter brings along, which its configuration does not tell; 0 where it has none."""
    from safetensors import safe_open

    with safe_open(weights, "pt") as file:
        heads = [name for name in file.keys() if name.endswith(HEADS)]  # noqa: SIM118  (it is no dict)
        return file.get_slice(heads[-1]).get_shape()[0] if heads else 0


if __name__ == "__main__":
    print(json.dumps(main(**json.loads(sys.argv[1]))))
