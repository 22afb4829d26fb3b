"""Learning with few labels and much text: pretraining on the domain and pseudo-labels, beside labels alone.

Both are measured against training on the same labelled rows with the same seeds, as shares of the labels grow. The
protocol and its warnings are those of Oliver et al., arXiv 1804.09170.
"""
