"""What a device holds under DDP, FSDP2, ZeRO-2 and ZeRO-3 is what hand arithmetic says, for a model of known shape."""

import pytest
import torch
from test_plan import SHAPES, step

from hf_lm.planning.devices import CONTEXT, USABLE, find_gpu
from hf_lm.planning.engines import BUCKET, Engine, engine_memory, host_memory, layer_sizes
from hf_lm.planning.memory import needed
from hf_lm.training.fake_step import Step

# SHAPES["gpt2"]: width 32, 2 layers, 96 tokens, 32 positions, the head tied to the embedding.
LAYER = 12 * 32 * 32 + 13 * 32
REST = (96 + 32) * 32 + 2 * 32  # embeddings and the last norm
ALL = 2 * LAYER + REST
BUFFERS = sum(buffer.numel() * buffer.element_size() for buffer in SHAPES["gpt2"]().buffers())


def on(engine: Engine, *, half: bool = False) -> Step:
    """The step on one device of an engine; with accumulation gradients stand there at the peak."""
    dtype, model = torch.bfloat16 if half else torch.float32, SHAPES["gpt2"]()
    counted = step("gpt2", model, dtype=dtype, accumulation=2, shares=engine.shares(half=half))
    return engine_memory(counted, engine, model=model, dtype=dtype)


def adam(share: float):
    """AdamW's two averages of all parameters, and a step counter of each tensor."""
    return pytest.approx(8 * ALL * share, rel=0.01)


def test_the_layers_of_a_model_and_what_belongs_to_none_are_those_of_the_formula():
    assert layer_sizes(SHAPES["gpt2"]()) == (LAYER, REST)
    assert sum(p.numel() for p in SHAPES["gpt2"]().parameters()) == ALL
    recurrent = SHAPES["lstm"]()  # no stack of layers: FSDP2 gathers it as one
    assert layer_sizes(recurrent) == (0, sum(p.numel() for p in recurrent.parameters()))
    t5 = SHAPES["t5"]()  # whose blocks hold stacks of their own
    blocks = [block for half in (t5.encoder, t5.decoder) for block in half.block]
    assert layer_sizes(t5)[0] == max(sum(p.numel() for p in block.parameters()) for block in blocks)


def test_data_parallel_devices_hold_all_and_a_copy_of_the_gradients():
    alone, shared = on(Engine()), on(Engine("ddp", 4))
    assert shared.memory == alone.memory | {"buckets": 4 * ALL}
    assert alone.memory["optimizer"] == adam(1)
    assert needed(shared, find_gpu("h100")) == int((alone.peak + 4 * ALL) / USABLE) + CONTEXT


@pytest.mark.parametrize(("devices", "replicas"), [(1, 1), (4, 1), (8, 1), (8, 2)])
def test_fsdp2_shards_all_three_and_gathers_two_layers_and_the_rest(devices, replicas):
    memory, share = on(Engine("fsdp2", devices, replicas)).memory, replicas / devices
    assert memory["weights"] == int((4 * ALL + BUFFERS) * share)
    assert memory["optimizer"] == adam(share)
    assert memory["gathered"] == 4 * (REST + 2 * LAYER)
    assert 0 < memory["gradients"] <= 4 * ALL * share
    half = on(Engine("fsdp2", devices, replicas), half=True).memory
    assert half["gathered"] == memory["gathered"] / 2  # in 16 bits
    assert half["weights"] == memory["weights"]


def test_zero_2_keeps_weights_in_16_bits_and_shards_their_copy_gradients_and_optimizer():
    memory = on(Engine("zero2", 4), half=True).memory
    assert memory["weights"] == (4 * ALL + BUFFERS) // 2
    assert memory["optimizer"] == pytest.approx((8 + 4) * ALL / 4, rel=0.01)
    assert memory["buckets"] == 2 * min(ALL, BUCKET)
    assert 0 < memory["gradients"] <= 2 * ALL / 4
    assert "gathered" not in memory
    assert on(Engine("zero2", 4)).memory["weights"] == 4 * ALL + BUFFERS


def test_zero_3_shards_the_weights_too_and_gathers_all_of_a_small_model():
    memory = on(Engine("zero3", 4), half=True).memory
    assert memory["weights"] == (4 * ALL + BUFFERS) // 8
    assert memory["optimizer"] == pytest.approx((8 + 4) * ALL / 4, rel=0.01)
    assert memory["gathered"] == memory["buckets"] == 2 * ALL


@pytest.mark.parametrize(
    ("name", "kept", "moved"),
    [
        ("fsdp2", 0, 4 + 4 + 8),  # weights, gradients, optimizer state
        ("zero2", 2, 2 + 4 + 8),  # gradients in 16 bits, weights in 32, optimizer state
        ("zero3", 0, 2 + 2 + 4 + 8),
    ],
)
def test_what_is_offloaded_stands_in_the_memory_of_the_host(name, kept, moved):
    engine, model = Engine(name, 4, offload=True), SHAPES["gpt2"]()
    memory = on(engine, half=True).memory
    assert memory["optimizer"] == memory["gradients"] == 0
    assert memory["weights"] == pytest.approx(kept * ALL, abs=BUFFERS)
    alone = on(Engine(), half=True)
    host = host_memory(alone, engine, model=model, dtype=torch.bfloat16)
    assert host == pytest.approx(moved * ALL / 4, rel=0.01, abs=BUFFERS)
    assert host_memory(alone, Engine(name, 4), model=model, dtype=torch.bfloat16) == 0


def test_activations_and_logits_are_those_of_one_device_and_checkpointing_lowers_them():
    alone, shared = (on(engine).memory for engine in (Engine(), Engine("fsdp2", 8)))
    assert all(shared[kind] == alone[kind] for kind in ("activations", "logits", "batch"))
    options = {"rows": 16, "time": 32, "shares": Engine("fsdp2", 8).shares(half=False)}
    assert step("gpt2", checkpointing=True, **options).peak < step("gpt2", **options).peak


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("fsdp2", 0), "--devices is 0"),
        (("fsdp2", 8, 3), "--replicas 3 does not divide --devices 8"),
        (("zero2", 8, 2), "FSDP2's hybrid sharding"),
        (("ddp", 8, 1, True), "--offload needs --engine fsdp2, zero2 or zero3"),
    ],
)
def test_an_engine_that_cannot_be_is_one_line(arguments, error):
    with pytest.raises(ValueError, match=error):
        Engine(*arguments)
