"""Where a planned run fits among the machines of Hugging Face Jobs, and what it costs there."""

import math
from dataclasses import dataclass

import torch

from hf_lm.planning.devices import GIB, GPUS, WITHOUT_BF16
from hf_lm.planning.plan import Plan
from hf_lm.reporting.report import in_hours
from hf_lm.reporting.terminal import aligned
from hf_lm.training.estimate import precision

# Flavours with one GPU that this package has the speed of: `hf jobs uv run` starts one process. Dollars an hour, from
# https://huggingface.co/docs/hub/jobs-pricing as it was on that day; `hf jobs hardware` prints those of today.
PRICED_ON = "2026-08-21"
FLAVOURS = (
    ("t4-small", "t4", 0.40),
    ("t4-medium", "t4", 0.60),
    ("l4x1", "l4", 0.80),
    ("l40sx1", "l40s", 1.80),
    ("a100-large", "a100-80gb", 2.50),
    ("h200", "h200", 5.00),
)


@dataclass(frozen=True)
class Offer:
    """A flavour for a run: `memory` in bytes of its GPU, `seconds` and `price` (dollars) of the whole run."""

    flavour: str
    memory: int
    fits: bool
    seconds: float
    price: float


def offers(plan: Plan) -> list[Offer]:
    """What a run on one GPU takes on each flavour; those without bf16 are left out where the run is in it.

    `plan` is for a GPU: memory is the same on all of them, and time goes with the matrix speed of the data sheets.
    """
    dtype, made = precision(plan.run.args), []
    for flavour, name, price in FLAVOURS:
        gpu = GPUS[name]
        if dtype == torch.bfloat16 and name in WITHOUT_BF16:
            continue
        speed = gpu.flops["float32" if dtype == torch.float32 else "half"]
        seconds = sum(plan.work.seconds(plan.step, speed * plan.utilisation).values())
        made.append(Offer(flavour, gpu.memory, plan.needed <= gpu.memory, seconds, price * seconds / 3600))
    return made


def show_offers(plan: Plan) -> str:
    """The flavours as a table, and the command for the cheapest that fits, which stops before its timeout."""
    rows, there = [], offers(plan)
    for offer in there:
        verdict = f"{in_hours(offer.seconds):>12}  ${offer.price:,.2f}" if offer.fits else "does not fit"
        rows.append((offer.flavour, f"{plan.needed / GIB:6.1f} of {offer.memory / GIB:.1f} GiB  {verdict}"))
    lines = [f"Hugging Face Jobs, one GPU, prices of {PRICED_ON}:", *aligned(rows)]
    if fitting := [offer for offer in there if offer.fits]:
        best = min(fitting, key=lambda offer: offer.price)
        hours = max(1, math.ceil(1.5 * best.seconds / 3600))  # an estimate may be too low, and a job must not be cut
        lines.append(
            f"hf jobs uv run --flavor {best.flavour} --timeout {hours}h --secrets HF_TOKEN "
            f"recipes/{plan.run.recipe}.py ... --max_hours {hours - 0.2:g} --push_to_hub --hub_model_id user/name"
        )
    return "\n".join(lines)
