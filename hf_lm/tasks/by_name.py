"""The table of tasks over labelled rows, by the names of their recipes."""

from hf_lm.tasks.question_answering import QuestionAnswering
from hf_lm.tasks.sentiment import Sentiment
from hf_lm.tasks.summarization import Summarization
from hf_lm.tasks.supervised import Supervised
from hf_lm.tasks.token_classification import TokenClassification
from hf_lm.tasks.translation import Translation

TASKS: dict[str, type[Supervised]] = {
    task.recipe: task for task in (Sentiment, QuestionAnswering, Translation, Summarization, TokenClassification)
}


def task_named(name: str) -> type[Supervised]:
    """The class of a task. Raises ValueError, with the names there are, for another name."""
    if name not in TASKS:
        raise ValueError(f"there is no task {name!r}; there are {', '.join(TASKS)}.")
    return TASKS[name]
