"""Numbers that can be believed: what is measured, and its interval."""
