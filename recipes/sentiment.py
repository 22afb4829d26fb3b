"""Fine-tune a checkpoint for sentiment, or any other class of a text.

accelerate launch recipes/sentiment.py                                                     # a small demo, anywhere
accelerate launch recipes/sentiment.py --model google-bert/bert-base-uncased --dataset stanfordnlp/sst2
accelerate launch recipes/sentiment.py --model out/pretrain --dataset reviews.tsv --text_column 0 --label_column 1
"""

# /// script
# requires-python = ">=3.11"
# dependencies = ["hf-lm>=0.1.0,<0.2"]
# ///

from dataclasses import dataclass

from hf_lm.arguments import FineTuningArguments, Size, TrainingArguments, parse_arguments
from hf_lm.models.adapters import add_lora
from hf_lm.tasks.sentiment import Sentiment
from hf_lm.training.fit import fit


@dataclass
class Arguments(FineTuningArguments):
    model: str = ""  # a checkpoint, folder or Hub id; "" makes a small randomly initialised encoder
    dataset: str = "demo:opinions"  # built-in opinions, a file, a folder, a glob or a Hub id
    text_column: str = ""  # column read; "" guesses, a number counts in a file without a header
    label_column: str = ""  # column learned
    max_length: Size = 256  # tokens of a text
    as_text: bool = False  # a decoder writes the class rather than gets a head; an encoder-decoder always does


def main(args: Arguments, training_args: TrainingArguments) -> dict:
    table = Sentiment.load(args.dataset, text_column=args.text_column, label_column=args.label_column)
    start = Sentiment.prepare_model(
        table,
        args.model,
        block_size=args.max_length,
        as_text=args.as_text,
        quantize=args.quantize,
    )
    task = Sentiment.from_start(table, start, max_length=args.max_length, drop_overlap=args.drop_overlap)
    return fit(add_lora(start.model, **args.lora()), task, training_args, merge=args.merge)


if __name__ == "__main__":
    main(
        *parse_arguments(
            Arguments,
            TrainingArguments,
            fresh={"learning_rate": 1e-3},
            output_dir="out/sentiment",
            per_device_train_batch_size=32,
        )
    )
