"""One file per task: how its data becomes features, how a model is measured on it, and what it must prove."""
