"""A page in the browser with a tab for every model named, and the same as a Hugging Face Space."""
