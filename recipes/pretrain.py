"""Pretrain: from raw text to a GPT-2 (or a recurrent language model) that AutoModel loads.

accelerate launch recipes/pretrain.py --dataset my_texts/ --size mini    # built-in text without arguments
accelerate launch recipes/pretrain.py --config recipes/configs/pretrain_gpt2_wikitext2.yaml
"""

# /// script
# requires-python = ">=3.11"
# dependencies = ["hf-lm>=0.1.0,<0.2"]
# ///

from dataclasses import dataclass
from typing import Literal

from hf_lm.arguments import Count, Decay, Layers, PretrainingArguments, Size, TrainingArguments, parse_arguments
from hf_lm.data.sources import load_corpus
from hf_lm.models.cooccurrence import start_embedding
from hf_lm.models.gpt2 import new_gpt2
from hf_lm.models.loading import load_causal_lm
from hf_lm.models.recurrent import new_recurrent
from hf_lm.tasks.language_modelling import LanguageModelling
from hf_lm.tokenization.tokenizer import prepare_tokenizer
from hf_lm.training.fit import fit


@dataclass
class Arguments(PretrainingArguments):
    dataset: str = "demo"  # built-in text, a file, a folder, a glob, a Hub id, a=0.7,b=0.3, or tokens:FOLDER
    text_column: str = ""  # column that is read; "" guesses
    max_bytes: Count = 0  # text read of each split; 0 is all; a Hub dataset is then streamed, not downloaded whole
    streaming: bool = False  # stream one dataset of the Hub in windows of --max_bytes (0: 256 MB)
    document_start: str = ""  # regular expression for the first line of a document
    tokenizer: str = "bpe"  # bpe, word or basic_english train one; otherwise a name or path
    vocab_size: Size = 4096  # entries of a bpe tokenizer that is trained
    pre_tokenizer: Literal["words", "gpt2"] = "words"  # how bpe splits text into words; export to GGUF needs gpt2
    min_frequency: Size = 2  # occurrences that a word or a merge needs
    tokenizer_max_bytes: Size = 32_000_000  # bytes of text that bpe is trained on
    model: str = ""  # a causal checkpoint to continue from; "" makes a new one
    architecture: Literal["gpt2", "lstm", "gru", "rnn"] = "gpt2"  # of a new model
    size: Literal["tiny", "mini", "small", "medium", "large", "xl"] = "tiny"  # of a new GPT-2
    embedding_init: Literal["cooccurrence", "random"] = "cooccurrence"  # of a new model: from counts in the text
    n_layer: Layers = 0  # layers; 0, here and in the next three, takes the value of size
    n_head: Count = 0  # attention heads
    n_embd: Count = 0  # width of the states
    block_size: Count = 0  # tokens of a training example
    dropout: Decay = 0.0  # share of values that training sets to 0
    embd_dropout: Decay | None = None  # of embeddings (recurrent: of entries); none takes --dropout's for a GPT-2
    resid_dropout: Decay | None = None  # of what a layer of a new GPT-2 adds; none takes --dropout's
    attn_dropout: Decay | None = None  # of the attention of a new GPT-2; none takes --dropout's
    weight_dropout: Decay = 0.0  # of a new recurrent model: of the weights from one state to the next
    packing: Literal["isolate", "concatenate"] = "isolate"  # isolate: attention within a document
    eval_stride: Count = 0  # tokens between two evaluation windows; 0 is half a block, or a whole one in a short run


def main(args: Arguments, training_args: TrainingArguments) -> dict:
    text = {key: getattr(args, key) for key in ("text_column", "document_start", "max_bytes", "streaming")}
    corpus = load_corpus(args.dataset, **text)
    wanted = {key: getattr(args, key) for key in ("vocab_size", "min_frequency", "pre_tokenizer", "model")}
    tokenizer = prepare_tokenizer(args.tokenizer, corpus, max_bytes=args.tokenizer_max_bytes, **wanted)
    dropouts = ("resid_dropout", "attn_dropout") if args.architecture == "gpt2" else ("weight_dropout",)
    shape = {name: getattr(args, name) for name in ("n_layer", "n_embd", "dropout", "embd_dropout", *dropouts)}
    if args.model:
        model = load_causal_lm(args.model, tokenizer=tokenizer, block_size=args.block_size)
    elif args.architecture == "gpt2":
        model = new_gpt2(tokenizer, size=args.size, n_head=args.n_head, block_size=args.block_size, **shape)
    else:
        model = new_recurrent(tokenizer, cell=args.architecture, **shape)
    windows = {key: getattr(args, key) for key in ("block_size", "packing", "eval_stride")}
    task = LanguageModelling(corpus, tokenizer, config=model.config, **windows)
    task.choose_length(training_args, model, built_in=args.dataset == "demo")
    if not args.model and args.embedding_init == "cooccurrence":
        start_embedding(model, task.streams["train"].tokens)
    return fit(model, task, training_args)


if __name__ == "__main__":
    rates = {"learning_rate": 0.0, "adam_beta1": 0.8, "muon_learning_rate": 6e-3}  # 0.0: by the tokens of a step
    length = {"max_steps": 0, "num_train_epochs": 4, "warmup_steps": 20, "decay_share": 0.6}
    settings = {"output_dir": "out/pretrain", "eval_strategy": "steps", "eval_steps": 225, "save_steps": 225}
    main(*parse_arguments(Arguments, TrainingArguments, fresh=rates, **length, **settings))
