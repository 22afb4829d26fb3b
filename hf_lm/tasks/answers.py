"""Tasks that measure a model beside the reference: the model as it came."""

import copy

from transformers import PreTrainedModel

from hf_lm.models.adapters import is_adapted, merged
from hf_lm.tasks.supervised import Supervised


class BesideReference(Supervised):
    """Keeps a frozen copy of the model as it came, complete where that is an adapter on a base."""

    _reference: PreTrainedModel | None = None

    @property
    def reference(self) -> PreTrainedModel:
        """The model as it came; `snapshot_reference` keeps it."""
        assert self._reference is not None, "snapshot_reference comes first"
        return self._reference

    def snapshot_reference(self, model: PreTrainedModel) -> None:
        """Keep a frozen copy of the model as it comes: the reference. Once."""
        if self._reference is None:
            copied = copy.deepcopy(model)
            copied = merged(copied) if is_adapted(copied) else copied
            self._reference = copied.eval().requires_grad_(False)
