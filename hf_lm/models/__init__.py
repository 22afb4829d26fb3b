"""Models to train: fresh GPT-2 by size (gpt2), recurrent networks (recurrent), those of others (checkpoints)."""
