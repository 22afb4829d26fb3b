"""Train with few labels and much text: pseudo-labels, and pretraining on the text, beside labels alone.

accelerate launch recipes/self_training.py                                               # a small demo, anywhere
accelerate launch recipes/self_training.py --model roberta-base --labelled few.csv --unlabelled many.txt
accelerate launch recipes/self_training.py --task translation --model out/bart --labelled few/ --unlabelled many.txt
"""

# /// script
# requires-python = ">=3.11"
# dependencies = ["hf-lm>=0.1.0,<0.2"]
# ///

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from hf_lm.arguments import FineTuningArguments, Size, TrainingArguments, parse_arguments
from hf_lm.self_training.curve import learning_curve
from hf_lm.self_training.experiment import SelfTraining, Settings
from hf_lm.self_training.setups import SETUPS
from hf_lm.training.fit import fit

TASKS = Literal["sentiment", "question_answering", "translation", "summarization", "language_modelling"]


@dataclass
class Arguments(Settings):
    # The last weights, as in every training beside it.
    defaults: ClassVar[dict[str, Any]] = FineTuningArguments.defaults | {"load_best_model_at_end": False}
    task: TASKS = "sentiment"  # sentiment is any class of a text
    model: str = ""  # a checkpoint, folder or Hub id; "" makes a small randomly initialised model
    labelled: str = ""  # rows as the task's recipe reads them; "" is its demo
    unlabelled: str = ""  # texts: a .txt with one a line, a table, a Hub id; "" is the rest of the labelled rows
    text_column: str = ""  # column of the labelled rows, for classes and documents; "" guesses
    label_column: str = ""  # column learned
    source: str = ""  # column of the source, for translation and summarization; "" guesses
    target: str = ""  # column learned
    unlabelled_column: str = ""  # column of the texts; "" guesses
    max_length: Size = 256  # tokens of a text, or of a window
    max_target_length: Size = 64  # tokens of a text that is written
    drop_overlap: bool = False  # remove labelled training rows that also occur in a held-out split


def main(args: Arguments, training_args: TrainingArguments) -> dict:
    start = SETUPS[args.task](
        args.labelled,
        model=args.model,
        unlabelled=args.unlabelled,
        unlabelled_column=args.unlabelled_column,
        text_column=args.text_column,
        label_column=args.label_column,
        source=args.source,
        target=args.target,
        max_length=args.max_length,
        max_target_length=args.max_target_length,
        drop_overlap=args.drop_overlap,
    )
    learned = SelfTraining(**vars(start), training_args=training_args, **args.settings())
    learned.run()
    curve = learning_curve(learned)
    model, task, training_args = learned.begin_best(curve)
    return fit(model, task, training_args, extra_report={"recipe": "self_training", "learning_curve": curve})


if __name__ == "__main__":
    main(
        *parse_arguments(
            Arguments,
            TrainingArguments,
            fresh={"learning_rate": 1e-3, "shares": [0.02, 0.1], "max_unlabelled": 600, "min_steps": 60},
            output_dir="out/self_training",
            per_device_train_batch_size=32,
        )
    )
