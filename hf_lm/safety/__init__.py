"""Bias, toxicity and memorised text, measured on a checkpoint offline, each number with its interval."""
