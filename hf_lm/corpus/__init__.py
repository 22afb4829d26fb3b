"""A corpus prepared for pretraining with datatrove: recipes/corpus.py."""
