"""Models to train: fresh GPT-2 by size (gpt2), recurrent networks (recurrent), those of others (checkpoints).

Importing it makes the recurrent model known to the auto classes.
"""

import hf_lm.models.recurrent  # noqa: F401
