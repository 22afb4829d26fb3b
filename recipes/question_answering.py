"""Fine-tune a checkpoint to answer questions from a text.

accelerate launch recipes/question_answering.py                                            # facts about countries
accelerate launch recipes/question_answering.py --model google-bert/bert-base-uncased --dataset rajpurkar/squad
accelerate launch recipes/question_answering.py --model out/pretrain --dataset my-squad.json
"""

from dataclasses import dataclass

from accelerate.utils import set_seed
from transformers import AutoModelForQuestionAnswering, BertForQuestionAnswering

from hf_lm.arguments import Count, FineTuningArguments, Size, TrainingArguments, parse_arguments
from hf_lm.data.tables import load_table
from hf_lm.models.adapters import add_lora
from hf_lm.models.bert import new_bert
from hf_lm.models.configuration import context_length, family, load_config
from hf_lm.models.encoder_decoder import load_text_to_text
from hf_lm.models.loading import load_with_head
from hf_lm.tasks.question_answering import QuestionAnswering, QuestionAnsweringAsText, read_question_answering
from hf_lm.tokenization.tokenizer import load_tokenizer, new_tokenizer, set_pad
from hf_lm.training.fit import fit


@dataclass
class Arguments(FineTuningArguments):
    model: str = ""  # a checkpoint, folder or Hub id; "" makes a small fresh encoder
    dataset: str = "demo:countries"  # CLDR's facts, SQuAD's json, a file, a folder, a glob or a Hub id
    question: str = ""  # columns; "" guesses
    context: str = ""
    answers: str = ""
    max_length: Size = 384  # tokens of a window, the question included
    stride: Count = 128  # tokens that two windows share
    as_text: bool = False  # a decoder writes the answer rather than points to it; an encoder-decoder always does
    max_target_length: Size = 32  # tokens of an answer that is written


def main(args: Arguments, training_args: TrainingArguments) -> dict:
    set_seed(training_args.seed)
    table = load_table(args.dataset)
    read_question_answering(table, question=args.question, context=args.context, answers=args.answers)
    if not args.model:
        texts = (text for row in table.rows["train"] for text in (row["question"], row["context"]))
        tokenizer = new_tokenizer(texts, vocab_size=2048)
        model = new_bert(tokenizer, model_class=BertForQuestionAnswering, block_size=args.max_length)
        kind = "encoder"
    else:
        tokenizer = load_tokenizer(args.model)
        set_pad(tokenizer)
        kind = family(load_config(args.model))
    if kind == "encoder-decoder" or (kind == "decoder" and args.as_text):
        model = load_text_to_text(args.model, tokenizer=tokenizer, quantize=args.quantize)
        task = QuestionAnsweringAsText(
            table,
            tokenizer,
            model,
            max_source_length=args.max_length,
            max_target_length=args.max_target_length,
            drop_overlap=args.drop_overlap,
        )
        return fit(add_lora(model, **args.lora()), task, training_args, merge=args.merge)
    if args.model:
        model = load_with_head(args.model, AutoModelForQuestionAnswering, tokenizer=tokenizer, quantize=args.quantize)
    max_length = min(args.max_length, context_length(model.config) or args.max_length)
    task = QuestionAnswering(
        table,
        tokenizer,
        causal=kind == "decoder",
        max_length=max_length,
        stride=min(args.stride, max_length // 3),
        drop_overlap=args.drop_overlap,
    )
    return fit(add_lora(model, **args.lora()), task, training_args, merge=args.merge)


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
