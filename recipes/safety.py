"""Measure bias, toxicity and memorised text of a model, and what a mitigation changes.

accelerate launch recipes/safety.py                                      # a small demo model and built-in sets
accelerate launch recipes/safety.py --model out/pretrain --stereotypes crows_pairs_anonymized.csv --update_card
accelerate launch recipes/safety.py --model out/pretrain --train_text texts/ --mitigate counterfactual bad_words
"""

from dataclasses import dataclass, field
from pathlib import Path

from accelerate.utils import set_seed

from hf_lm.arguments import TrainingArguments, bf16_is_fast, parse_arguments
from hf_lm.data.sources import load_corpus
from hf_lm.models.gpt2 import new_gpt2
from hf_lm.models.loading import load_causal_lm
from hf_lm.output_folder import prepare_output, remove_results, save_run
from hf_lm.safety.findings import Variant, leave_findings
from hf_lm.safety.mitigations import guards, train_on, training_texts
from hf_lm.safety.scorers import load_scorer, load_sentiment, train_scorer
from hf_lm.safety.suite import Suite, load_any
from hf_lm.tokenization.tokenizer import load_tokenizer, prepare_tokenizer


@dataclass
class Arguments:
    model: str = ""  # a causal or masked language model or a text classifier; "" trains a small one on built-in text
    reference: str = ""  # another one to compare with, such as one that recipes/preference.py made
    stereotypes: list[str] = field(default_factory=list)  # CrowS-Pairs, StereoSet or WinoBias files; none: built-in
    prompts: list[str] = field(default_factory=list)  # BOLD, HolisticBias, RealToxicityPrompts, a table or lines
    max_prompts: int = 400  # of a file; 0 takes all
    samples: int = 25  # continuations of a prompt
    max_new_tokens: int = 20  # of a continuation
    train_text: str = ""  # what the model was trained on, to look for it, and what a mitigation trains on
    document_start: str = ""  # regular expression of the line that begins a document of it
    scorer: str = ""  # a text classifier for toxicity; "" counts words
    scorer_label: list[str] = field(default_factory=list)  # its labels that mean toxic
    scorer_data: str = ""  # or a labelled file to train one on
    sentiment: str = ""  # a text classifier for sentiment; "words" counts words of two lists; "" measures none
    sentiment_label: list[str] = field(default_factory=list)  # its labels that mean positive
    mitigate: list[str] = field(default_factory=list)  # bad_words best_of, and counterfactual filter, which train
    swap: list[str] = field(default_factory=lambda: ["gender"])  # also religion, ethnicity: for counterfactual
    best_of: int = 4  # texts of which the least toxic is kept
    update_card: bool = False  # put the findings into the card of --model


def main(args: Arguments, training_args: TrainingArguments) -> dict:
    out, device = Path(training_args.output_dir), training_args.device
    with training_args.main_process_first():
        prepare_output(out, resume=False, overwrite=training_args.overwrite_output_dir)
        remove_results(out, checkpoints=False)
        save_run(training_args.run, out)
    set_seed(training_args.seed)

    # what is measured with
    scorer = load_scorer(args.scorer, labels=args.scorer_label, device=device) if args.scorer else None
    if args.scorer_data:
        scorer = train_scorer(args.scorer_data, out / "scorer", like=training_args, labels=args.scorer_label)
    sentiment = load_sentiment(args.sentiment, labels=args.sentiment_label, device=device) if args.sentiment else None
    text = args.train_text or ("" if args.model else "demo")
    corpus = load_corpus(text, document_start=args.document_start) if text else None
    suite = Suite(
        stereotypes=args.stereotypes, prompts=args.prompts, max_prompts=args.max_prompts, corpus=corpus, scorer=scorer,
        sentiment=sentiment, samples=args.samples, max_new_tokens=args.max_new_tokens, seed=training_args.seed,
    )  # fmt: skip
    at_decoding = guards(args.mitigate, scorer=suite.scorer, best_of=args.best_of)
    texts = training_texts(args.mitigate, corpus, scorer=suite.scorer, swap=args.swap)

    if not args.model:
        tokenizer = prepare_tokenizer("bpe", corpus, vocab_size=4096, min_frequency=2, max_bytes=8_000_000)
        fresh = {"learning_rate": 1.5e-2, "muon_learning_rate": 6e-3, "max_steps": 100}
        train_on(corpus, new_gpt2(tokenizer), tokenizer, out / "demo", like=training_args, **fresh)

    # the model, another, the model under guards, and the model trained further
    name = args.model or str(out / "demo")
    model, tokenizer = load_any(name, device=device)
    variants = [Variant("model", suite.measure(model, tokenizer), made=name)]
    if args.reference:
        found = suite.measure(*load_any(args.reference, device=device))
        variants.append(Variant("reference", found, against="model", made=args.reference))
    for kind, (guard, made) in at_decoding.items():
        variants.append(Variant(kind, suite.measure(model, tokenizer, guard=guard), against="model", made=made))
    for kind, (text, said) in texts.items():
        again = load_causal_lm(name, tokenizer=tokenizer)
        found = suite.measure(train_on(text, again, load_tokenizer(name), out / kind, like=training_args), tokenizer)
        against = "model" if kind == "continued" else "continued"
        variants.append(Variant(kind, found, against=against, made=f"trained further {said()}"))

    return leave_findings(variants, suite, out, card_of=name if args.update_card else "")


if __name__ == "__main__":
    main(
        *parse_arguments(
            Arguments, TrainingArguments, output_dir="out/safety", learning_rate=1e-3, muon_learning_rate=1e-3,
            lr_scheduler_type="warmup_stable_decay", warmup_steps=10, max_steps=200, per_device_train_batch_size=16,
            weight_decay=0.1, bf16=bf16_is_fast(), logging_steps=10, save_strategy="no",
        )
    )  # fmt: skip
