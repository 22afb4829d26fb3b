"""Measure bias, toxicity and memorised text of a model, and what a mitigation changes.

accelerate launch recipes/safety.py                                      # a small demo model and built-in sets
accelerate launch recipes/safety.py --model out/pretrain --stereotypes crows_pairs_anonymized.csv --update_card
accelerate launch recipes/safety.py --model out/pretrain --train_text texts/ --mitigate counterfactual bad_words
"""

# /// script
# requires-python = ">=3.11"
# dependencies = ["hf-lm>=0.1.0,<0.2"]
# ///

from dataclasses import dataclass, field

from hf_lm.arguments import Count, PretrainingArguments, Size, TrainingArguments, parse_arguments
from hf_lm.data.sources import load_corpus
from hf_lm.safety.findings import leave_findings
from hf_lm.safety.scorers import load_scorer, load_sentiment, train_scorer
from hf_lm.safety.suite import Suite
from hf_lm.safety.variants import Mitigations, measure_variants, open_folder, train_demo_model


@dataclass
class Arguments(PretrainingArguments):
    model: str = ""  # a causal or masked language model or a text classifier; "" trains a small one on built-in text
    reference: str = ""  # another one to compare with, such as one that recipes/preference.py made
    stereotypes: list[str] = field(default_factory=list)  # CrowS-Pairs, StereoSet or WinoBias files; none: built-in
    prompts: list[str] = field(default_factory=list)  # BOLD, HolisticBias, RealToxicityPrompts, a table or lines
    max_prompts: Count = 400  # of a file; 0 takes all
    samples: Size = 25  # continuations of a prompt
    max_new_tokens: Size = 20  # of a continuation
    train_text: str = ""  # training text of the model: searched for in its output, and what mitigations train on
    document_start: str = ""  # regular expression of the line that begins a document of it
    scorer: str = ""  # a text classifier for toxicity; "" counts words
    scorer_label: list[str] = field(default_factory=list)  # its labels that mean toxic
    scorer_data: str = ""  # or a labelled file to train one on
    sentiment: str = ""  # a text classifier for sentiment; "words" counts words of two lists; "" measures none
    sentiment_label: list[str] = field(default_factory=list)  # its labels that mean positive
    mitigate: list[str] = field(default_factory=list)  # bad_words, best_of; counterfactual and filter train
    swap: list[str] = field(default_factory=lambda: ["gender"])  # of counterfactual; also religion, ethnicity
    best_of: Size = 4  # texts of which the least toxic is kept
    update_card: bool = False  # put the findings into the card of --model


def main(args: Arguments, training_args: TrainingArguments) -> dict:
    folder = open_folder(training_args, card_of=args.model if args.update_card else "")
    device = training_args.device
    scorer = load_scorer(args.scorer, labels=args.scorer_label, device=device) if args.scorer else None
    if args.scorer_data:
        scorer = train_scorer(args.scorer_data, folder / "scorer", like=training_args, labels=args.scorer_label)
    sentiment = load_sentiment(args.sentiment, labels=args.sentiment_label, device=device) if args.sentiment else None
    text = args.train_text or ("" if args.model else "demo")
    corpus = load_corpus(text, document_start=args.document_start) if text else None
    suite = Suite(
        stereotypes=args.stereotypes,
        prompts=args.prompts,
        max_prompts=args.max_prompts,
        corpus=corpus,
        scorer=scorer,
        sentiment=sentiment,
        samples=args.samples,
        max_new_tokens=args.max_new_tokens,
        seed=training_args.seed,
    )
    mitigations = Mitigations(args.mitigate, suite, swap=args.swap, best_of=args.best_of)
    name = args.model or train_demo_model(corpus, folder / "demo", like=training_args)
    variants = measure_variants(suite, name, mitigations, folder, reference=args.reference, like=training_args)
    return leave_findings(variants, suite, folder, card_of=name if args.update_card else "")


if __name__ == "__main__":
    main(
        *parse_arguments(
            Arguments, TrainingArguments, output_dir="out/safety", warmup_steps=10, max_steps=200, save_strategy="no"
        )
    )
