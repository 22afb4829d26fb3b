"""How long a run is where nobody says: a few passes over the text, or what its parameters can take up."""

import pytest
import torch

from hf_lm.arguments import TrainingArguments
from hf_lm.tasks.length import BUILT_IN, PER_PARAMETER, choose_length, enough_epochs


def arguments(tmp_path, **given):
    settings = {"max_steps": 0, "num_train_epochs": 4, "per_device_train_batch_size": 4, "use_cpu": True}
    args = TrainingArguments(str(tmp_path / "out"), **settings | given)
    args.asked = set(given)
    return args


@pytest.fixture
def model():
    return torch.nn.Linear(100, 10, bias=False)  # 1,000 parameters


def test_a_short_text_is_read_so_many_times_and_a_long_one_as_far_as_the_parameters_ask(tmp_path, model):
    args = arguments(tmp_path)
    assert enough_epochs(args, model, tokens=3200) == 4
    assert enough_epochs(args, model, tokens=10**6) == PER_PARAMETER * 1000 / 10**6
    args.asked = {"num_train_epochs"}  # somebody asked for as many
    assert enough_epochs(args, model, tokens=10**6) == 4


@pytest.mark.parametrize(
    ("given", "tokens", "steps"),
    [({}, 3200, 100), ({"gradient_accumulation_steps": 2}, 3200, 50), ({"rows_per_step": 1}, 3200, 400), ({}, 1, 1)],
)
def test_the_steps_follow_from_the_rows_of_one(tmp_path, model, given, tokens, steps):
    args = arguments(tmp_path, **given)
    choose_length(args, model, tokens=tokens, block_size=32)
    assert args.max_steps == steps


def test_what_is_planned_is_left_in_epochs_for_any_number_of_devices(tmp_path, model, capsys):
    args = arguments(tmp_path)
    assert choose_length(args, model, tokens=10**6, block_size=32, planned=True) == pytest.approx(20_000, abs=128)
    assert (args.max_steps, args.num_train_epochs, args.eval_steps) == (-1, 0.02, 1 / 3)
    assert capsys.readouterr().out == ""


def test_a_length_that_is_given_stays(tmp_path, model, capsys):
    for steps, tokens in ((7, 7 * 4 * 32), (-1, 0)):
        args = arguments(tmp_path, max_steps=steps, eval_steps=225)
        assert choose_length(args, model, tokens=3200, block_size=32) == tokens
        assert (args.max_steps, args.eval_steps) == (steps, 225)
    assert capsys.readouterr().out == ""


def test_a_chosen_length_is_recorded_said_and_measured_three_times(tmp_path, model, capsys):
    args = arguments(tmp_path, eval_steps=225, save_steps=10)
    args.asked = {"save_steps"}
    assert choose_length(args, model, tokens=3200, block_size=32) == 100 * 4 * 32
    assert (args.max_steps, args.eval_steps, args.save_steps) == (100, 34, 10)
    assert args.run["max_steps"] == 100
    assert args.run["eval_steps"] == 34
    said = "100 steps, 12,800 tokens: 4 times the text, 13 for each parameter (--max_steps gives another number)\n"
    assert capsys.readouterr().out == said
    args = arguments(tmp_path, save_steps=10)
    args.asked = set()
    choose_length(args, model, tokens=3200, block_size=32)
    assert args.save_steps == 34


def test_a_length_that_the_parameters_limit_says_so(tmp_path, model, capsys):
    choose_length(arguments(tmp_path), model, tokens=10**6, block_size=32)
    assert "20 for each parameter, where more than 20 ask for a larger model (" in capsys.readouterr().out


def test_the_built_in_text_has_a_first_run_of_minutes(tmp_path, model, capsys):
    args = arguments(tmp_path)
    choose_length(args, model, tokens=10**6, block_size=32, built_in=True)
    assert (args.max_steps, args.eval_steps) == (BUILT_IN, BUILT_IN / 3)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("given", "tokens", "scale"),
    [
        ({}, 3200, 1 / 16),  # four times, by epochs that become steps
        ({"max_steps": 50}, 3200, 1 / 4),
        ({"max_steps": -1, "num_train_epochs": 5}, 3200, 1 / 25),
        ({}, 10**6, 1.0),  # less than once
        ({"max_steps": 50, "last_norm_rate_scale": 0.5}, 3200, 0.5),
    ],
)
def test_the_last_norm_learns_the_less_the_more_often_a_text_is_read(tmp_path, model, given, tokens, scale):
    args = arguments(tmp_path, **given)
    choose_length(args, model, tokens=tokens, block_size=32)
    assert args.last_norm_rate_scale == pytest.approx(scale)
    assert args.run.get("last_norm_rate_scale", scale) == args.last_norm_rate_scale
    assert (args.chosen >= {"last_norm_rate_scale"}) == ("last_norm_rate_scale" not in given)


@pytest.mark.parametrize(
    ("given", "tokens", "decay"),
    [
        ({}, 3200, 1.0),  # four times
        ({"max_steps": 90}, 3200, 0.64),  # 3.6 times
        ({"max_steps": 75}, 3200, 0.3),
        ({"max_steps": 30}, 3200, 0.1),  # 1.2 times
        ({"max_steps": 25}, 3200, 0.0),
        ({"max_steps": 15}, 3200, 0.0),
        ({"max_steps": -1, "num_train_epochs": 9}, 3200, 1.0),
        ({"muon_weight_decay": 0.3}, 3200, 0.3),
        ({"learning_rate": 1e-3}, 3200, 0.0),  # as of a pretrained model, which it would bring to zero
        ({"muon_learning_rate": 0.0}, 3200, 0.0),
    ],
)
def test_the_matrices_of_a_new_model_decay_where_a_text_is_read_more_than_once(tmp_path, model, given, tokens, decay):
    args = arguments(tmp_path, **{"learning_rate": 0.0, "muon_learning_rate": 6e-3} | given)
    choose_length(args, model, tokens=tokens, block_size=32)
    assert args.muon_weight_decay == pytest.approx(decay)
    assert args.run.get("muon_weight_decay", 0.0) == pytest.approx(decay)


def test_a_decay_of_zero_that_was_asked_for_stays(tmp_path, model):
    args = arguments(tmp_path, learning_rate=0.0, muon_learning_rate=6e-3)
    args.asked |= {"muon_weight_decay"}
    choose_length(args, model, tokens=3200, block_size=32)
    assert args.muon_weight_decay == 0


@pytest.mark.parametrize(
    ("given", "block_size", "rate"),
    [
        ({}, 512, 5e-3),  # 2,048 tokens a step
        ({}, 32, 5e-3),
        ({}, 1024, 5e-3 * 2**0.5),
        ({"gradient_accumulation_steps": 4}, 512, 1e-2),
        ({"gradient_accumulation_steps": 64}, 512, 1e-2),  # no more was tried
        ({"learning_rate": 2e-3}, 1024, 2e-3),
        ({"muon_learning_rate": 0.0}, 1024, 5e-3),  # where AdamW trains all
    ],
)
def test_a_larger_step_takes_a_higher_rate(tmp_path, model, given, block_size, rate):
    args = arguments(tmp_path, **{"learning_rate": 0.0, "muon_learning_rate": 6e-3} | given)
    choose_length(args, model, tokens=10**6, block_size=block_size)
    assert args.learning_rate == pytest.approx(rate)
    assert args.run["learning_rate"] == pytest.approx(rate)


@pytest.mark.parametrize("tokens", [BUILT_IN * 4 * 32 // 3, 10**6])
def test_the_built_in_text_is_read_as_often_as_its_steps_do(tmp_path, model, tokens):
    args = arguments(tmp_path)
    choose_length(args, model, tokens=tokens, block_size=32, built_in=True)
    assert args.last_norm_rate_scale == pytest.approx(1 / max(1, BUILT_IN * 4 * 32 / tokens) ** 2)


@pytest.mark.parametrize("given", [{}, {"max_steps": 5000}])
@pytest.mark.parametrize("planned", [False, True])
def test_a_text_without_an_end_is_read_as_far_as_the_parameters_ask_and_once(tmp_path, model, given, planned, capsys):
    args = arguments(tmp_path, **given)
    steps = given.get("max_steps", PER_PARAMETER * 1000 // (4 * 32))
    assert choose_length(args, model, tokens=0, block_size=32, planned=planned) == steps * 4 * 32
    assert (args.max_steps, args.last_norm_rate_scale) == (steps, 1)
    said = capsys.readouterr().out
    assert "times the text" not in said
    assert said.startswith("156 steps, 19,968 tokens: 20 for each parameter") == (not given and not planned)


@pytest.mark.parametrize("steps", [1, 12, 32, 45, 200])
def test_a_warm_up_that_nobody_gave_ends_where_the_rate_begins_to_fall(steps, tmp_path, model):
    given = {"warmup_steps": 20, "lr_scheduler_type": "warmup_stable_decay", "decay_share": 0.6}
    args = arguments(tmp_path, max_steps=steps, **given)
    args.asked = {"max_steps"}
    choose_length(args, model, tokens=10**6, block_size=32)
    assert args.warmup_steps == min(20, max(1, round(0.4 * steps)))
    args = arguments(tmp_path, max_steps=steps, **given)  # asked for
    choose_length(args, model, tokens=10**6, block_size=32)
    assert args.warmup_steps == 20
