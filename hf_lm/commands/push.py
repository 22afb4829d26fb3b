"""upload a finished run to the Hub, in one commit

Verifies the folder first, and uploads what a run writes and nothing else: no secret, no absolute path of this machine.
"""

import argparse

EXAMPLE = "hf-lm push out/pretrain me/gpt2"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", help="output folder of a finished run")
    parser.add_argument("repo_id", help="user/name")
    parser.add_argument("--private", action="store_true", help="make a new repository private")


def run(args: argparse.Namespace) -> None:
    from hf_lm.hub.push import push_to_hub

    print(push_to_hub(args.folder, args.repo_id, private=args.private))
