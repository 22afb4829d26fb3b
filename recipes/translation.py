"""Fine-tune a checkpoint for translation.

accelerate launch recipes/translation.py                                            # dates and names, en to de
accelerate launch recipes/translation.py --model Helsinki-NLP/opus-mt-en-de --dataset data/ --source en --target de
accelerate launch recipes/translation.py --model out/pretrain --dataset pairs.tsv --source 0 --target 1
"""

# /// script
# requires-python = ">=3.11"
# dependencies = ["hf-lm>=0.1.0,<0.2"]
# ///

from dataclasses import dataclass

from hf_lm.arguments import FineTuningArguments, Size, TrainingArguments, parse_arguments
from hf_lm.models.adapters import add_lora
from hf_lm.tasks.translation import Translation
from hf_lm.training.fit import fit


@dataclass
class Arguments(FineTuningArguments):
    model: str = ""  # a checkpoint, folder or Hub id; "" makes a small randomly initialised encoder-decoder
    decoder: str = ""  # checkpoint of the decoder, such as GPT-2, for an encoder as --model; "" takes --model alone
    dataset: str = "demo:phrases"  # CLDR's dates and names, a file, a folder, a glob or a Hub id
    source: str = "en"  # column read, or language of a column `translation`
    target: str = "de"  # column learned
    max_source_length: Size = 128  # tokens of the source
    max_target_length: Size = 128  # tokens of the target
    prefix: str = ""  # text before each source; "" takes the prefix in the checkpoint's configuration (T5)
    num_beams: Size = 1  # beams of generation; 1 is greedy


def main(args: Arguments, training_args: TrainingArguments) -> dict:
    table = Translation.load(args.dataset, source=args.source, target=args.target)
    start = Translation.prepare_model(
        table,
        args.model,
        decoder=args.decoder,
        block_size=max(args.max_source_length, args.max_target_length),
        languages=(args.source, args.target),
        quantize=args.quantize,
    )
    task = Translation.from_start(
        table,
        start,
        max_source_length=args.max_source_length,
        max_target_length=args.max_target_length,
        prefix=args.prefix,
        num_beams=args.num_beams,
        drop_overlap=args.drop_overlap,
    )
    return fit(add_lora(start.model, **args.lora()), task, training_args, merge=args.merge)


if __name__ == "__main__":
    main(
        *parse_arguments(
            Arguments,
            TrainingArguments,
            fresh={"learning_rate": 1e-3, "muon_learning_rate": 3e-3, "num_train_epochs": 4},
            output_dir="out/translation",
            per_device_train_batch_size=32,
        )
    )
