"""Fine-tune a checkpoint to find named entities in text.

accelerate launch recipes/token_classification.py                                          # facts about countries
accelerate launch recipes/token_classification.py --model google-bert/bert-base-cased --dataset lhoestq/conll2003
accelerate launch recipes/token_classification.py --model out/pretrain --dataset conll/ --label_column 3
"""

# /// script
# requires-python = ">=3.11"
# dependencies = ["hf-lm>=0.1.0,<0.2"]
# ///

from dataclasses import dataclass

from hf_lm.arguments import FineTuningArguments, Size, TrainingArguments, parse_arguments
from hf_lm.models.adapters import add_lora
from hf_lm.tasks.token_classification import TokenClassification
from hf_lm.training.fit import fit


@dataclass
class Arguments(FineTuningArguments):
    model: str = ""  # a checkpoint, folder or Hub id; "" makes a small randomly initialised encoder
    dataset: str = "demo:countries"  # CLDR's facts, CoNLL, rows of words and tags, a folder, a glob or a Hub id
    text_column: str = ""  # column of the words; "" guesses, a number counts in CoNLL files, from 0
    label_column: str = ""  # column of the tags; "" guesses, the last one in CoNLL files
    max_length: Size = 256  # tokens of a sentence


def main(args: Arguments, training_args: TrainingArguments) -> dict:
    table = TokenClassification.load(args.dataset, text_column=args.text_column, label_column=args.label_column)
    start = TokenClassification.prepare_model(
        table,
        args.model,
        block_size=args.max_length,
        vocab_size=512,
        quantize=args.quantize,
    )
    task = TokenClassification.from_start(table, start, max_length=args.max_length, drop_overlap=args.drop_overlap)
    return fit(add_lora(start.model, **args.lora()), task, training_args, merge=args.merge)


if __name__ == "__main__":
    main(
        *parse_arguments(
            Arguments,
            TrainingArguments,
            fresh={"learning_rate": 1e-3, "num_train_epochs": 10},
            output_dir="out/token_classification",
            per_device_train_batch_size=32,
        )
    )
