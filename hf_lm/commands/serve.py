"""serve a language model to OpenAI's clients on this machine, with `transformers serve`

Other machines are let in with --host 0.0.0.0, and must then bring the key of --api_key. Ctrl-C ends the server.
"""

import argparse

EXAMPLE = """hf-lm serve out/chat
hf-lm serve out/chat --port 8001 --dtype bfloat16
HF_LM_API_KEY=... hf-lm serve out/chat --host 0.0.0.0"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="a folder or a Hub id")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; 127.0.0.1 is this machine alone")
    parser.add_argument("--port", type=int, default=8000, help="8000 by default; 0 takes any that is free")
    parser.add_argument("--api_key", default="", help="asked of every request; better in HF_LM_API_KEY: ps shows this")
    parser.add_argument("--dtype", default="auto", choices=("auto", "float32", "bfloat16", "float16"), help="as saved")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1 ...; the best there is by default")


def run(args: argparse.Namespace) -> None:
    import os
    import signal
    import sys

    from hf_lm.serving import KEY, example_request, has_chat_template, serving

    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    print(f"loading {args.model} ...", file=sys.stderr, flush=True)
    named = {name: getattr(args, name) for name in ("host", "port", "dtype", "device")}
    key = args.api_key or os.environ.get(KEY, "")
    with serving(args.model, api_key=key, **named) as server:
        chat = has_chat_template(args.model)
        print(f"base_url  {server.base_url}")
        print(f"model     {server.model}" + ("" if chat else "   (no chat template: completions only)"))
        print(f"try it    {example_request(server, chat=chat, key=bool(key))}", flush=True)
        server.echo = True
        server.wait()
