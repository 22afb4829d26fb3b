"""a page in the browser for every model named

Each model gets the tab of its task: writing assistant, chat, translation, summary, classes or question answering, and
the report of its training where there is one. The page is for this machine (127.0.0.1). Ctrl-C ends it.
"""

import argparse

from hf_lm.parsing.ranges import Port, number

EXAMPLE = """hf-lm demo out/chat out/sentiment
hf-lm demo out/question_answering --port 7861
hf-lm demo --export space out/question_answering"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("models", nargs="+", metavar="MODEL", help="a folder, an adapter's folder or a Hub id")
    parser.add_argument("--port", type=number(Port), default=7860, help="7860 by default; 0 takes any that is free")
    parser.add_argument("--device", default=None, help="cpu, cuda, cuda:1, mps ...; the accelerator if there is one")
    parser.add_argument("--export", default="", metavar="FOLDER", help="write a Hugging Face Space instead")


def run(args: argparse.Namespace) -> None:
    import signal
    import sys

    if args.export:
        from hf_lm.demo.space import export_space

        folder = export_space(args.models, args.export)
        print(f"{folder} is ready. Look at it: python {folder}/app.py")
        print(f"Publish it: hf upload USER/NAME {folder} . --repo-type space")
        return
    from hf_lm.demo.page import open_page
    from hf_lm.reporting.terminal import quiet

    quiet()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    open_page(args.models, port=args.port, device=args.device)
