"""The metrics of hf_lm.evaluation.metrics as `evaluate.Metric`s: offline, and no code is downloaded.

`compute`, `add_batch` and `evaluate.combine` work as with any other. The library itself takes the numbers from
hf_lm.evaluation.metrics, without the seconds that importing `evaluate` costs.
"""

from typing import Any

import datasets
import evaluate

from hf_lm.evaluation import metrics

STRING = datasets.Value("string")


class _Metric(evaluate.Metric):
    """`compute` gives the values of the estimates of `measure`, which takes the same options."""

    measure: type
    columns: dict[str, Any]

    def __init__(self, **options: object) -> None:
        self.measured = self.measure(**options)  # before the parent asks for _info
        super().__init__(keep_in_memory=True)

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=self.measure.__doc__ or "", citation="", features=datasets.Features(self.columns)
        )

    def _compute(
        self, *, predictions: object = None, references: object = None, **options: object
    ) -> dict[str, float]:
        estimates = self.measured.estimates(predictions, references, **options)
        return {name: estimate.value for name, estimate in estimates.items()}


class Classification(_Metric):
    measure = metrics.Classification
    columns = {"predictions": datasets.Value("int64"), "references": datasets.Value("int64")}  # noqa: RUF012


class _Texts(_Metric):
    columns = {"predictions": STRING, "references": datasets.Sequence(STRING)}  # noqa: RUF012


class Translation(_Texts):
    measure = metrics.Translation


class Summarization(_Texts):
    measure = metrics.Summarization


class QuestionAnswering(_Texts):
    measure = metrics.QuestionAnswering
