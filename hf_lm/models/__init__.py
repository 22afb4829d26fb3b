"""Models to train: a new GPT-2 by size (gpt2), recurrent networks (recurrent), checkpoints (loading).

Importing this package makes the recurrent model known to the auto classes.
"""

import hf_lm.models.recurrent  # noqa: F401
