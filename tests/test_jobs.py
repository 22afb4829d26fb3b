"""Machines of Hugging Face Jobs: what fits, for how long, for how much, and a command that stops in time."""

from types import SimpleNamespace

import pytest

from hf_lm.planning.devices import GIB, GPUS
from hf_lm.planning.jobs import FLAVOURS, offers, show_offers
from hf_lm.training.estimate import Work
from hf_lm.training.fake_step import Step


def plan(*, needed: float, bf16: bool = True) -> SimpleNamespace:
    """A run of 1e18 FLOPs in training, without evaluation, at half of a device's speed."""
    step = Step({"weights": 0}, {"forward": 10**12, "backward": 0}, trainable=0, rows=1)
    work = Work(10, 10, 10**9, 10**8, measured=0, longest=1000, world_size=1, around=0.0)
    run = SimpleNamespace(recipe="pretrain", args=SimpleNamespace(bf16=bf16, fp16=False))
    return SimpleNamespace(run=run, step=step, work=work, needed=int(needed * GIB), utilisation=0.5)


def test_time_is_that_of_the_data_sheet_and_the_price_that_of_the_hour():
    by_name = {offer.flavour: offer for offer in offers(plan(needed=30))}
    assert set(by_name) == {"l4x1", "l40sx1", "a100-large", "h200"}  # a T4 has no bf16
    assert [name for name, offer in by_name.items() if offer.fits] == ["l40sx1", "a100-large", "h200"]
    seconds = 1e18 / (0.5 * 312e12)
    assert by_name["a100-large"].seconds == pytest.approx(seconds)
    assert by_name["a100-large"].price == pytest.approx(2.5 * seconds / 3600)
    assert {offer.flavour for offer in offers(plan(needed=30, bf16=False))} == {name for name, _, _ in FLAVOURS}
    assert {gpu for _, gpu, _ in FLAVOURS} <= GPUS.keys()


def test_the_command_is_for_the_cheapest_that_fits_and_ends_before_its_timeout():
    shown = show_offers(plan(needed=30))
    assert "l4x1" in shown
    assert "does not fit" in shown
    assert "hf jobs uv run --flavor l40sx1 --timeout 3h " in shown  # 92 minutes at 1.80 dollars, 34 at 5.00 on an H200
    assert "--max_hours 2.8 " in shown
    assert "hf jobs uv run" not in show_offers(plan(needed=1000))
