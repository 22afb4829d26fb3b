"""A run proves itself: the silent errors of the field, looked for on the actual model, collator and first batches.

Each proof returns what it found; `prove` stops the run at the first that fails. They leave the model's weights, its
gradients and the random state as they were.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_lm.arguments import TrainingArguments
from hf_lm.data.batches import TokenId
from hf_lm.evaluation.likelihood import evaluating
from hf_lm.hub.credentials import printable
from hf_lm.hub.fresh_load import begin_fresh_load
from hf_lm.models.quantization import quantized_bits
from hf_lm.parsing.suggestions import did_you_mean

# How far the logits of two ways to compute a model may lie apart, as a share of the largest, by the bits of its base:
# 4 bits are multiplied out, and merged to the last digit; 8 bits round what they are multiplied with.
APART = {0: 1e-3, 4: 1e-3, 8: 0.1}

Begun = Callable[[], Callable[[], "Proof"]]  # begins a proof, and returns what waits for it

PROOFS = (  # of all tasks; which a run has follows from its task and model
    *("adapter_load_back", "label_coverage", "leakage", "learnable", "load_back", "loss_invariance", "merging"),
    *("packing_isolation", "reward", "sequence_log_probs", "starts_at_reference"),
    *("tokenizer_round_trip", "vocabulary"),
)


@dataclass(frozen=True)
class Proof:
    """What a proof found. `passed` is None when it was switched off."""

    passed: bool | None
    said: str
    largest_difference: float | None = None

    def report(self) -> dict[str, Any]:
        return {key: value for key, value in asdict(self).items() if value is not None or key == "passed"}


class ProvenTrainer(Protocol):
    """What proofs ask of a Trainer of transformers or TRL."""

    @property
    def model(self) -> PreTrainedModel: ...

    @property
    def args(self) -> TrainingArguments: ...

    @property
    def data_collator(self) -> Any: ...

    def compute_loss(self, model: Any, inputs: dict[str, Any], *, num_items_in_batch: Any = None) -> Any:
        """The loss of a batch, a tensor; transformers types it with the pair that `return_outputs` gives."""
        ...

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]: ...

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> Any: ...


def prove(
    proofs: dict[str, Callable[[], Proof]], *, skip: list[str], say: Callable[[str], None]
) -> dict[str, dict[str, Any]]:
    """Run proofs by name, each but those in `skip`. Raises ValueError with what differed when one fails."""
    found = {}
    for name, check in proofs.items():
        if name in skip:
            found[name] = Proof(None, "switched off").report()
            continue
        proof = check()
        if not proof.passed:
            raise ValueError(
                f"the proof {name} failed: {proof.said} (--skip_proofs {name} continues without this check)"
            )
        say(printable(f"  proved {name.replace('_', ' ')}: {proof.said}"))
        found[name] = proof.report()
    return found


def begin(proofs: dict[str, Begun], *, skip: list[str]) -> dict[str, Callable[[], Proof]]:
    """Begin the first proof that another process works on, for `prove` to wait for; the others begin in their turn.

    One at a time, because each holds a model.
    """
    first = next((name for name in proofs if name not in skip), None)
    return {name: start() if name == first else lambda start=start: start()() for name, start in proofs.items()}


def check_skipped(skip: Sequence[str], own: Iterable[str]) -> None:
    """Raise ValueError for a name in --skip_proofs that is no proof of this package's nor of the task's `own`."""
    known = {*PROOFS, *own}
    for name in skip:
        if name not in known:
            raise ValueError(
                f"--skip_proofs {name}: there is no such proof; there are {', '.join(sorted(known))}."
                f"{did_you_mean(name, known)}"
            )


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Without dropout, and with the mode, the gradients and the random state restored afterwards."""
    with evaluating(model), torch.random.fork_rng():
        try:
            yield
        finally:
            model.zero_grad(set_to_none=True)


def _where_it_is(trainer: ProvenTrainer, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A batch on the model's device: FSDP2 and DeepSpeed leave the model on the host until training begins."""
    return {key: value.to(trainer.model.device) for key, value in trainer._prepare_inputs(batch).items()}


def loss_invariance(trainer: ProvenTrainer, features: list[dict[str, Any]], *, tolerance: float = 1e-4) -> Proof:
    """One batch of n rows and n accumulated batches of 1 must give the same loss and the same gradients.

    Of rows with several labels the first loses a third, so that the rows differ in their number: a mean of means then
    shows. Each row is padded as the collator does it alone and among the others. A loss without labels is a mean over
    the rows of a batch, which the Trainer divides by the batches of a step. Differences are relative; gradients are
    compared as one vector.
    """
    model = trainer.model

    def accumulate(batches: list[dict[str, torch.Tensor]]) -> tuple[float, list[torch.Tensor]]:
        model.zero_grad(set_to_none=True)
        items = trainer._get_num_items_in_batch(batches, trainer.args.device)
        items = items.to(model.device) if isinstance(items, torch.Tensor) else items
        loss = 0.0
        for batch in batches:
            batch_loss = trainer.compute_loss(model, _where_it_is(trainer, batch), num_items_in_batch=items)
            if items is None:
                batch_loss = batch_loss / len(batches)
            batch_loss.backward()
            loss += batch_loss.item()
        return loss, [p.grad for p in model.parameters() if p.grad is not None]

    together = trainer.data_collator(features)
    one_by_one = [trainer.data_collator([feature]) for feature in features]
    if "labels" in together and together["labels"].ndim == 2 and len(features) > 1:
        for batch in (together, one_by_one[0]):
            labels = batch["labels"] = batch["labels"].clone()
            labels[0, : (labels[0] != -100).sum() // 3] = -100
    with untouched(model):
        loss, gradients = accumulate([together])
        loss_again, gradients_again = accumulate(one_by_one)
        difference = abs(loss - loss_again) / abs(loss)
        distance = sum(((a - b).float() ** 2).sum() for a, b in zip(gradients, gradients_again, strict=True)) ** 0.5
        size = sum((a.float() ** 2).sum() for a in gradients) ** 0.5
        worst = max(difference, float(distance / size))
    if quantized_bits(model) == 8:
        tolerance = max(tolerance, APART[8])
    n = len(features)
    said = (
        f"a batch of {n} and {n} accumulated batches of 1 give the loss {loss:.6f} and {loss_again:.6f}; "
        f"largest relative difference, gradients included, {worst:.1e}"
    )
    if worst >= tolerance:
        said += "; the loss is no sum over rows, or a row is read with its padding (XLNet's head) or with other rows"
    return Proof(worst < tolerance, said, worst)


def packing_isolation(
    model: PreTrainedModel, collate: Callable, feature: dict[str, Any], *, isolate: bool, tolerance: float = 1e-5
) -> Proof:
    """Editing one document of a block must leave the logits of the next one alone; without isolation, say how far not.

    `feature` is a block in which a document begins after the first position. The edit must also change the edited
    document's own logits, or nothing would have been shown; `tolerance` is a share of that change.
    """
    batch = collate([feature])
    ids = batch["input_ids"]  # (1, time)
    starts = feature["starts"]
    begin = int(starts[0])
    device = next(model.parameters()).device

    def logits(input_ids: torch.Tensor) -> torch.Tensor:
        inputs = {key: value for key, value in batch.items() if key != "labels"} | {"input_ids": input_ids}
        with torch.no_grad():
            return model(**{k: v.to(device) for k, v in inputs.items()}).logits.float()[0]  # (time, vocab)

    edited = ids.clone()
    # all of it: a convolution sees no further back than some tokens
    edited[0, :begin] = 2 + (ids[0, :begin] + 1) % (min(258, model.config.vocab_size) - 2)  # no pad
    with untouched(model):
        change = (logits(ids) - logits(edited)).abs()
    own, leak = float(change[:begin].max()), float(change[begin:].max())
    if own == 0:
        return Proof(False, "editing a document changed none of its own logits")
    if not isolate:
        said = f"packed documents see each other, as --packing concatenate asks: an edit moves the next by {leak:.2g}"
        return Proof(True, said, leak)
    said = f"editing one document of a block moves the logits of the next by {leak:.1e} (its own by {own:.2g})"
    if leak >= tolerance * own:
        said += (
            "; this model does not keep packed documents apart: use --packing concatenate, or in chat --packing False"
        )
    return Proof(leak < tolerance * own, said, leak)


def tokenizer_round_trip(
    tokenizer: PreTrainedTokenizerBase, texts: list[str], encode: Callable, *, rows: int, lossless: bool
) -> Proof:
    """Text must come back from its token ids, and no id may lie outside the model's `rows` embedding rows.

    A word-level tokenizer normalises text and has unknown words: there, text that has been through it once must come
    back unchanged.
    """
    unknown, total, largest = 0, 0, 0
    for text, ids in zip(texts, encode(texts), strict=True):
        ids = np.asarray(ids)
        largest, total = max(largest, int(ids.max(initial=0))), total + len(ids)
        back = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        if not lossless:
            unknown += int((ids == tokenizer.unk_token_id).sum())
            again = np.asarray(encode([back])[0])
            text, back = back, tokenizer.decode(again, skip_special_tokens=False)
        if back != text:
            at = next(
                (i for i, (a, b) in enumerate(zip(text, back, strict=False)) if a != b), min(len(text), len(back))
            )
            return Proof(
                False, f"{text[max(0, at - 10) : at + 20]!r} came back as {back[max(0, at - 10) : at + 20]!r}"
            )
    if largest >= rows:
        return Proof(False, f"the tokenizer gives id {largest}, the model has {rows} embedding rows")
    tokens, size = f"{total:,} tokens, each id below {rows}", sum(len(text.encode()) for text in texts)
    said = f"{size:,} bytes come back unchanged from {tokens}"
    if not lossless:
        said = f"{tokens}, {unknown / max(1, total):.1%} of them unknown words; decoded text is stable"
    return Proof(True, said)


def vocabulary(
    tokenizer: PreTrainedTokenizerBase, encoded: list[list[int]], *, rows: int, limit: float = 0.1
) -> Proof:
    """The tokenizer must know the text: no id outside the model's `rows` embedding rows, few unknown tokens."""
    ids = np.array([i for row in encoded for i in row], np.int64)
    if not len(ids):
        return Proof(False, "the tokenizer gives no ids for the text: its files are missing or of another model")
    if ids.max() >= rows:
        return Proof(False, f"the tokenizer gives id {ids.max()}, the model has {rows} embedding rows")
    unknown = 0.0 if tokenizer.unk_token_id is None else float((ids == tokenizer.unk_token_id).mean())
    said = f"{len(ids):,} tokens, each id below {rows}, {unknown:.1%} of them unknown"
    if unknown > limit:
        said += f"; above {limit:.0%} the model cannot read this text: take one made for its language"
    return Proof(unknown <= limit, said)


def leakage(shares: dict[str, float], *, limit: float = 0.1) -> Proof:
    """Held-out splits must not occur in the training text: no more than `limit` of their tokens, word for word."""
    said = " and ".join(f"{share:.1%} of {split}" for split, share in shares.items())
    said += " occur in train word for word, in runs of 50 tokens or more"
    worst = max(shares.values(), default=0.0)
    if worst > limit:
        said += f"; above {limit:.0%} a number on them says little: take the repetitions out of the data"
    return Proof(worst <= limit, said, worst)


def label_coverage(
    collate: Callable, features: list[dict[str, Any]], tokens: np.ndarray, *, end: int, pad: TokenId
) -> Proof:
    """The labels of the first blocks must be exactly their tokens, ends of documents included, and no padding."""
    labels = collate(features)["labels"].flatten().numpy()
    wrong = int((labels != tokens[: len(labels)]).sum())
    ends, expected = int((labels == end).sum()), int((tokens[: len(labels)] == end).sum())
    if wrong or ends != expected:
        return Proof(
            False, f"{wrong} of {len(labels)} labels differ from the text; {ends} of {expected} document ends"
        )
    if pad is not None and pad != end and (labels == pad).any():
        return Proof(False, f"{int((labels == pad).sum())} labels are padding")
    return Proof(
        True, f"{len(labels):,} labels are the text itself with its {ends} document ends, none of them padding"
    )


def learnable(trainer: ProvenTrainer, features: list[dict[str, Any]], *, steps: int = 4) -> Proof:
    """A few steps down the gradient of one batch must lower its loss."""
    model = trainer.model
    weights = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    batch = _where_it_is(trainer, trainer.data_collator(features))
    parameters = [p for p in model.parameters() if p.requires_grad]
    losses = []
    with untouched(model):
        rate = min(1e-3, 4 * trainer.args.learning_rate)
        optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.0)  # decay alone lowers a fresh loss
        for _ in range(steps + 1):
            loss = trainer.compute_loss(model, batch)
            losses.append(loss.item())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            for name, p in model.named_parameters():
                if name in weights:
                    p.copy_(weights[name])
    said = f"{steps} steps on one batch bring its loss from {losses[0]:.3f} to {losses[-1]:.3f}"
    return Proof(losses[-1] < losses[0], said)


def logits_of(model: nn.Module, inputs: dict[str, torch.Tensor]) -> np.ndarray:
    """A model's logits without dropout, in float32; start and end logits stacked."""
    device = next(model.parameters()).device
    with untouched(model), torch.no_grad():
        outputs = model(**{name: values.to(device) for name, values in inputs.items()})
        logits = outputs.logits if "logits" in outputs else torch.stack([outputs.start_logits, outputs.end_logits])
        return logits.float().cpu().numpy()


def merging(before: np.ndarray, after: np.ndarray, *, bits: int = 0) -> Proof:
    """Adding an adapter's updates to its base must leave the logits as they were.

    `bits` are those of the base that the updates were trained on. Merging into the checkpoint that this base was
    quantized from would move the logits by what quantization lost, in silence (peft#1043).
    """
    difference, size = float(np.abs(before - after).max()), float(np.abs(before).max())
    said = f"merging moves the logits by at most {difference:.1e}, of {size:.2g}"
    if bits:
        said += f"; the {bits}-bit base was dequantized for it"
    return Proof(difference < APART[bits] * max(1.0, size), said, difference)


def load_back(
    folder: str | Path,
    model: PreTrainedModel,
    inputs: dict[str, torch.Tensor],
    texts: list[str],
    encoded: list[Any],
    *,
    auto_class: str = "AutoModelForCausalLM",
    options: dict[str, Any] | None = None,
    targets: Sequence[str] = (),
    encoded_targets: Sequence[list[int]] = (),
) -> Callable[[], Proof]:
    """A fresh process that knows nothing of hf_lm must load the folder and give the same token ids and logits.

    It begins now, and what is returned waits for it. `inputs` are the model's, `encoded` the ids of `texts` without
    special tokens, `options` what loading needs to be told beside the name (an adapter carries neither its number of
    classes nor the padding of its base); an adapter's base is quantized if adapted_config.json says so. A model that
    carries its own code (hf_lm.models.recurrent) is loaded with it: that code was written by this run. `targets` are
    texts of which a second tokenizer, in `target_tokenizer`, must give the ids.
    """
    folder = Path(folder)
    adapter = (folder / "adapter_config.json").is_file()
    config = {} if adapter else json.loads((folder / "config.json").read_text())
    expected, options, bits = logits_of(model, inputs), dict(options or {}), 0
    if adapter and (folder / "adapted_config.json").is_file():
        adapted = json.loads((folder / "adapted_config.json").read_text(encoding="utf-8"))
        if quantization := adapted.get("quantization_config"):
            options["quantization_config"] = quantization
            bits = 4 if quantization["load_in_4bit"] else 8
    loading = begin_fresh_load(
        folder=str(folder),
        adapter=adapter,
        trust="auto_map" in config,
        auto_class=auto_class,
        options=options,
        inputs={name: tensor.tolist() for name, tensor in inputs.items()},
        texts=texts,
        targets=list(targets),
    )

    def compare() -> Proof:
        try:
            loaded_ids, loaded = loading()
        except ChildProcessError as error:
            return Proof(False, f"a fresh process could not load {folder}: {error}")
        if [list(map(int, row)) for row in (*encoded, *encoded_targets)] != loaded_ids:
            return Proof(False, f"the tokenizer loaded from {folder} gives other ids")
        apart = np.abs(loaded - expected)
        read = inputs.get("decoder_attention_mask", inputs.get("attention_mask"))
        if read is not None and read.shape == apart.shape[:2] and apart.ndim == 3:
            apart = apart[read.bool().cpu().numpy()]  # what stands at padding means nothing
        difference = float(apart.max())
        said = (
            f"a fresh process loads the folder and gives the same ids and logits (largest difference {difference:.1e})"
        )
        return Proof(difference < APART[bits] * max(1.0, float(np.abs(expected).max())), said, difference)

    return compare
