"""Fine-tune a checkpoint to answer questions from a text.

accelerate launch recipes/question_answering.py                                            # facts about countries
accelerate launch recipes/question_answering.py --model google-bert/bert-base-uncased --dataset rajpurkar/squad
accelerate launch recipes/question_answering.py --model out/pretrain --dataset my-squad.json
"""

# /// script
# requires-python = ">=3.11"
# dependencies = ["hf-lm>=0.1.0,<0.2"]
# ///

from dataclasses import dataclass

from hf_lm.arguments import Count, FineTuningArguments, Size, TrainingArguments, parse_arguments
from hf_lm.models.adapters import add_lora
from hf_lm.tasks.question_answering import QuestionAnswering
from hf_lm.training.fit import fit


@dataclass
class Arguments(FineTuningArguments):
    model: str = ""  # a checkpoint, folder or Hub id; "" makes a small randomly initialised encoder
    dataset: str = "demo:countries"  # CLDR's facts, SQuAD's json, a file, a folder, a glob or a Hub id
    question: str = ""  # column; "" guesses, as the next two
    context: str = ""  # column of the text that holds the answer
    answers: str = ""  # column of the answers
    max_length: Size = 384  # tokens of a window, the question included
    stride: Count = 128  # tokens that two windows share
    as_text: bool = False  # a decoder writes the answer rather than points to it; an encoder-decoder always does
    max_target_length: Size = 32  # tokens of an answer that is written


def main(args: Arguments, training_args: TrainingArguments) -> dict:
    table = QuestionAnswering.load(args.dataset, question=args.question, context=args.context, answers=args.answers)
    start = QuestionAnswering.prepare_model(
        table,
        args.model,
        block_size=args.max_length,
        as_text=args.as_text,
        quantize=args.quantize,
    )
    task = QuestionAnswering.from_start(
        table,
        start,
        max_length=args.max_length,
        stride=args.stride,
        max_target_length=args.max_target_length,
        drop_overlap=args.drop_overlap,
    )
    return fit(add_lora(start.model, **args.lora()), task, training_args, merge=args.merge)


if __name__ == "__main__":
    main(
        *parse_arguments(
            Arguments,
            TrainingArguments,
            fresh={"learning_rate": 1e-3, "num_train_epochs": 10},
            output_dir="out/question_answering",
            per_device_train_batch_size=32,
        )
    )
