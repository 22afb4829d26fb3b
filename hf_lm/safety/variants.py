"""A model, a reference, the model under guards and trained further: each measured by the same suite."""

from collections.abc import Sequence
from pathlib import Path

from hf_lm.arguments import TrainingArguments
from hf_lm.data.sources import Corpus
from hf_lm.models.gpt2 import new_gpt2
from hf_lm.models.loading import load_causal_lm
from hf_lm.output_folder import prepare_output, remove_results, save_run
from hf_lm.safety.findings import Variant, report_of
from hf_lm.safety.mitigations import guards, train_on, training_texts
from hf_lm.safety.suite import Suite, kind_of, load_any
from hf_lm.tokenization.tokenizer import load_tokenizer, prepare_tokenizer

# Of a demo model: a randomly initialised one needs higher rates than a mitigation.
DEMO = {"learning_rate": 1.5e-2, "muon_learning_rate": 6e-3, "max_steps": 100}


def open_folder(training_args: TrainingArguments, *, card_of: str = "") -> Path:
    """The output folder, made, without earlier results and with run.yaml.

    Raises FileExistsError or OSError, also where `card_of`, into whose card the findings are to go, has none.
    """
    if card_of:
        report_of(card_of)
    folder = Path(training_args.output_dir)
    with training_args.main_process_first():
        prepare_output(folder, resume=False, overwrite=training_args.overwrite_output_dir)
        remove_results(folder, checkpoints=False)
        save_run(training_args.run, folder)
    return folder


def train_demo_model(corpus: Corpus, folder: Path, *, like: TrainingArguments) -> str:
    """Train a small GPT-2 on a corpus into a folder; returns its name."""
    tokenizer = prepare_tokenizer("bpe", corpus, vocab_size=4096, min_frequency=2, max_bytes=8_000_000)
    train_on(corpus, new_gpt2(tokenizer), tokenizer, folder, like=like, **DEMO)
    return str(folder)


class Mitigations:
    """What `names` ask for, checked before anything is measured: guards at decoding, and texts to train further on.

    Raises ValueError for an unknown name, and where there is no text to train on.
    """

    def __init__(
        self, names: Sequence[str], suite: Suite, *, swap: Sequence[str] = ("gender",), best_of: int = 4
    ) -> None:
        self.names = names
        self.guards = guards(names, scorer=suite.scorer, best_of=best_of)
        self.texts = training_texts(names, suite.corpus, scorer=suite.scorer, swap=swap)


def measure_variants(
    suite: Suite, name: str, mitigations: Mitigations, folder: Path, *, reference: str = "", like: TrainingArguments
) -> list[Variant]:
    """Measure a model, a reference beside it, the model under each guard, and trained further on each text.

    A trained model is compared with one that was trained further on the text as it is, for the same number of steps.
    Raises OSError or ValueError, before anything is measured, for a model that cannot be loaded or mitigated.
    """
    model, tokenizer = load_any(name, device=like.device)
    if mitigations.names and (kind := kind_of(model)) != "causal language model":
        raise ValueError(
            f"--mitigate {mitigations.names[0]} changes what a causal language model writes, and {name} is a {kind}."
        )
    others = [load_any(reference, device=like.device)] if reference else []  # before hours of measuring
    variants = [Variant("model", suite.measure(model, tokenizer), made=name)]
    if others:
        variants.append(Variant("reference", suite.measure(*others.pop()), against="model", made=reference))
    for kind, (guard, made) in mitigations.guards.items():
        measured = suite.measure(model, tokenizer, guard=guard)
        variants.append(Variant(kind, measured, against="model", made=made))
    for kind, (text, description) in mitigations.texts.items():
        trained = train_on(
            text, load_causal_lm(name, tokenizer=tokenizer), load_tokenizer(name), folder / kind, like=like
        )
        against = "model" if kind == "continued" else "continued"
        measured = suite.measure(trained, tokenizer)
        variants.append(Variant(kind, measured, against=against, made=f"trained further {description()}"))
    return variants
