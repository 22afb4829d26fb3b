"""Numbers that cannot be are refused in one line that names the option: for recipes, the Trainer and the commands."""

import math
import runpy
from dataclasses import fields, make_dataclass
from pathlib import Path
from typing import get_type_hints

import pytest

from hf_lm.arguments import FineTuningArguments, TrainingArguments, parse_arguments
from hf_lm.cli import build_parser, main
from hf_lm.parsing.ranges import (
    TRAINER_RANGES,
    Count,
    Decay,
    Positive,
    Range,
    Share,
    Size,
    check_range,
    number,
    range_of,
)

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        (Count, (0, 1, 2**31 - 1), (-1, 2**31)),
        (Size, (1, 9), (0, -3)),
        (Share, (0, 0.5, 1), (-0.1, 1.1, 7, float("nan"))),
        (Decay, (0, 0.99), (1, float("inf"))),
        (Positive, (1e-9, 1e9), (0, -1, float("inf"), float("nan"))),
        (list[Share], ([0, 1], []), ([0.5, 2], [float("nan")])),
        (float, (-1.5, 0.0), (float("nan"), float("-inf"))),
    ],
)
def test_a_range_holds_its_bounds_and_no_number_that_is_not_finite(kind, good, bad):
    for value in good:
        check_range("--it", value, range_of(kind))
    for value in bad:
        with pytest.raises(ValueError, match="--it is"):
            check_range("--it", value, range_of(kind))


def test_every_number_of_a_recipe_has_a_range():
    without = []
    for path in sorted((ROOT / "recipes").glob("*.py")):
        declared = runpy.run_path(str(path), run_name="recipe")["Arguments"]
        for name, kind in get_type_hints(declared, include_extras=True).items():
            plain = get_type_hints(declared)[name]
            numbers = plain in (int, float, list[int], list[float])
            if numbers and name != "quantize" and range_of(kind) in (None, Range()):
                without.append(f"{path.stem}.{name}")
    assert without == []


def test_every_number_of_the_trainer_has_a_range():
    hints, plain = get_type_hints(TrainingArguments, include_extras=True), (int, float, int | None, float | None)
    numbers = {f.name for f in fields(TrainingArguments) if f.init and f.type in plain}
    assert {name for name in numbers if name not in TRAINER_RANGES and not range_of(hints[name])} == {"local_rank"}
    assert set(TRAINER_RANGES) <= set(hints)


IMPOSSIBLE = [
    *("--num_train_epochs -3", "--num_train_epochs nan", "--gradient_accumulation_steps -3", "--max_steps -7"),
    *("--per_device_train_batch_size 0", "--learning_rate nan", "--learning_rate -1", "--learning_rate 1e30"),
    *("--weight_decay -1", "--warmup_steps -5", "--adam_beta1 1.5", "--adam_epsilon 0", "--max_grad_norm inf"),
    *("--logging_steps -1", "--eval_steps nan", "--save_steps -2", "--save_total_limit -1", "--seed -1"),
    *("--muon_learning_rate -1", "--muon_weight_decay nan", "--decay_share 7", "--early_stopping_patience -3"),
    *("--max_hours nan", "--max_hours -1", "--price_per_hour nan", "--sweep -3", "--dataloader_num_workers -1"),
    *("--lora_rank -4", "--lora_dropout 1", "--lora_alpha -1", "--size 0", "--size 99999999999", "--beta -3"),
    *("--beta nan", "--shares 0.1 2"),
    "--label_smoothing_factor 0.9",  # no effect on a loss of hf_lm
    *("--dora", "--lora_alpha 8", "--rslora true", "--lora_dropout 0.1"),  # no effect without a rank
]


@pytest.mark.parametrize("given", IMPOSSIBLE)
def test_an_impossible_value_of_a_recipe_is_one_line_that_names_the_option(given, tmp_path, capsys):
    declared = make_dataclass(
        "Arguments",
        [("size", Size, 4), ("beta", Positive, 0.1), ("shares", list[Share], None)],
        bases=(FineTuningArguments,),
    )
    with pytest.raises(SystemExit) as ended:
        parse_arguments(declared, TrainingArguments, [*given.split(), "--output_dir", str(tmp_path), "--use_cpu"])
    error = capsys.readouterr().err
    assert (ended.value.code, error.count("\n")) == (2, 1)
    assert given.split()[0] in error
    assert len(error) < 300


@pytest.mark.parametrize(
    "given", [{"sweep": -1}, {"weight_decay": -0.1}, {"adam_beta2": 1.0}, {"max_hours": math.nan}]
)
def test_an_impossible_value_is_refused_from_python_too(given, tmp_path):
    with pytest.raises(ValueError, match=f"^{next(iter(given))} is .*; it must be "):
        TrainingArguments(output_dir=str(tmp_path), use_cpu=True, **given)


@pytest.mark.parametrize(
    "given",
    [
        *(
            "score m --dataset d --limit -4",
            "score m --dataset d --block_size -5",
            "score m --dataset d --num_beams -2",
        ),
        *("score m --dataset d --few_shot -1", "inspect pretrain --examples -1", "plan pretrain --tokens -5"),
        *("plan pretrain --utilisation nan", "plan pretrain --utilisation 0", "demo m --port 70000"),
        *("generate m --temperature nan", "generate m --top_p 1.5", "write m --max_new_tokens -1", "chat m --seed -1"),
        *("generate m --top_k x", "plan pretrain --tokens 1e9"),
    ],
)
def test_an_impossible_number_of_a_command_is_one_line_that_names_the_option(given, capsys):
    with pytest.raises(SystemExit):
        main(given.split())
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert given.split()[-2] in error


def test_every_number_of_a_command_has_a_range():
    (commands,) = (action for action in build_parser()._actions if isinstance(action.choices, dict))
    plain = [a.dest for command in commands.choices.values() for a in command._actions if a.type in (int, float)]
    assert plain == []


def test_a_value_from_a_file_is_refused_with_the_files_name(tmp_path, capsys):
    (tmp_path / "c.yaml").write_text("learning_rate: -1\n")
    with pytest.raises(SystemExit):
        parse_arguments(FineTuningArguments, TrainingArguments, ["--config", str(tmp_path / "c.yaml")])
    assert "c.yaml: learning_rate is -1.0; it must be 0 or more" in capsys.readouterr().err


def test_types_of_numbers_say_what_they_want():
    parse = number(Size)
    assert parse("3") == 3
    for text, want in (("x", "not an integer"), ("0", "1 or more")):
        with pytest.raises(Exception, match=want):
            parse(text)
