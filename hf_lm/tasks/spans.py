"""From start and end logits to spans: the likeliest of all, and whether any is likelier than none."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F

from hf_lm.evaluation.metrics import answer_score, lack_spaces

LONGEST_ANSWER = 30  # tokens, as the SQuAD scripts have it


def best_spans(
    start: torch.Tensor, end: torch.Tensor, *, first: torch.Tensor, length: torch.Tensor, longest: int = LONGEST_ANSWER
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The likeliest span of each row: (score, first token, last token), each (rows,).

    `start`, `end` are logits (rows, time); only tokens from `first` on, `length` of them, may be in a span, and no
    more than `longest` in a row.
    """
    scores, start = _span_scores(start, end, first, length, longest)
    score, last = scores.max(dim=1)
    return score, _first_tokens(start, last[:, None], longest)[:, 0], last


def top_spans(
    start: torch.Tensor, end: torch.Tensor, *, first: torch.Tensor, length: torch.Tensor, longest: int, count: int
) -> list[tuple[list[float], list[int], list[int], float]]:
    """Per row the `count` likeliest spans of different ends: scores, first and last tokens; and none's score.

    A row of fewer tokens has fewer spans.
    """
    scores, inside = _span_scores(start, end, first, length, longest)
    best, last = scores.topk(min(count, scores.shape[1]), dim=1)
    begins, null = _first_tokens(inside, last, longest), (start[:, 0] + end[:, 0]).tolist()
    found = [part.tolist() for part in (best, begins, last)]
    sizes = length.clamp(max=count).tolist()
    return [(*(part[row][:size] for part in found), null[row]) for row, size in enumerate(sizes)]


def _span_scores(
    start: torch.Tensor, end: torch.Tensor, first: torch.Tensor, length: torch.Tensor, longest: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """For each last token the best score of a span, and the start logits out of reach masked, (rows, time) each.

    The best start is a maximum over the places before an end, found by doubling: no loop over spans.
    """
    places = torch.arange(start.shape[1], device=start.device)
    inside = (places >= first[:, None]) & (places < (first + length)[:, None])
    start, end = (logits.masked_fill(~inside, -1e30) for logits in (start, end))
    before, covered = start, 1  # the maximum of the last `covered` starts
    while covered < longest:
        step = min(covered, longest - covered)
        before = torch.maximum(before, F.pad(before, (step, 0), value=-1e30)[:, : before.shape[1]])
        covered += step
    return before + end, start


def _first_tokens(start: torch.Tensor, last: torch.Tensor, longest: int) -> torch.Tensor:
    """The first token of the best span that ends at each of `last`, (rows, ends)."""
    places = last[..., None] - torch.arange(longest - 1, -1, -1, device=start.device)  # (rows, ends, longest)
    logits = start[:, None].expand(-1, last.shape[1], -1).gather(2, places.clamp(min=0))
    best = logits.masked_fill(places < 0, -1e31).argmax(-1, keepdim=True)
    return places.gather(2, best)[..., 0]


def best_threshold(margins: np.ndarray, texts: Sequence[str], answers: Sequence[Sequence[str]]) -> float:
    """The margin over no answer above which answering gives the highest F1 over these questions."""
    by_character = lack_spaces(answers)
    pairs = zip(texts, answers, strict=True)
    answered = np.array([answer_score(text, right, by_character=by_character)[1] for text, right in pairs])
    silent = np.array([answer_score("", right, by_character=by_character)[1] for right in answers])
    order = np.argsort(-margins)
    # Answering the k likeliest and no other: F1 of these plus the silence of the rest.
    totals = np.concatenate([[0], np.cumsum(answered[order])]) + np.concatenate(
        [np.cumsum(silent[order][::-1])[::-1], [0]]
    )
    ranked = margins[order]
    bounds = np.concatenate([[ranked[0] + 1.0], (ranked[:-1] + ranked[1:]) / 2, [ranked[-1] - 1.0]])
    possible = np.concatenate([[True], ranked[:-1] > ranked[1:], [True]])  # equal margins are answered together
    return float(bounds[np.argmax(np.where(possible, totals, -1.0))])
