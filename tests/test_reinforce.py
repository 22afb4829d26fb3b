"""Rewards: what they check, how they fail, and that a run which learns nothing ends in one line."""

import copy
import math
import sys
import warnings

import numpy as np
import pytest
import torch
import transformers

from hf_lm.arguments import TrainingArguments
from hf_lm.data.conversations import read_prompts
from hf_lm.data.demos.dialogues import sums
from hf_lm.data.tables import Table
from hf_lm.evaluation.intervals import ANY
from hf_lm.evaluation.rewards import REWARDS, checked, load_reward, load_scorer, reward_bounds
from hf_lm.models.adapters import add_lora
from hf_lm.models.gpt2 import new_gpt2
from hf_lm.tasks.reinforce import Reinforce
from hf_lm.tokenization.chat_template import encode_chats, set_chat_template
from hf_lm.tokenization.tokenizer import train_bpe


@pytest.fixture(scope="module")
def tokenizer():
    tokenizer = train_bpe((f"{row['prompt']} {row['reference']} a b" for row in sums()), vocab_size=300)
    set_chat_template(tokenizer)
    return tokenizer


@pytest.fixture
def make(tokenizer):
    def make(reward, extra=(), block_size=32, **options):
        transformers.set_seed(0)
        model = new_gpt2(tokenizer, n_layer=1, n_head=2, n_embd=32, block_size=block_size)
        rows = [row | {"prompt": "please " * (i % 3) + row["prompt"]} for i, row in enumerate(sums(12))]
        table = Table("x", "", {"train": rows})
        read_prompts(table)
        table.rows["train"] += extra
        options = {"max_new_tokens": 4, "num_generations": 4, "answers": 8} | options
        return model, Reinforce(table, tokenizer, model, reward=checked(reward, "the reward"), **options)

    return make


def trainer_of(model, task, tmp_path, **arguments):
    from hf_lm.training.trl_trainers import grpo_trainer

    settings = {"use_cpu": True, "report_to": "none", "disable_tqdm": True, "logging_steps": 1, "save_strategy": "no"}
    args = TrainingArguments(output_dir=str(tmp_path), **settings | arguments)
    return grpo_trainer(model, args, task, lambda model: {"reward": 1.0})


def digits(prompts, answers, references):
    """The share of an answer that is digits."""
    return [sum(c in "0123456789" for c in answer) / max(1, len(answer)) for answer in answers]


def test_rewards_check_what_they_say():
    exact = load_reward("exact_answer")
    answers = ["19", "7 + 12 = 19", "It is 1,900.", "91", "", "19.0"]
    assert exact([""] * 6, answers, ["19", "19", "1900", "19", "19", "19"]) == [1, 1, 1, 0, 0, 1]
    assert exact(["", "", ""], ["Paris.", "london", "春天"], ["paris", "Paris", "春天"]) == [1, 0, 1]
    assert load_reward("format", pattern=r"#### \d+")([""] * 2, ["#### 12", "so #### 12"], ["", ""]) == [1, 0]
    assert load_reward("length", target_length=4)([""] * 3, ["abcd", "ab", ""], [""] * 3) == [1, 0.5, 0]
    assert load_reward("length", target_length=4)([""] * 3, [" abc ", "abcde", "a" * 9], [""] * 3) == [0.75, 0.75, 0]
    assert load_reward("format", pattern="a.b")([""] * 2, [" a\nb ", "ab"], [""] * 2) == [1, 0]
    numbers = ["-3", "3.50", "1,234.5", "a 7 b 8.", "no", "8.", "8"]
    assert exact([""] * 7, numbers, ["3", "3.5", "1234.5", "8", "7", "8.0", "6 + 2 = 8"]) == [0, 1, 1, 1, 0, 1, 1]
    assert exact([""], ["Paris 7"], ["Paris"]) == [0]
    numbers = ["12345678901234567", "9" * 400, "\u22125", "The range 3-5", ".5", "x-5", "\u22125"]
    assert exact([""] * 7, numbers, ["12345678901234568", "8" * 400, "5", "5", "0.5", "5", "-5"]) == [
        0,
        0,
        0,
        1,
        1,
        1,
        1,
    ]
    assert load_reward("length", target_length=1)([""], ["a"], [""]) == [1]
    assert exact([""] * 3, ["The  Cat", "cat!", ""], ["the cat.", "cat", ""]) == [1, 0, 1]
    close, far = load_reward("chrf")(["", ""], ["the cat sat", "xyz"], ["the cat sat", "the cat sat"])
    assert close == pytest.approx(1)
    assert far < 0.1


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda p, a, r: 1 / 0, "the reward raised ZeroDivisionError: division by zero"),
        (lambda p, a, r: [math.nan] * len(a), "the reward gave nan for the answer 'x'"),
        (lambda p, a, r: [1.0], "the reward returned 1 numbers for 2 answers"),
        (lambda p, a, r: None, "must return a number for each answer"),
        (lambda p, a, r: ["one", "two"], "must return a number for each answer"),
        (lambda p, a, r: [1.0, -math.inf], "the reward gave -inf for the answer 'y'"),
    ],
)
def test_a_reward_that_fails_is_named_in_one_line(function, expected):
    with pytest.raises(ValueError, match=expected) as caught:
        checked(function, "the reward")(["", ""], ["x", "y"], ["", ""])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"name": "exactanswer"}, "no reward 'exactanswer'; there are exact_answer, format, length, chrf, and"),
        ({"name": "format"}, "needs --pattern"),
        ({"name": "format", "pattern": "("}, "not a regular expression"),
        ({"name": "length"}, "needs --target_length"),
        ({"name": "no_such_module:f"}, "--reward no_such_module:f: there is no module 'no_such_module'"),
        ({"name": "math:no_such_function"}, "the module math has no 'no_such_function'"),
    ],
)
def test_a_reward_that_cannot_be_is_said_in_one_line(options, expected):
    with pytest.raises(ValueError, match=expected):
        load_reward(**options)


def test_the_interval_of_a_reward_stays_within_what_it_can_be(make):
    for name in REWARDS:
        assert reward_bounds(name) == (0.0, 1.0)
    assert reward_bounds("mine:reward") == ANY
    for bounds, least in ((reward_bounds("length"), 0.0), (ANY, -math.inf)):
        _, task = make(digits, reward_bounds=bounds)
        task.before["test"] = np.array([[0.0, 3.0]] * 7 + [[0.7, 3.0]])
        interval = task.baseline("test")[1].metrics()["reward"].interval()
        assert least <= interval.low < 0.0875 < interval.high
        assert (interval.low < 0) == (bounds == ANY)


def test_a_function_is_looked_for_where_the_command_was_started(tmp_path, monkeypatch):
    (tmp_path / "rewards_of_mine.py").write_text(
        "def one(prompts, answers, references):\n    return [1] * len(answers)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = len(sys.path)
    for _ in range(2):
        assert load_reward("rewards_of_mine:one")([""], ["x"], [""]) == [1.0]
    assert sys.path[before:] == [str(tmp_path)]


def test_a_scorer_is_a_function_or_a_classifiers_label(tokenizer, tmp_path):
    tmp_path = tmp_path / "a:b"  # a folder all the same
    assert load_scorer("hf_lm.data.demos.dialogues:plainness")(["Of course! Yes.", "Yes."]) == [0, 1]
    config = transformers.GPT2Config(
        vocab_size=320, n_embd=16, n_layer=1, n_head=2, pad_token_id=1, id2label={0: "bad", 1: "good"},
        label2id={"bad": 0, "good": 1},
    )  # fmt: skip
    transformers.GPT2ForSequenceClassification(config).save_pretrained(tmp_path)
    unpadded = copy.deepcopy(tokenizer)
    unpadded.pad_token = None  # as that of GPT-2
    unpadded.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"knows the labels \['bad', 'good'\].*--scorer_label"):
        load_scorer(str(tmp_path), label="POSITIVE")
    good, bad = (load_scorer(str(tmp_path), label=label)(["a b", ""]) for label in ("good", "bad"))
    assert [a + b for a, b in zip(good, bad, strict=True)] == pytest.approx([1, 1])
    model = transformers.GPT2ForSequenceClassification.from_pretrained(tmp_path)
    with torch.no_grad():
        logits = model(torch.tensor([tokenizer("a b").input_ids])).logits[0]
    assert good[0] == pytest.approx(logits.softmax(-1)[1].item(), rel=1e-4)


def test_a_reference_is_taken_out_of_a_longer_text():
    rows = [{"question": f"q{i}", "answer": f"1 + {i}\n#### {i + 1}"} for i in range(30)]
    table = Table("x", "", {"train": [*rows, {"question": "q", "answer": "none"}]})
    read_prompts(table, answer_pattern=r"#### (.*)")
    assert {"messages": [{"role": "user", "content": "q3"}], "reference": "4"} in [
        row for some in table.rows.values() for row in some
    ]
    assert table.left_out["rows_whose_reference_lacks_the_pattern"] == 1
    with pytest.raises(ValueError, match="--answer_pattern"):
        read_prompts(Table("x", "", {"train": rows}), answer_pattern="(")


@pytest.mark.parametrize(
    ("options", "expected"),
    [({}, "Add.\n\n{i}"), ({"prompt": "input"}, "{i}"), ({"prompt": "instruction"}, "Add.")],
)
def test_an_instruction_with_its_input_is_the_prompt_unless_a_column_is_asked_for(options, expected):
    rows = [{"instruction": "Add.", "input": f"{i}", "output": "3", "system": "Be brief."} for i in range(40)]
    splits = {split: [dict(row) for row in rows] for split in ("train", "validation", "test")}
    table = Table("x", "", splits)
    read_prompts(table, **options)
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": expected.format(i=7)}]
    assert table.rows["train"][7] == {"messages": messages, "reference": "3"}


def test_an_answer_among_the_turns_of_a_prompt_is_its_reference_and_is_not_shown():
    asked, said = {"role": "user", "content": "1+1="}, {"role": "assistant", "content": "2"}
    for row, reference, note in (
        ({"messages": [asked, said]}, "2", "its last turn"),
        ({"conversations": [{"from": "human", "value": "1+1="}, {"from": "gpt", "value": "2"}]}, "2", "its last turn"),
        ({"messages": [asked, said], "ground_truth": "3"}, "3", "'ground_truth'"),
        ({"problem": "1+1=", "solution": "4"}, "4", "'solution'"),
        ({"messages": [asked, said, asked, said, said]}, "2", "its last turn"),
    ):
        table = Table("x", "", {split: [row] for split in ("train", "validation", "test")})
        read_prompts(table, compared=True)
        (read,) = table.rows["train"]
        assert read["messages"] in ([asked], [asked, said, asked])
        assert read["reference"] == reference
        assert table.notes[-1].endswith(f"references in {note}")


def test_what_is_compared_needs_a_reference():
    rows = [{"prompt": f"q{i}", "answer": "1" if i else None} for i in range(40)]
    table = Table("x", "", {"train": rows})
    read_prompts(table, compared=True)
    assert table.left_out["rows_without_a_reference"] == 1
    with pytest.raises(ValueError, match=r"has the columns \['prompt'\]; say which one to read with --reference"):
        read_prompts(Table("x", "", {"train": [{"prompt": "q"}]}), compared=True)
    with pytest.raises(ValueError, match="no training row that can be used: 1 rows without a reference"):
        read_prompts(Table("x", "", {"train": [{"prompt": "q", "answer": ""}]}), compared=True)


def test_instructions_whose_input_is_empty_are_prompts():
    table = Table("x", "", {"train": [{"instruction": f"Say {i}.", "input": "", "output": "x"} for i in range(40)]})
    read_prompts(table)
    assert table.notes[0] == "prompts in 'instruction' and 'input', references in 'output'"
    assert not table.left_out.total()


def test_prompts_of_one_text_and_other_turns_are_two_and_rewards_see_the_text(make, tmp_path):
    given = []

    def reward(prompts, answers, references):
        given.extend(prompts)
        return digits(prompts, answers, references)

    apart = [{"role": "system", "content": "Be 0."}, {"role": "user", "content": "1+1="}]
    joined = [{"role": "user", "content": "Be 0.\n1+1="}]
    extra = [{"messages": messages, "reference": "2"} for messages in (apart, joined)]
    model, task = make(reward, extra=extra, block_size=64)
    *_, one, two = task.train_dataset
    for feature, messages in ((one, apart), (two, joined)):
        [(ids, _)] = encode_chats(task.tokenizer, [messages], prompt=True)
        assert task.prompt_ids[feature["prompt"]] == ids
    task.train_dataset = [one, two]
    trainer_of(model, task, tmp_path, max_steps=1, per_device_train_batch_size=8).train()
    assert set(given) == {"Be 0.\n1+1="}


def test_prompts_that_leave_no_room_are_refused(make):
    with pytest.raises(ValueError, match="lower --max_new_tokens"):
        make(digits, max_new_tokens=31)


@pytest.mark.parametrize("rank", [0, 2])
def test_the_proofs_hold_and_the_reward_rises(make, tmp_path, rank):
    model, task = make(digits)
    trainer = trainer_of(
        add_lora(model, rank=rank), task, tmp_path, max_steps=12, learning_rate=2e-2, per_device_train_batch_size=32
    )
    for name, check in task.proofs_before(trainer).items():
        proof = check()
        assert proof.passed, f"{name}: {proof.said}"
    trainer.train()
    found, (name, baseline) = task.measure(trainer.model, "test").metrics(), task.baseline("test")
    assert name == "before training"
    if not rank:  # an adapter of a model that knows nothing comes nowhere in so few steps
        assert found["reward"].beats(baseline.metrics()["reward"])
    assert set(found) == {"reward", "kl", "length_change"}
    history = [entry for entry in trainer.state.log_history if "reward" in entry]
    assert {"reward", "kl", "entropy", "completions/mean_length"} <= set(history[0])
    assert history[0]["kl"] == pytest.approx(0, abs=1e-5)
    assert history[-1]["kl"] > 1e-5


def test_without_told_positions_padding_on_the_left_would_change_what_is_learned(make, tmp_path):
    """Why GRPO here counts positions from the mask: TRL leaves them to the model, and GPT-2 counts the padding."""
    model, task = make(digits)
    rows = task.train_dataset
    assert len({len(task.prompt_ids[row["prompt"]]) for row in rows[:64]}) > 1
    trainer = trainer_of(model, task, tmp_path)
    assert task.log_prob_proof(trainer).passed
    model.base_model._forward_pre_hooks.clear()
    model.base_model._forward_pre_hooks_with_kwargs.clear()
    assert not task.log_prob_proof(trainer).passed


def test_a_run_that_is_resumed_in_a_later_epoch_reads_the_prompts_of_that_epoch(make, tmp_path):
    asked = []

    def reward(prompts, answers, references):
        asked.append(list(dict.fromkeys(prompts)))
        return digits(prompts, answers, references)

    def train(checkpoint=None):
        model, task = make(reward)
        task.train_dataset = task.train_dataset[:10]
        settings = {"max_steps": 8, "per_device_train_batch_size": 8, "save_strategy": "steps", "save_steps": 6}
        trainer = trainer_of(model, task, tmp_path, **settings)
        asked.clear()  # before training the reward was checked
        trainer.train(resume_from_checkpoint=checkpoint)
        return list(asked)

    whole = train()  # epochs of 5 steps
    assert whole[:5] != whole[5:]
    assert train(str(tmp_path / "checkpoint-6")) == whole[6:]


@pytest.mark.parametrize(
    ("group", "give"), [(3, "give 2, 4, 8, or"), (1, "give 2, 4, 8, or"), (16, "give 2, 4, 8, or")]
)
def test_answers_of_a_step_that_are_no_groups_are_refused_in_our_words(make, tmp_path, group, give):
    model, task = make(digits, num_generations=group)
    with pytest.raises(ValueError, match=rf"^--num_generations {group} .* 8 answers of a step .*{give}"):
        trainer_of(model, task, tmp_path, per_device_train_batch_size=4, gradient_accumulation_steps=2)


def test_settings_of_a_checkpoint_change_no_answer_that_is_learned_from(make, tmp_path):
    answers = []
    for own in ({}, {"no_repeat_ngram_size": 1, "typical_p": 0.1, "min_p": 0.9, "repetition_penalty": 1.9}):
        model, task = make(lambda p, a, r: torch.rand(len(a)).tolist())
        model.generation_config.update(**own)
        trainer = trainer_of(model, task, tmp_path, max_steps=1, per_device_train_batch_size=8)
        trainer.train()
        answers.append(list(trainer._logs["completion"]))
        assert model.generation_config.to_diff_dict().items() >= own.items()
    assert answers[0] == answers[1]
    assert len(set(answers[0])) > 4


@pytest.mark.parametrize(
    ("reward", "options", "expected"),
    [
        (lambda p, a, r: [0.5] * len(a), {}, r"for 2 steps in a row .* all earned the same \(0.5 on average\)"),
        (lambda p, a, r: [1 / 0], {}, "raised ZeroDivisionError"),
        (digits, {"max_new_tokens": 1}, "no answer came to its end"),
    ],
)
def test_a_run_that_learns_nothing_ends_in_one_line(make, tmp_path, reward, options, expected):
    model, task = make(reward, collapse_steps=2, **options)
    can_end = set() if "max_new_tokens" in options else task.ends
    task.suppressed = [i for i in range(model.config.vocab_size) if i not in {30, 31} | can_end]
    with pytest.raises(ValueError, match=expected) as caught:
        trainer_of(model, task, tmp_path, max_steps=5, per_device_train_batch_size=8).train()
    assert "\n" not in str(caught.value)


def test_empty_answers_are_a_collapse(make, tmp_path):
    model, task = make(lambda p, a, r: torch.rand(len(a)).tolist(), collapse_steps=2)
    task.suppressed = [i for i in range(model.config.vocab_size) if i not in task.ends]  # nothing but the end
    with pytest.raises(ValueError, match="every answer was empty"):
        trainer_of(model, task, tmp_path, max_steps=5, per_device_train_batch_size=8).train()


def test_the_recipe_reports_the_reward_beside_that_before_training(tokenizer, tmp_path):
    from test_chat import run_recipe

    transformers.set_seed(0)
    new_gpt2(tokenizer, n_layer=1, n_head=2, n_embd=32, block_size=32).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    out = tmp_path / "out"
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        report = run_recipe(
            "reinforce.py",
            model=tmp_path / "base",
            output_dir=out,
            reward="length",
            target_length=6,
            max_new_tokens=4,
            num_generations=4,
            answers=8,
            max_steps=4,
            eval_strategy="steps",
            eval_steps=2,
            save_strategy="no",
            logging_steps=1,
            collapse_steps=0,
            skip_proofs="load_back",
        )
    assert not [warning for warning in warned if "is_gradient_checkpointing" in str(warning.message)]
    metric = report["metrics"]["test"]["reward"]
    assert metric["baseline"]["name"] == "before training"
    assert metric["low"] <= metric["value"] <= metric["high"]
    assert {name for name, proof in report["proofs"].items() if proof["passed"]} == {
        *("vocabulary", "reward", "sequence_log_probs")
    }
    for name in ("reward", "kl", "entropy", "completion_length", "metric"):
        assert (out / "plots" / f"{name}.png").is_file()
    assert "plots/entropy.png" in (out / "README.md").read_text()
    assert (out / "predictions.jsonl").is_file()
