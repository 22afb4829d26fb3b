"""print the shell's completion of hf-lm

bash: hf-lm completion bash > ~/.local/share/bash-completion/completions/hf-lm
zsh:  hf-lm completion zsh > ~/.zfunc/_hf-lm    (with ~/.zfunc in fpath before compinit)
fish: hf-lm completion fish > ~/.config/fish/completions/hf-lm.fish
"""

import argparse

EXAMPLE = "hf-lm completion bash > ~/.local/share/bash-completion/completions/hf-lm"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", choices=("bash", "zsh", "fish"))


def run(args: argparse.Namespace) -> None:
    from hf_lm.launching import find_recipes

    try:
        import shtab
    except ImportError:
        raise ImportError("completion needs shtab: pip install 'hf-lm[completion]'.") from None

    (commands,) = (action for action in args.parser._actions if isinstance(action.choices, dict))
    for command in commands.choices.values():
        for action in command._actions:
            if action.dest == "recipe":
                action.choices = list(find_recipes())
            elif action.nargs != 0 and not action.choices:
                action.complete = shtab.FILE
    print(shtab.complete(args.parser, shell=args.shell))
