"""what a run will need: memory, time, energy, price, and whether it fits"""

import argparse
import json

from hf_lm.commands.options import split_options
from hf_lm.files import json_with, refuse_foreign, write_whole
from hf_lm.parsing.ranges import PositiveShare, Size, Tokens, number

EXAMPLE = """hf-lm plan pretrain --size small --max_steps 20000 --gpu h100 --price_per_hour 2.5
hf-lm plan pretrain --size xl --gpu a100-40gb --engine fsdp2 --devices 8"""
ENGINES = ("ddp", "fsdp2", "zero2", "zero3")  # as hf_lm.planning.engines has them, which is heavy to import


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", help="name or path of a recipe")
    parser.add_argument(
        "arguments", nargs=argparse.REMAINDER, metavar="...", help="any argument of the recipe, and those below"
    )
    add_options(parser)


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--gpu", metavar="NAME", help="plan for that GPU (h100, a100-80gb, l4, rtx4090, ...)")
    parser.add_argument("--device", choices=("cpu",), help="plan for this machine's CPU although it has a GPU")
    parser.add_argument("--engine", choices=ENGINES, default="ddp", help="what shares the run among --devices")
    parser.add_argument(
        "--devices", type=number(Size), default=1, metavar="N", help="devices, over all machines (default 1)"
    )
    parser.add_argument(
        "--replicas",
        type=number(Size),
        default=1,
        metavar="N",
        help="groups of devices that fsdp2 shards within (HSDP)",
    )
    parser.add_argument("--offload", action="store_true", help="what is sharded waits in the host's memory")
    parser.add_argument("--on", choices=("hf-jobs",), help="list the machines of Hugging Face Jobs, with prices")
    parser.add_argument(
        "--tokens", type=number(Tokens), default=0, metavar="N", help="training tokens; no data is read then"
    )
    parser.add_argument(
        "--utilisation",
        type=number(PositiveShare),
        default=0.4,
        metavar="SHARE",
        help="of the device's matrix speed (default 0.4)",
    )
    parser.add_argument("--calibrate", action="store_true", help="measure time and memory in a few steps here")
    parser.add_argument("--json", metavar="FILE", help="write the plan there as well")


def run(args: argparse.Namespace) -> None:
    options, rest = split_options(args, add_options)
    if options.json:
        refuse_foreign(options.json, ours=json_with("recipe", "device", "flops_per_step"), option="--json")

    from hf_lm.planning.devices import WITHOUT_BF16, cpu, find_gpu, present_device
    from hf_lm.planning.engines import Engine
    from hf_lm.planning.plan import make_plan
    from hf_lm.planning.resolve import resolve
    from hf_lm.planning.terminal import show_plan

    engine = Engine(options.engine, options.devices, options.replicas, options.offload)
    if engine.said and options.calibrate:
        raise ValueError("--calibrate runs steps on one device: leave it out, or --engine and --devices.")
    if options.on:  # memory is the same on every GPU: planned for the largest of them
        if options.gpu or options.device or engine.said or options.calibrate:
            raise ValueError(
                "--on hf-jobs lists machines with one GPU: leave --gpu, --device, --engine and --calibrate out."
            )
        options.gpu = "h200"
    if options.gpu and options.device:
        raise ValueError("--gpu and --device cpu name two devices; give one.")
    if options.gpu and options.calibrate:
        raise ValueError(f"--calibrate runs steps on this machine, not on a {options.gpu}: leave one of the two out.")
    device = find_gpu(options.gpu) if options.gpu else present_device()
    rest += ["--use_cpu", "true"] if options.device else []
    bf16 = device.name not in WITHOUT_BF16 if options.gpu else None
    resolved = resolve(options.recipe, rest, tokens=options.tokens, bf16=bf16)
    if not options.gpu and resolved.args.device.type == "cpu":
        device = cpu()
    plan = make_plan(
        resolved,
        device,
        present=not options.gpu,
        utilisation=options.utilisation,
        calibrate=options.calibrate,
        engine=engine,
    )
    print(show_plan(plan))
    if options.on:
        from hf_lm.planning.jobs import show_offers

        print(f"\n{show_offers(plan)}")
    if options.json:
        write_whole(options.json, json.dumps(plan.report(), indent=2, ensure_ascii=False) + "\n")
