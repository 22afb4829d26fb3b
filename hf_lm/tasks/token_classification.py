"""Token classification: a tag for each word, of which named entities are made."""

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, cast

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_lm.data.batches import Processes
from hf_lm.data.tables import Row, Table
from hf_lm.evaluation.intervals import Estimate
from hf_lm.tasks.entities import by_type, entities_of, entity_estimates, sentence_f1
from hf_lm.tasks.losses import Batch, WithLogits, label_loss
from hf_lm.tasks.proofs import Proof
from hf_lm.tasks.rendering import Part, token_pieces
from hf_lm.tasks.rows import Encoded, Scores, room_beside
from hf_lm.tasks.start import Start
from hf_lm.tasks.supervised import Supervised
from hf_lm.tasks.tagged_words import load_tagged_words, read_tagged_words, words_in
from hf_lm.tokenization.tokenizer import encode_documents, encode_with_offsets, special_tokens_around

NONE = "none"  # what stands for no entity, in answers and for a reader
SHOWN = 200  # training rows whose labels are proved


@dataclass
class EncodedWords(Encoded):
    """Features with the words that their labels are of, in the order of the labels."""

    words: list[list[int]] = field(default_factory=list)


class TokenClassification(Supervised):
    """A tag per word, by a head on the word's first token; its other tokens and special ones have the label -100.

    Rows are those of `read_tagged_words`. `labels`: the tags, in the order of the head. `max_length`: tokens of a
    sentence, special ones included; words beyond it have no label, and O is predicted for them.
    """

    recipe, kind, pipeline_tag = "token_classification", "model that finds named entities", "token-classification"
    auto_class = "AutoModelForTokenClassification"
    metric_names = ("f1", "precision", "recall")
    main_metric, unit = metric_names[0], "sentences"
    columns = ("text_column", "label_column")
    settings: ClassVar = {"max_length": 256}
    pipeline_options: ClassVar = {"ignore_labels": []}  # every token with its tag: see prediction_of
    read = staticmethod(read_tagged_words)
    loss = staticmethod(label_loss)

    def __init__(
        self,
        table: Table,
        tokenizer: PreTrainedTokenizerBase,
        *,
        labels: Sequence[str],
        max_length: int,
        drop_overlap: bool = False,
    ) -> None:
        self.labels, self.max_length = list(labels), max_length
        self.index = {label: i for i, label in enumerate(self.labels)}
        self.how = f"a tag for each word, of {', '.join(self.labels[:10])}"
        self.frame = special_tokens_around(tokenizer, causal=False)  # as who loads the tokenizer will have it
        super().__init__(table, tokenizer, drop_overlap=drop_overlap)
        tokenizer.model_max_length = max_length  # at which a pipeline truncates, as these rows were

    # Before there is a model

    @classmethod
    def load(cls, dataset: str, **columns: str) -> Table:
        return load_tagged_words(dataset, **columns)

    @classmethod
    def from_start(
        cls, table: Table, start: Start, *, max_length: int, drop_overlap: bool = False
    ) -> "TokenClassification":
        if start.as_text:
            raise ValueError(
                "a tag for each word takes a head for token classification: give an encoder or a decoder, such as "
                "BERT or GPT-2, that has one or that this recipe trains; an encoder-decoder has none."
            )
        options: dict[str, Any] = {"labels": start.labels, "max_length": start.at_most(max_length)}
        return cls(table, start.tokenizer, drop_overlap=drop_overlap, **options)

    @classmethod
    def estimates_of(cls, examples: Sequence[dict[str, Any]], labels: Sequence[str]) -> dict[str, Estimate]:
        return entity_estimates([row["predicted_tags"] for row in examples], [row["tags"] for row in examples])

    @classmethod
    def instruction(
        cls, train: Sequence[Row], labels: Sequence[str], columns: Mapping[str, str], few_shot: int
    ) -> str:
        types = sorted({label[2:] for label in labels if label != "O"})
        return (
            "List the entities of the text in their order, one a line, each as its type, a colon and its words as "
            f"they stand. The types are {', '.join(types)}. Say {NONE} where the text has none."
        )

    @classmethod
    def as_answer(cls, row: Row) -> str:
        found = entities_of(row["tags"])
        lines = [f"{kind}: {_words(row, first, last)}" for kind, first, last in found]
        return "\n".join(lines) or NONE

    @classmethod
    def examples_of(
        cls, rows: Sequence[Row], answers: Sequence[str], labels: Sequence[str]
    ) -> tuple[list[dict[str, Any]], int]:
        """Lines that name no type, or words that the text does not have, are left out: they find no entity."""
        types = {label[2:].casefold(): label[2:] for label in labels if label != "O"}
        tagged = [tags_from_answer(row, answer, types) for row, answer in zip(rows, answers, strict=True)]
        invalid = sum(
            set(tags) == {"O"} and answer.strip().casefold().rstrip(".") != NONE
            for tags, answer in zip(tagged, answers, strict=True)
        )
        return examples_from(rows, tagged), invalid

    @classmethod
    def prediction_of(cls, given: str, output: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """{"prediction": [{"entity", "text", "start", "end", "score"}]}; the score is the lowest of its words."""
        spans, tags, scores, last = words_in(given), [], [], -1
        for start, end in spans:
            at = next((i for i, token in enumerate(output) if token["start"] < end and token["end"] > start), None)
            tag = "O" if at is None else output[at]["entity"]
            if at == last and tag != "O":  # two words in one token are one entity
                tag = f"I-{tag[2:]}"
            tags.append(tag)
            scores.append(0.0 if at is None else float(output[at]["score"]))
            last = at
        found = []
        for kind, first, end in entities_of(tags):
            begin, stop = spans[first][0], spans[end][1]
            score = min(scores[first : end + 1])
            found.append({"entity": kind, "text": given[begin:stop], "start": begin, "end": stop, "score": score})
        return {"prediction": found}

    # Rows and answers

    def encode(self, rows: Sequence[Row]) -> EncodedWords:
        encoded, frame = EncodedWords(), self.frame
        room = room_beside(len(frame.before) + len(frame.after), self.max_length, "--max_length")
        for row, (ids, firsts) in zip(rows, first_tokens(self.tokenizer, rows), strict=True):
            input_ids = [*frame.before, *encoded.truncated(ids, room), *frame.after]
            kept = [(word, first) for word, first in enumerate(firsts) if first is not None and first < room]
            labels = [-100] * len(input_ids)
            for word, first in kept:
                labels[len(frame.before) + first] = self.index[row["tags"][word]]
            encoded.features.append({"input_ids": input_ids, "labels": labels})
            encoded.words.append([word for word, _ in kept])
        return encoded

    def labelled_words(self, split: str) -> list[list[int]]:
        """The words of each row that have a label."""
        return cast(EncodedWords, self.encoded[split]).words

    def predict(self, model: PreTrainedModel, split: str, accelerator: Processes | None) -> Sequence[Any]:
        """(tag of each word that has a label, summed loss of the labels in nats) per row."""

        def tags(outputs: WithLogits, batch: Batch, rows: list[int]) -> list[tuple[list[int], float]]:
            labels, log_probs = batch["labels"], outputs.logits.float().log_softmax(-1)  # (rows, time, tags)
            of_labels = -log_probs.gather(2, labels.clamp(min=0)[..., None])[..., 0]
            best = log_probs.argmax(-1)
            kept = labels != -100
            return [(best[i][kept[i]].tolist(), float(of_labels[i][kept[i]].double().sum())) for i in range(len(rows))]

        return self.map_batches(tags, model, split, accelerator)

    def score(self, split: str, answers: Sequence[Any]) -> Scores:
        rows, words = self.table.rows[split], self.labelled_words(split)
        tagged = [["O"] * len(row["tags"]) for row in rows]
        for tags, places, (predicted, _) in zip(tagged, words, answers, strict=True):
            for word, tag in zip(places, predicted, strict=True):
                tags[word] = self.labels[int(tag)]
        labels = sum(map(len, words))
        return self.scores(split, tagged, sum(nats for _, nats in answers) / max(1, labels))

    def scores(self, split: str, tagged: Sequence[Sequence[str]], loss: float | None) -> Scores:
        examples = examples_from(self.table.rows[split], tagged)
        return Scores(self.estimates_of(examples, self.labels), examples, loss)

    def baseline(self, split: str) -> tuple[str, Scores]:
        """The most frequent tag of each word in train, and O for a word that train has not."""
        seen: dict[str, Counter] = defaultdict(Counter)
        for row in self.table.rows["train"]:
            for word, tag in zip(words_of(row), row["tags"], strict=True):
                seen[word][tag] += 1
        best = {word: max(counts, key=lambda tag: (counts[tag], tag == "O")) for word, counts in seen.items()}
        rows = self.table.rows[split]
        return "most frequent tag", self.scores(
            split, [[best.get(w, "O") for w in words_of(row)] for row in rows], None
        )

    def label_counts(self) -> dict[str, dict[str, int]]:
        types = sorted({label[2:] for label in self.labels if label != "O"})
        counts = {
            split: Counter(kind for row in rows for kind, _, _ in entities_of(row["tags"]))
            for split, rows in self.table.rows.items()
        }
        return {split: {kind: counted[kind] for kind in types} for split, counted in counts.items()}

    def report(self, measured: Mapping[str, Scores]) -> dict[str, Any]:
        *_, last = measured.values()
        classes = by_type([e["predicted_tags"] for e in last.examples], [e["tags"] for e in last.examples])
        return super().report(measured) | {"classes": classes}

    def label_proof(self) -> Proof:
        """From a labelled token to the next, the tokens must be the word that the table gives the label's tag."""
        rows, features = self.table.rows["train"][:SHOWN], self.train_dataset[:SHOWN]
        unknown, special, shown = self.tokenizer.unk_token_id, set(self.tokenizer.all_special_ids), ""
        labelled = rest = 0
        for row, feature, numbers in zip(rows, features, self.labelled_words("train"), strict=False):
            ids, labels, words = feature["input_ids"], feature["labels"], words_of(row)
            places = [i for i, label in enumerate(labels) if label != -100]
            for number, begin, end in zip(numbers, places, [*places[1:], len(ids)], strict=True):
                pieces = [i for i in ids[begin:end] if i not in special or i == unknown]
                tag, text = self.labels[labels[begin]], str(self.tokenizer.decode(pieces))
                if tag != row["tags"][number]:
                    return Proof(
                        False, f"{words[number]!r} has the label {tag}, and {row['tags'][number]} in the table"
                    )
                last = end == len(ids)  # of a sentence that was cut, the word may be cut too
                if unknown not in pieces and not _same_word(text, words[number], beginning=last):
                    return Proof(False, f"the tokens at the label of {words[number]!r} are {text!r}")
                labelled, rest = labelled + 1, rest + len(pieces) - 1
                if len(pieces) > 1 and tag != "O" and not shown:
                    first, *more = (str(self.tokenizer.decode([i])).strip() for i in pieces)
                    shown = f"; {words[number]!r} is {first!r} with {tag}, and {'+'.join(more)!r} without"
        return Proof(
            True,
            f"{labelled:,} words of {len(rows)} rows have the tag of the table on their first token, and their other "
            f"{rest:,} tokens no label{shown}",
        )

    def render_row(self, row: dict[str, Any]) -> list[Part]:
        ids, labels = row["input_ids"], row["labels"]
        tags = [self.labels[int(label)] for label in labels if label != -100]
        pieces = token_pieces(self.tokenizer, ids, [label != -100 for label in labels])
        return [Part("reads", pieces), Part("learns", text=" ".join(tags))]


def first_tokens(tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row]) -> list[tuple[list[int], list[int | None]]]:
    """The token ids of each row, and which of them is the first of each word; None for a word that has no token.

    A text is encoded as a whole, as it is in use. Where a token would hold the end of a word and the beginning of the
    next, as in scripts without spaces, each word is encoded by itself.
    """
    found = []
    for row, (ids, offsets) in zip(rows, encode_with_offsets(tokenizer, [row["text"] for row in rows]), strict=True):
        starts, ends = np.array(row["spans"]).T
        firsts = np.searchsorted(offsets[:, 1], starts, side="right") if len(ids) else np.zeros(len(starts), int)
        inside = [place < len(ids) and offsets[place, 0] < end for place, end in zip(firsts, ends, strict=True)]
        places = [int(place) if has else None for place, has in zip(firsts, inside, strict=True)]
        used = [place for place in places if place is not None]
        reached = [(place, end) for place, end in zip(firsts[1:], ends[:-1], strict=True) if place < len(ids)]
        if len(set(used)) == len(used) and not any(offsets[place, 0] < end for place, end in reached):
            found.append((ids, places))
            continue
        before = [0, *ends[:-1].tolist()]
        parts = encode_documents(tokenizer, [row["text"][a:b] for a, b in zip(before, ends, strict=True)])
        lengths = np.cumsum([0, *map(len, parts)]).tolist()
        places = [begin if part else None for begin, part in zip(lengths, parts, strict=False)]
        found.append(([i for part in parts for i in part], places))
    return found


def words_of(row: Row) -> list[str]:
    return [row["text"][start:end] for start, end in row["spans"]]


def _words(row: Row, first: int, last: int) -> str:
    return row["text"][row["spans"][first][0] : row["spans"][last][1]]


def examples_from(rows: Sequence[Row], tagged: Sequence[Sequence[str]]) -> list[dict[str, Any]]:
    """Rows and the tags predicted for them as rows of predictions.jsonl; reference and prediction are for a reader."""
    return [
        {
            "input": row["text"],
            "reference": _shown(row, row["tags"]),
            "prediction": _shown(row, tags),
            "words": words_of(row),
            "tags": row["tags"],
            "predicted_tags": list(tags),
            "score": sentence_f1(tags, row["tags"]),
        }
        for row, tags in zip(rows, tagged, strict=True)
    ]


def _shown(row: Row, tags: Sequence[str]) -> str:
    return ", ".join(f"{_words(row, first, last)} ({kind})" for kind, first, last in entities_of(tags)) or NONE


def tags_from_answer(row: Row, answer: str, types: Mapping[str, str]) -> list[str]:
    """The tags of a row's words by the lines of an answer, `TYPE: words`; each is looked for after the one before."""
    words = [word.casefold() for word in words_of(row)]
    tags, begin = ["O"] * len(words), 0
    for line in answer.splitlines():
        kind, _, text = line.strip(" -*•").partition(":")
        kind, text = types.get(kind.strip().casefold(), ""), "".join(text.split()).casefold()
        if not kind or not text:
            continue
        places = [*range(begin, len(words)), *range(begin)]
        for first in places:
            last, joined = first, words[first]
            while len(joined) < len(text) and last + 1 < len(words):
                last += 1
                joined += words[last]
            if joined == text and set(tags[first : last + 1]) == {"O"}:
                tags[first : last + 1] = [f"B-{kind}", *[f"I-{kind}"] * (last - first)]
                begin = last + 1
                break
    return tags


def _same_word(text: str, word: str, *, beginning: bool) -> bool:
    """Whether decoded tokens are a word, but for case, accents and spaces, which some tokenizers change."""
    ours, theirs = (_plain(each) for each in (text, word))
    return ours == theirs or (beginning and theirs.startswith(ours.rstrip("�")))


def _plain(text: str) -> str:
    text = re.sub(r"\s", "", unicodedata.normalize("NFKD", text).casefold())
    return "".join(c for c in text if not unicodedata.combining(c))
