"""From files, Hub datasets and built-in text to blocks of tokens."""
