"""Sharded parameters train as complete ones do: FSDP2's `fully_shard` on processes over gloo."""

import pytest
import torch
import torch.distributed as dist
import transformers
from on_gloo import on_gloo
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.distributed.tensor.debug import CommDebugMode

from hf_lm.models.recurrent import RecurrentConfig, RecurrentLMHeadModel
from hf_lm.training import optimizers
from hf_lm.training.optimizers import new_muon_adamw
from hf_lm.training.processes import _share_embedding

FULL = StateDictOptions(full_state_dict=True, cpu_offload=True)


def new_model(kind):
    torch.manual_seed(0)
    sizes = {"vocab_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 16}
    if kind == "gpt2":
        none = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
        return transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, hidden_size=32, **none))
    if kind == "llama":  # 66 rows do not divide by 4 processes
        sizes |= {"hidden_size": 32, "intermediate_size": 66, "num_key_value_heads": 1}
        return transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes))
    config = RecurrentConfig(vocab_size=64, n_embd=24, hidden_size=24, n_layer=2, cell=kind, dropout=0.0)
    return RecurrentLMHeadModel(config)


def new_optimizer(model, copies=1):
    return new_muon_adamw(
        model,
        adamw={"lr": 1e-2, "betas": (0.9, 0.95), "eps": 1e-8, "fused": True},
        weight_decay=0.1,
        decayed={name for name, parameter in model.named_parameters() if parameter.ndim > 1},
        muon_learning_rate=2e-2,
        muon_weight_decay=0.1,
        copies=copies,
    )


def shard(model):
    for block in model.modules():
        if "Block" in type(block).__name__ or "DecoderLayer" in type(block).__name__:
            fully_shard(block)
    return fully_shard(model)


def gradients(model, step):
    """Of a batch: taken from a complete model, so that both are given the same ones."""
    ids = torch.randint(0, 64, (4, 16), generator=torch.Generator().manual_seed(step))
    model(input_ids=ids, labels=ids).loss.backward()
    return [parameter.grad for parameter in model.parameters()]


def step(model, optimizer, grads):
    for parameter, grad in zip(model.parameters(), grads, strict=True):
        if isinstance(parameter, DTensor):
            grad = distribute_tensor(grad, parameter.device_mesh, parameter.placements, src_data_rank=None)
        parameter.grad = grad
    optimizer.step()
    optimizer.zero_grad()


def weights(model):
    parameters = [parameter.detach() for parameter in model.parameters()]
    return [p.full_tensor() if isinstance(p, DTensor) else p.clone() for p in parameters]


def distance(trained, expected, start):
    """The largest difference of two models, parameter by parameter, over how far that parameter moved."""
    return max(
        ((a - b).abs().max() / (b - c).abs().max()).item() for a, b, c in zip(trained, expected, start, strict=True)
    )


def compare(rank, kinds):
    optimizers.bf16_is_fast = lambda: False
    found = {}
    for kind in kinds:
        whole, model = new_model(kind), shard(new_model(kind))
        start = weights(whole)
        whole_optimizer, optimizer = new_optimizer(whole), new_optimizer(model)
        for number in range(3):
            if number == 2:  # another optimizer takes the state over
                saved = get_optimizer_state_dict(model, optimizer, options=FULL)
                optimizer = new_optimizer(model)
                set_optimizer_state_dict(model, optimizer, saved if rank == 0 else {}, options=_from_rank_0())
            grads = gradients(whole, number)
            step(model, optimizer, grads)
            step(whole, whole_optimizer, grads)
        with CommDebugMode() as communication:
            optimizer.step()
        keys = sorted({key for state in saved.get("state", {}).values() for key in state})
        found[kind] = distance(weights(model), weights(whole), start), keys, communication.get_total_counts()
    return found


def _from_rank_0():
    return StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)


def check(found):
    for results in found:
        for kind, (far, _, idle) in results.items():
            assert far <= 1e-5, (kind, far)
            assert idle == 0, kind  # without a gradient nothing is gathered
    assert all(keys == ["exp_avg", "exp_avg_sq", "momentum_buffer", "step"] for _, keys, _ in found[0].values())


def test_muon_and_adamw_train_sharded_parameters_as_complete_ones_and_their_state_is_saved():
    check(on_gloo(2, compare, ["gpt2", "lstm"]))


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 3, 4])
def test_so_they_do_for_every_architecture_and_number_of_processes(processes):
    check(on_gloo(processes, compare, ["gpt2", "llama", "lstm", "gru", "rnn"]))


def count(rank):
    model = shard(new_model("gpt2"))
    optimizer = new_optimizer(model)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    with CommDebugMode() as communication:
        optimizer.step()
    return communication.get_total_counts()


def test_a_step_communicates_twice_for_each_shape_of_matrix_whatever_the_layers():
    assert on_gloo(2, count) == [8, 8]  # c_attn, attention's c_proj, c_fc, c_proj


def share_the_iterations(rank, kinds):
    optimizers.bf16_is_fast = lambda: False
    iterated, orthogonalise = [], optimizers.orthogonalise
    optimizers.orthogonalise = lambda matrices: iterated.append(len(matrices)) or orthogonalise(matrices)
    found = {}
    for kind in kinds:
        alone, model = new_model(kind), new_model(kind)
        start = weights(alone)
        pair = {"alone": (alone, new_optimizer(alone)), "copies": (model, new_optimizer(model, dist.get_world_size()))}
        count = {}
        for name, (trained, optimizer) in pair.items():
            iterated.clear()
            for number in range(3):
                step(trained, optimizer, gradients(new_model(kind), number))
            count[name] = sum(iterated)
        found[kind] = distance(weights(model), weights(alone), start), count, weights(model)
    return found


@pytest.mark.parametrize("processes", [2, 3])
def test_complete_copies_share_the_iterations_and_stay_equal(processes):
    found = on_gloo(processes, share_the_iterations, ["gpt2", "lstm"])
    for results in found:
        for kind, (far, count, trained) in results.items():
            assert far <= 1e-5, (kind, far)
            assert count["copies"] == count["alone"] // 2, kind  # of two layers a process has one, or zeros
            assert all(torch.equal(a, b) for a, b in zip(trained, found[0][kind][2], strict=True)), kind


def encoder_decoder(kind):
    torch.manual_seed(0)
    ids = {"vocab_size": 64, "d_model": 32, "pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0}
    if kind == "bart":
        sizes = {f"{side}_{what}": 2 for side in ("encoder", "decoder") for what in ("layers", "attention_heads")}
        return transformers.BartForConditionalGeneration(transformers.BartConfig(**ids, **sizes, dropout=0.0))
    config = transformers.T5Config(**ids, d_kv=16, d_ff=64, num_layers=2, num_heads=2, dropout_rate=0.0)
    return transformers.T5ForConditionalGeneration(config)


def shared(rank):
    """What differs between an encoder-decoder and the same one sharded, in groups as accelerate makes them."""
    found = {}
    for kind in ("t5", "bart"):
        whole, model = encoder_decoder(kind), encoder_decoder(kind)
        _share_embedding(model)
        for layer in list(model.modules()):
            if type(layer).__name__ in model._no_split_modules:
                fully_shard(layer)
        fully_shard([model.get_input_embeddings(), model.get_output_embeddings()], reshard_after_forward=False)
        register_fsdp_forward_method(fully_shard(model), "generate")
        ids = torch.randint(3, 64, (4, 9), generator=torch.Generator().manual_seed(0))
        for net in (whole, model):
            net(input_ids=ids, labels=ids).loss.backward()
        weights = dict(whole.named_parameters())
        names = [name for name, _ in model.named_parameters() if not name.endswith("k_proj.bias")]  # of no effect
        gradients = {name: p.grad.full_tensor() for name, p in model.named_parameters()}
        apart = max(
            ((gradients[name] - weights[name].grad).abs().max() / weights[name].grad.norm()).item() for name in names
        )
        written = [net.eval().generate(ids, max_new_tokens=6).tolist() for net in (whole, model)]
        found[kind] = (set(weights) == set(gradients), apart, written[0] == written[1])
    return found


def test_an_encoder_decoder_whose_sides_share_an_embedding_is_sharded_once():
    for found in on_gloo(2, shared):
        for kind, (same_names, apart, same_text) in found.items():
            assert same_names, kind
            assert same_text, kind
            assert apart < 1e-5, kind
