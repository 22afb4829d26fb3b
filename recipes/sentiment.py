"""Fine-tune a checkpoint for sentiment, or any other class of a text.

accelerate launch recipes/sentiment.py                                                     # a small demo, anywhere
accelerate launch recipes/sentiment.py --model google-bert/bert-base-uncased --dataset stanfordnlp/sst2
accelerate launch recipes/sentiment.py --model out/pretrain --dataset reviews.tsv --text_column 0 --label_column 1
"""

from dataclasses import dataclass

from accelerate.utils import set_seed
from transformers import AutoModelForSequenceClassification

from hf_lm.arguments import FineTuningArguments, Size, TrainingArguments, parse_arguments
from hf_lm.data.tables import load_table
from hf_lm.models.adapters import add_lora
from hf_lm.models.bert import new_bert
from hf_lm.models.configuration import context_length, family, load_config
from hf_lm.models.encoder_decoder import load_text_to_text
from hf_lm.models.loading import load_with_head
from hf_lm.tasks.sentiment import Sentiment, SentimentAsText, read_sentiment
from hf_lm.tokenization.tokenizer import load_tokenizer, new_tokenizer, set_pad
from hf_lm.training.fit import fit


@dataclass
class Arguments(FineTuningArguments):
    model: str = ""  # a checkpoint, folder or Hub id; "" makes a small fresh encoder
    dataset: str = "demo:opinions"  # built-in opinions, a file, a folder, a glob or a Hub id
    text_column: str = ""  # column read; "" guesses, a number counts in a file without a header
    label_column: str = ""  # column learned
    max_length: Size = 256  # tokens of a text
    as_text: bool = False  # a decoder writes the class rather than gets a head; an encoder-decoder always does


def main(args: Arguments, training_args: TrainingArguments) -> dict:
    set_seed(training_args.seed)
    header = not (args.text_column.isdigit() or args.label_column.isdigit())
    table = load_table(args.dataset, endings="labels", header=header)
    labels = read_sentiment(table, text_column=args.text_column, label_column=args.label_column)
    options = {"labels": labels, "max_length": args.max_length, "drop_overlap": args.drop_overlap}
    if not args.model:
        tokenizer = new_tokenizer((row["text"] for row in table.rows["train"]), vocab_size=2048)
        model = new_bert(tokenizer, labels=labels, block_size=args.max_length)
        return fit(
            add_lora(model, **args.lora()), Sentiment(table, tokenizer, **options), training_args, merge=args.merge
        )
    tokenizer = load_tokenizer(args.model)
    set_pad(tokenizer)
    kind = family(load_config(args.model))
    if kind == "encoder-decoder" or (kind == "decoder" and args.as_text):
        model = load_text_to_text(args.model, tokenizer=tokenizer, quantize=args.quantize)
        task = SentimentAsText(table, tokenizer, model, **options)
    else:
        model = load_with_head(
            args.model,
            AutoModelForSequenceClassification,
            tokenizer=tokenizer,
            labels=labels,
            quantize=args.quantize,
        )
        options["max_length"] = min(args.max_length, context_length(model.config) or args.max_length)
        task = Sentiment(table, tokenizer, **options)
    return fit(add_lora(model, **args.lora()), task, training_args, merge=args.merge)


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
