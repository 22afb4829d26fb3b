"""write a model's folder as one ONNX or GGUF file, and compare it with the folder

The file is put at --output when it agrees with the folder on built-in text: ONNX by logits, GGUF by token ids and
logits.
"""

import argparse

EXAMPLE = """hf-lm export out/sentiment --to onnx --output sentiment.onnx
hf-lm export out/pretrain --to gguf --output model.gguf"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", help="a model's folder; an adapter's is merged first (hf-lm merge)")
    parser.add_argument("--to", choices=("onnx", "gguf"), required=True, help="the format")
    parser.add_argument("--output", required=True, metavar="FILE", help="replaced only where this command wrote it")


def run(args: argparse.Namespace) -> None:
    from pathlib import Path

    from hf_lm.reporting.terminal import quiet

    quiet()
    if args.to == "onnx":
        from hf_lm.export.onnx_graph import export_onnx

        result = [f"against the folder's: {export_onnx(args.folder, args.output)}"]
    else:
        from hf_lm.export.gguf_file import export_gguf

        result = export_gguf(args.folder, args.output)
    print(f"{args.output}: {Path(args.output).stat().st_size / 1e6:.1f} MB")
    print("\n".join(result))
