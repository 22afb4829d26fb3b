"""The subcommands of hf-lm, one file each: its docstring is its help, EXAMPLE how it is called, and it has
`add_arguments(parser)` and `run(args)`. Nothing heavy is imported before `run`.
"""
