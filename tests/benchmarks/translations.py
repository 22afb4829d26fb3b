"""Writing 1,000 translations: the recipe's way against the Trainer's predict_with_generate, and one by one.

    python tests/benchmarks/translations.py --model out/translation --dataset multi30k --source en --target de

Ours sorts by length and takes 64 at a time; predict_with_generate takes 8 in the order of the rows, as the example
script does. All three write with the same settings (greedy, KV cache, the same longest length), and how many of their
texts are the same is printed: padding moves a logit by a rounding.
"""

import argparse
import tempfile
import time

import numpy as np
import torch
from transformers import DataCollatorForSeq2Seq, Seq2SeqTrainer, Seq2SeqTrainingArguments

from hf_lm.data.tables import load_table
from hf_lm.models.encoder_decoder import load_text_to_text
from hf_lm.tasks.translation import Translation, read_translation
from hf_lm.tokenization.tokenizer import load_tokenizer, set_pad


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="an encoder-decoder")
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--source", default="en")
    parser.add_argument("--target", default="de")
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=2)
    args = parser.parse_args()

    table = load_table(args.dataset)
    read_translation(table, source=args.source, target=args.target)
    table.rows["test"] = table.rows["test"][: args.rows]
    tokenizer = load_tokenizer(args.model)
    set_pad(tokenizer)
    model = load_text_to_text(args.model, tokenizer=tokenizer).eval()
    task = Translation(table, tokenizer, model, max_source_length=128, max_target_length=128)
    features = task.encoded["test"].features

    @torch.no_grad()
    def ours() -> list[str]:
        return task.write(model, "test", None)

    def trainer(folder: str) -> list[str]:
        settings = Seq2SeqTrainingArguments(
            folder, predict_with_generate=True, per_device_eval_batch_size=8, report_to="none", disable_tqdm=True
        )
        made = Seq2SeqTrainer(
            model,
            settings,
            data_collator=DataCollatorForSeq2Seq(tokenizer, model=model),
            processing_class=tokenizer,
        )
        ids = made.predict(features, max_new_tokens=task.generation.max_new_tokens, num_beams=1).predictions
        ids = np.where(ids == -100, tokenizer.pad_token_id, ids)
        return [text.strip() for text in tokenizer.batch_decode(ids, skip_special_tokens=True)]

    @torch.no_grad()
    def one_by_one() -> list[str]:
        texts = []
        for feature in features:
            ids = model.generate(torch.tensor([feature["input_ids"]]), generation_config=task.generation)
            texts.append(tokenizer.decode(ids[0], skip_special_tokens=True).strip())
        return texts

    with tempfile.TemporaryDirectory() as folder:
        for _ in range(args.rounds):
            seconds, texts = {}, {}
            for name, write in (("ours", ours), ("trainer", lambda: trainer(folder)), ("one by one", one_by_one)):
                began = time.perf_counter()
                texts[name] = write()
                seconds[name] = time.perf_counter() - began
                same = sum(a == b for a, b in zip(texts[name], texts["ours"], strict=True))
                print(f"{name:<10} {seconds[name]:7.1f} s, {same:,} of {len(features):,} texts as ours", flush=True)
            print(
                f"ours is {seconds['trainer'] / seconds['ours']:.1f} times as fast as predict_with_generate (aim 2.5) "
                f"and {seconds['one by one'] / seconds['ours']:.1f} times as one by one (aim 12)",
                flush=True,
            )


if __name__ == "__main__":
    main()
