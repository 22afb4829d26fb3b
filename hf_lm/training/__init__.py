"""From a model and a task to a finished run."""
