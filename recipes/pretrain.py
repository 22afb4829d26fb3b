"""Pretrain: from raw text to a GPT-2 (or a recurrent language model) that AutoModel loads.

accelerate launch recipes/pretrain.py                                    # built-in text, minutes on a laptop
accelerate launch recipes/pretrain.py --dataset my_texts/ --size mini    # your own text
accelerate launch recipes/pretrain.py --config recipes/configs/pretrain_gpt2_wikitext2.yaml
"""

from dataclasses import dataclass
from typing import Literal

from accelerate.utils import set_seed

from hf_lm.arguments import TrainingArguments, bf16_is_fast, parse_arguments
from hf_lm.data.sources import load_corpus
from hf_lm.models.configuration import context_length
from hf_lm.models.gpt2 import new_gpt2
from hf_lm.models.loading import load_causal_lm
from hf_lm.models.recurrent import new_recurrent
from hf_lm.tasks.language_modelling import LanguageModelling
from hf_lm.tokenization.tokenizer import prepare_tokenizer
from hf_lm.training.fit import fit


@dataclass
class Arguments:
    dataset: str = "demo"  # built-in text, a file, a folder, a glob, a Hub id, or a=0.7,b=0.3
    text_column: str = ""  # column read; "" guesses
    document_start: str = ""  # regular expression of the line that begins a document
    tokenizer: str = "bpe"  # bpe, word or basic_english train one; otherwise a name or path
    vocab_size: int = 4096  # entries of a trained tokenizer
    min_frequency: int = 2  # times that a word or a merge must occur
    tokenizer_max_bytes: int = 32_000_000  # text that the tokenizer is trained on
    model: str = ""  # a causal checkpoint to continue from; "" makes a fresh model
    architecture: Literal["gpt2", "lstm", "gru", "rnn"] = "gpt2"  # of a fresh model
    size: Literal["tiny", "mini", "small", "medium", "large", "xl"] = "tiny"  # of a fresh GPT-2
    n_layer: int = 0  # 0 takes these four from size
    n_head: int = 0
    n_embd: int = 0
    block_size: int = 0  # tokens in a training example
    dropout: float = 0.0
    packing: Literal["isolate", "concatenate"] = "isolate"  # may the documents of a block see each other?
    eval_stride: int = 0  # tokens that an evaluation window moves by; 0 is half a block


def main(args: Arguments, training_args: TrainingArguments) -> dict:
    set_seed(training_args.seed)
    corpus = load_corpus(args.dataset, text_column=args.text_column, document_start=args.document_start)
    tokenizer = prepare_tokenizer(
        args.model if args.model and args.tokenizer == "bpe" else args.tokenizer,
        corpus,
        vocab_size=args.vocab_size,
        min_frequency=args.min_frequency,
        max_bytes=args.tokenizer_max_bytes,
    )
    if args.model:
        model = load_causal_lm(args.model, tokenizer=tokenizer, block_size=args.block_size)
    elif args.architecture == "gpt2":
        shape = {"n_layer": args.n_layer, "n_head": args.n_head, "n_embd": args.n_embd}
        model = new_gpt2(tokenizer, size=args.size, **shape, block_size=args.block_size, dropout=args.dropout)
    else:
        model = new_recurrent(
            tokenizer,
            cell=args.architecture,
            n_layer=args.n_layer or 2,
            n_embd=args.n_embd or 256,
            dropout=args.dropout,
        )
    block_size = args.block_size or min(1024, context_length(model.config) or 128)
    task = LanguageModelling(
        corpus, tokenizer, block_size=block_size, packing=args.packing, eval_stride=args.eval_stride
    )
    return fit(model, task, training_args)


if __name__ == "__main__":
    main(
        *parse_arguments(
            Arguments,
            TrainingArguments,
            fresh={"learning_rate": 1.5e-2, "muon_learning_rate": 6e-3},
            output_dir="out/pretrain",
            learning_rate=1e-3,
            muon_learning_rate=1e-3,
            lr_scheduler_type="warmup_stable_decay",
            warmup_steps=20,
            max_steps=675,
            per_device_train_batch_size=16,
            weight_decay=0.1,
            bf16=bf16_is_fast(),
            decay_share=0.6,
            logging_steps=10,
            eval_strategy="steps",
            eval_steps=225,
            save_steps=225,
            save_total_limit=2,
        )
    )
