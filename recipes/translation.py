"""Fine-tune a checkpoint for translation.

accelerate launch recipes/translation.py                                            # dates and names, en to de
accelerate launch recipes/translation.py --model Helsinki-NLP/opus-mt-en-de --dataset data/ --source en --target de
accelerate launch recipes/translation.py --model out/pretrain --dataset pairs.tsv --source 0 --target 1
"""

from dataclasses import dataclass

from accelerate.utils import set_seed

from hf_lm.arguments import FineTuningArguments, Size, TrainingArguments, parse_arguments
from hf_lm.data.tables import load_table
from hf_lm.models.adapters import add_lora
from hf_lm.models.encoder_decoder import load_text_to_text, new_bart
from hf_lm.tasks.translation import Translation, read_translation
from hf_lm.tokenization.tokenizer import load_tokenizer, new_tokenizer, set_languages, set_pad
from hf_lm.training.fit import fit


@dataclass
class Arguments(FineTuningArguments):
    model: str = ""  # a checkpoint, folder or Hub id; "" makes a small fresh encoder-decoder
    decoder: str = ""  # a checkpoint that writes what --model, an encoder, reads: GPT-2; "" leaves both to --model
    dataset: str = "demo:phrases"  # CLDR's dates and names, a file, a folder, a glob or a Hub id
    source: str = "en"  # column read, or language of a column `translation`
    target: str = "de"  # column learned
    max_source_length: Size = 128  # tokens
    max_target_length: Size = 128
    prefix: str = ""  # read before each source; "" takes what the checkpoint was taught (T5), if it says so
    num_beams: Size = 1  # hypotheses kept while writing; 1 is greedy


def main(args: Arguments, training_args: TrainingArguments) -> dict:
    set_seed(training_args.seed)
    table = load_table(args.dataset, header=not args.source.isdigit())
    read_translation(table, source=args.source, target=args.target)
    if args.model:
        tokenizer = load_tokenizer(args.model, decoder=args.decoder)
        set_pad(tokenizer)
        set_languages(tokenizer, args.source, args.target)
        model = load_text_to_text(args.model, tokenizer=tokenizer, decoder=args.decoder, quantize=args.quantize)
    else:
        texts = (text for row in table.rows["train"] for text in (row["source"], *row["targets"]))
        tokenizer = new_tokenizer(texts, vocab_size=2048)
        model = new_bart(tokenizer, block_size=max(args.max_source_length, args.max_target_length))
    task = Translation(
        table,
        tokenizer,
        model,
        source=args.source,
        target=args.target,
        max_source_length=args.max_source_length,
        max_target_length=args.max_target_length,
        prefix=args.prefix,
        num_beams=args.num_beams,
        drop_overlap=args.drop_overlap,
    )
    return fit(add_lora(model, **args.lora()), task, training_args, merge=args.merge)


if __name__ == "__main__":
    main(
        *parse_arguments(
            Arguments,
            TrainingArguments,
            fresh={"learning_rate": 3e-3, "muon_learning_rate": 1e-2, "num_train_epochs": 4},
            output_dir="out/translation",
            per_device_train_batch_size=32,
            learning_rate=1e-4,
        )
    )
