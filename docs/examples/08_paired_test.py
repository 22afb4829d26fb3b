"""A paired test: are these models better than one another on the same examples, or is it noise?"""

import numpy as np

from hf_lm.evaluation.compare import compare
from hf_lm.evaluation.intervals import mean

rng = np.random.default_rng(0)
hard = rng.normal(size=300)  # what makes an example hard for every model
scores = {"a": hard + rng.normal(size=300), "b": hard + rng.normal(size=300) + 0.4, "c": hard + rng.normal(size=300)}
for pair in compare({name: mean(values) for name, values in scores.items()}, "score"):
    print(f"{pair.model_a} or {pair.model_b}: {pair.better or 'no difference'} (p {pair.p_corrected:.3f}, corrected)")
