"""Numbers that can be believed: what is measured, and how sure it is."""
