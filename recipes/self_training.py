"""Train a classifier with few labels and much text: pseudo-labels, and pretraining on the text, beside labels alone.

accelerate launch recipes/self_training.py                                               # a small demo, anywhere
accelerate launch recipes/self_training.py --model roberta-base --labelled few.csv --unlabelled many.txt
accelerate launch recipes/self_training.py --model out/pretrain --labelled reviews/ --shares 0.1 --method pretraining
"""

from dataclasses import dataclass, field
from typing import Literal

from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    BertForMaskedLM,
)

from hf_lm.arguments import FINE_TUNING, TrainingArguments, bf16_is_fast, parse_arguments
from hf_lm.models.bert import new_bert
from hf_lm.models.checkpoints import context_length, family, load_config, load_with_head
from hf_lm.self_training import SelfTraining, read_labelled, read_unlabelled
from hf_lm.tasks.sentiment import Sentiment
from hf_lm.tokenizer import load_tokenizer, new_tokenizer, set_pad
from hf_lm.training.fit import fit


@dataclass
class Arguments:
    model: str = ""  # an encoder or a decoder, folder or Hub id; "" makes a small fresh encoder
    task: str = "sentiment"  # any class of a text; other tasks cannot be asked for yet
    labelled: str = "demo:opinions"  # rows with a label, as recipes/sentiment.py reads them
    unlabelled: str = ""  # texts: a .txt with one a line, a table, a Hub id; "" is the rest of the labelled rows
    text_column: str = ""  # columns of the labelled rows; "" guesses
    label_column: str = ""
    unlabelled_column: str = ""  # column of the texts; "" guesses
    shares: list[float] = field(default_factory=lambda: [0.01, 0.1, 1.0])  # of the labels
    seeds: int = 3  # trainings of each kind
    method: Literal["pseudo_labels", "pretraining", "both"] = "both"
    threshold: float = 0.8  # calibrated confidence from which a teacher's answer is taken
    rounds: int = 3  # of teacher and student, at most
    min_steps: int = 100  # optimizer steps of a training, at least: a handful of rows is read more often
    pretraining_epochs: float = 3.0  # on the text without labels
    max_unlabelled: int = 0  # texts that are read, drawn by seed; 0 is all
    max_length: int = 256  # tokens of a text


def main(args: Arguments, training_args: TrainingArguments) -> dict:
    if args.task != "sentiment":
        raise ValueError(f"--task {args.task} is not possible yet: sentiment is, for any class of a text.")
    table, labels = read_labelled(args.labelled, text_column=args.text_column, label_column=args.label_column)
    unlabelled = read_unlabelled(args.unlabelled, text_column=args.unlabelled_column)
    max_length = args.max_length
    if not args.model:
        tokenizer = new_tokenizer([row["text"] for row in table.rows["train"]] + unlabelled.texts, vocab_size=2048)
        tokenizer.add_special_tokens({"mask_token": "<|mask|>"})
        new_model = lambda seed: new_bert(tokenizer, labels=labels, block_size=max_length)  # noqa: E731
        new_lm = lambda: new_bert(tokenizer, model_class=BertForMaskedLM, block_size=max_length)  # noqa: E731
    else:
        tokenizer = load_tokenizer(args.model)
        set_pad(tokenizer)
        config = load_config(args.model)
        if family(config) == "encoder-decoder":
            raise ValueError(f"--model {args.model} is an encoder-decoder: give an encoder or a decoder.")
        max_length = min(max_length, context_length(config) or max_length)
        head = AutoModelForSequenceClassification
        lm = AutoModelForMaskedLM if family(config) == "encoder" else AutoModelForCausalLM
        new_model = lambda seed: load_with_head(args.model, head, tokenizer=tokenizer, labels=labels)  # noqa: E731
        new_lm = lambda: load_with_head(args.model, lm, tokenizer=tokenizer)  # noqa: E731
    best = SelfTraining(
        new_model,
        Sentiment(table, tokenizer, labels=labels, max_length=max_length),
        unlabelled,
        training_args,
        new_lm=new_lm,
        shares=args.shares,
        seeds=args.seeds,
        method=args.method,
        threshold=args.threshold,
        rounds=args.rounds,
        min_steps=args.min_steps,
        pretraining_epochs=args.pretraining_epochs,
        max_unlabelled=args.max_unlabelled,
        max_length=max_length,
    ).run()
    return fit(best.model, best.task, best.training_args, found_before=best.found)


if __name__ == "__main__":
    main(
        *parse_arguments(
            Arguments,
            TrainingArguments,
            fresh={"learning_rate": 1e-3, "shares": [0.02, 0.1], "max_unlabelled": 600, "min_steps": 60},
            output_dir="out/self_training",
            per_device_train_batch_size=32,
            bf16=bf16_is_fast(),
            **FINE_TUNING | {"load_best_model_at_end": False},  # the last weights, as in every training beside it
        )
    )
