"""A model's folder as one file of another format, compared with the folder before it is put in place."""
