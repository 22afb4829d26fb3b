"""Pairs of answers: every form is read, DPO's loss is the paper's, and what is reported of a model holds."""

import json
import math

import numpy as np
import pytest
import torch
import transformers
from accelerate import PartialState
from accelerate.state import AcceleratorState, GradientState
from on_gloo import on_gloo

from hf_lm.arguments import TrainingArguments
from hf_lm.data.conversations import read_preferences
from hf_lm.data.tables import Table
from hf_lm.evaluation.likelihood import labelled
from hf_lm.models.adapters import add_lora
from hf_lm.models.gpt2 import new_gpt2
from hf_lm.tasks.preference import Preference
from hf_lm.tokenization.chat_template import set_chat_template
from hf_lm.tokenization.tokenizer import train_bpe

COLOURS = ("red", "green", "blue", "black", "white", "蓝色")


def pairs(count: int = 48) -> list[dict]:
    return [
        {
            "prompt": f"Name colour {i}.",
            "chosen": COLOURS[i % 6],
            "rejected": f"Well, well: {COLOURS[i % 6]}{'!' * (i % 3)}",
        }
        for i in range(count)
    ]


@pytest.fixture(scope="module")
def tokenizer():
    tokenizer = train_bpe((text for row in pairs() for text in row.values()), vocab_size=300)
    set_chat_template(tokenizer)
    return tokenizer


@pytest.fixture
def make(tokenizer):
    def make(rows=None, splits=None, **options):
        transformers.set_seed(0)
        model = new_gpt2(tokenizer, n_layer=1, n_head=2, n_embd=32, block_size=48)
        table = Table("x", "", dict(splits) if splits else {"train": rows or pairs()})
        read_preferences(table)
        return model, Preference(table, tokenizer, model, **{"max_length": 40, "max_new_tokens": 6} | options)

    return make


def trainer_of(model, task, tmp_path, **arguments):
    from hf_lm.training.trl_trainers import dpo_trainer

    settings = {"use_cpu": True, "report_to": "none", "disable_tqdm": True, "logging_steps": 1, "save_strategy": "no"}
    args = TrainingArguments(output_dir=str(tmp_path), **settings | arguments)
    return dpo_trainer(model, args, task, lambda model: {"loss": 1.0})


def move(model, by=0.05):
    """Another model than the reference."""
    torch.manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(by * torch.randn_like(p))


def read(*rows, fill="prompt"):
    others = [{**{name: f"{name} {i}" for name in ("chosen", "rejected")}, "prompt": f"{i}"} for i in range(3)]
    table = Table("x", "", {"train": list(rows), "validation": others, "test": others})
    if fill == "same":
        table.rows["validation"] = table.rows["test"] = list(rows)
    read_preferences(table)
    return table


def test_every_form_of_a_pair_is_read():
    asked, yes, no = (
        {"role": r, "content": c} for r, c in (("user", "Hi?"), ("assistant", "Yes."), ("assistant", "No."))
    )
    expected = [{"messages": [asked], "chosen": "Yes.", "rejected": "No."}]
    for row in (
        {"prompt": "Hi?", "chosen": "Yes.", "rejected": "No."},
        {"prompt": [asked], "chosen": [yes], "rejected": [no]},
        {"prompt": "Hi?", "chosen": [asked, yes], "rejected": [asked, no]},
        {"messages": [asked, yes], "chosen": [asked, yes], "rejected": [asked, no]},
        {
            "conversations": [{"from": "human", "value": "Hi?"}],
            "chosen": {"from": "gpt", "value": "Yes."},
            "rejected": {"from": "gpt", "value": "No."},
        },
        {"query": "Hi?", "chosen": "Yes.", "rejected": "No."},
        {"prompt": "\n\nHuman: Hi?\n\nAssistant:", "chosen": " Yes.", "rejected": " No."},
        {"chosen": [asked, yes], "rejected": [asked, no]},
        {"chosen": "\n\nHuman: Hi?\n\nAssistant: Yes.", "rejected": "\n\nHuman: Hi?\n\nAssistant: No."},
        {"chosen": "Hi? Yes.", "rejected": "Hi? No."},
    ):
        assert read(row, fill="same").rows["train"] == expected, row
    turns = "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: "
    (row,) = read({"chosen": turns + "d", "rejected": turns + "e\n\nnot a turn"}, fill="same").rows["train"]
    assert [m["content"] for m in row["messages"]] == ["a", "b", "c"]
    assert (row["chosen"], row["rejected"]) == ("d", "e\n\nnot a turn")


def test_sides_may_hold_more_of_the_conversation_than_the_prompt():
    system, asked, said, more = (
        {"role": role, "content": text}
        for role, text in (("system", "Be brief."), ("user", "Hi?"), ("assistant", "Yes?"), ("user", "And?"))
    )
    ends = {side: {"role": "assistant", "content": side} for side in ("chosen", "rejected")}
    for prompt, shared, messages in (
        ("Hi?", [system, asked], [system, asked]),
        ("Hi?", [asked, said, more], [asked, said, more]),
        ("Hi?", [said, more], [asked, said, more]),
        ("And?", [said, more], [said, more]),
        ([system, asked], [asked], [system, asked]),
        ([system, asked], [said, more], [system, asked, said, more]),
        (None, [asked], [asked]),
    ):
        row = {"prompt": prompt} | {side: [*shared, end] for side, end in ends.items()}
        assert read(row, fill="same").rows["train"] == [{"messages": messages} | {side: side for side in ends}], row


def test_all_columns_of_a_prompt_are_read():
    answers = {"chosen": "Yes.", "rejected": "No."}
    asked, system = {"role": "user", "content": "Is it?\n\nThis."}, {"role": "system", "content": "Be brief."}
    own = [{"role": "system", "content": "Be kind."}, asked]
    before = [{"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}]
    for row, messages in (
        ({"instruction": "Is it?", "input": "This."}, [asked]),
        ({"instruction": "Is it?", "input": "", "context": "This."}, [asked]),
        ({"prompt": "Is it?\n\nThis.", "history": [["u", "a"]]}, [*before, asked]),
        ({"instruction": "Is it?\n\nThis.", "input": ""}, [asked]),
        ({"system": "Be brief.", "question": "Is it?\n\nThis."}, [system, asked]),
        ({"system": "Be brief.", "prompt": own}, own),
    ):
        assert read(row | answers, fill="same").rows["train"] == [answers | {"messages": messages}], row
    shared = {side: [asked, {"role": "assistant", "content": text}] for side, text in answers.items()}
    assert read(shared | {"system": "Be brief."}, fill="same").rows["train"][0]["messages"] == [system, asked]
    with pytest.raises(ValueError, match="3 pairs without a prompt"):  # a system turn alone asks nothing
        read({"system": "Be brief.", "chosen": "Yes.", "rejected": "No."}, fill="same")


def test_the_example_is_a_question_without_its_answer(make):
    _, task = make()
    assert task.example() in [{"messages": row["messages"]} for row in task.table.rows["test"]]


def test_pairs_that_teach_nothing_are_left_out_and_counted():
    good = {"prompt": "a", "chosen": "b", "rejected": "c"}
    table = read(good, good | {"rejected": "b"}, good | {"chosen": " "}, good | {"rejected": None})
    assert len(table.rows["train"]) == 1
    assert table.left_out == {"pairs_whose_answers_are_equal": 1, "pairs_with_an_empty_answer": 2}
    start = "\n\nHuman: a\n\nAssistant: "
    table = read(
        {"chosen": f"{start}b\n\nHuman: c\n\nAssistant: d", "rejected": f"{start}x\n\nHuman: y\n\nAssistant: z"},
        {"chosen": start + "b", "rejected": start + "c"},
        fill="same",
    )
    assert table.left_out["pairs_that_part_before_the_last_answer"] > 0
    with pytest.raises(ValueError, match="columns chosen and rejected"):
        read({"prompt": "a", "answer": "b"})
    with pytest.raises(ValueError, match=r"no training row that can be used: 1 pairs whose answers are equal"):
        read(good | {"rejected": "b"})


def test_prompts_longer_than_the_context_are_left_out_or_refused(make):
    long = [{"prompt": "word " * 60 + str(i), "chosen": "a", "rejected": "b"} for i in range(4)]
    _, task = make(rows=pairs() + long)
    assert task.table.left_out["prompts_longer_than_the_context"] == 4
    with pytest.raises(ValueError, match=r"keeps 0 pairs.*--max_length"):
        make(max_length=4)


def log_ps(net, prompt, answer):
    """log p of each token of an answer, one by one, in float64."""
    ids = torch.tensor([prompt + answer])
    with torch.no_grad():
        logits = net(ids[:, :-1]).logits[0].double()
    places = range(len(prompt) - 1, ids.shape[1] - 1)
    return [logits[i].log_softmax(-1)[ids[0, i + 1]].item() for i in places]


sigmoid = lambda x: 1 / (1 + math.exp(-x))  # noqa: E731
log_sigmoid = lambda x: math.log(sigmoid(x))  # noqa: E731
B = 0.3  # beta
OF_A_PAIR = {  # of the log-ratios of both answers to the reference, and their tokens
    "sigmoid": lambda w, r, *_: -log_sigmoid(B * (w - r)),
    "hinge": lambda w, r, *_: max(0.0, 1 - B * (w - r)),  # arXiv 2305.10425
    "ipo": lambda w, r, n, m: (w / n - r / m - 1 / (2 * B)) ** 2,  # arXiv 2310.12036, as its authors compute it
    "exo_pair": lambda w, r, *_: sum(  # arXiv 2402.00856, equation 16: KL to (0.9, 0.1)
        q * math.log(q / p) for q, p in ((sigmoid(B * (w - r)), 0.9), (sigmoid(B * (r - w)), 0.1))
    ),
    "nca_pair": lambda w, r, *_: (  # arXiv 2402.05369
        -log_sigmoid(B * w) - 0.5 * log_sigmoid(-B * w) - 0.5 * log_sigmoid(-B * r)
    ),
    "robust": lambda w, r, *_: -(0.9 * log_sigmoid(B * (w - r)) - 0.1 * log_sigmoid(B * (r - w))) / 0.8,  # 2403.00409
    "bco_pair": lambda w, r, *_: -log_sigmoid(B * w) - log_sigmoid(-B * r),  # arXiv 2404.04656, without its shift
    "sppo_hard": lambda w, r, *_: (w - 0.5 / B) ** 2 + (r + 0.5 / B) ** 2,  # arXiv 2405.00675
    "apo_zero": lambda w, r, *_: 1 - sigmoid(B * w) + sigmoid(B * r),  # arXiv 2408.06266, equation 7
    "apo_down": lambda w, r, *_: sigmoid(B * w) + 1 - sigmoid(B * (w - r)),  # equation 8
    "discopop": lambda w, r, *_: (  # arXiv 2406.08414, equation 5, tau 0.05
        (1 - sigmoid(B * (w - r) / 0.05)) * -log_sigmoid(B * (w - r))
        + sigmoid(B * (w - r) / 0.05) * math.exp(-B * (w - r))
    ),
    "sigmoid_norm": lambda w, r, n, m: -log_sigmoid(B * (w / n - r / m)),
}  # fmt: skip


@pytest.mark.parametrize("loss_type", OF_A_PAIR)
def test_each_loss_of_a_pair_is_its_papers_formula_in_float64(make, tmp_path, loss_type):
    """Padded, with an answer that was cut, in one batch and in a step of batches of unlike size."""
    smoothing = 0.1 if loss_type in ("exo_pair", "robust") else 0.0
    model, task = make(beta=B, loss_type=loss_type, label_smoothing=smoothing, max_length=28)
    assert task.encoded["train"].cut
    trainer = trainer_of(model, task, tmp_path)
    move(model)
    model.eval()
    features, losses = task.train_dataset[:5], []
    for feature in features:
        ratios, sizes = [], []
        for side in ("chosen_ids", "rejected_ids"):
            ours, theirs = (log_ps(net, feature["prompt_ids"], feature[side]) for net in (model, task.reference))
            ratios.append(sum(ours) - sum(theirs))
            sizes.append(len(ours))
        losses.append(OF_A_PAIR[loss_type](*ratios, *sizes))
    assert len({len(feature["chosen_ids"]) for feature in features}) > 1
    together = trainer.compute_loss(model, trainer._prepare_inputs(task.collate(features)))
    apart = [
        trainer.compute_loss(model, trainer._prepare_inputs(task.collate(some)), num_items_in_batch=torch.tensor(5))
        for some in (features[:3], features[3:])
    ]
    assert together.item() == pytest.approx(sum(losses) / 5, rel=1e-4)
    assert sum(apart).item() == pytest.approx(sum(losses) / 5, rel=1e-4)


@pytest.mark.parametrize("setting", [{"sampled_softmax": 8}, {"teachers": ["out/one"]}, {"sweep": 3}])
def test_settings_of_our_own_loss_are_refused_in_one_line(make, tmp_path, setting):
    model, task = make()
    with pytest.raises(ValueError, match=f"^--{next(iter(setting))} .*$"):
        trainer_of(model, task, tmp_path, **setting)


@pytest.mark.parametrize("rank", [0, 2])
def test_the_proofs_hold_and_training_prefers_the_chosen(make, tmp_path, rank):
    model, task = make(pairs(80))  # 8 in test: with fewer than 6 no difference is significant
    trainer = trainer_of(add_lora(model, rank=rank), task, tmp_path, max_steps=12, learning_rate=1e-2)
    for name, check in task.proofs_before(trainer).items():
        proof = check()
        assert proof.passed, f"{name}: {proof.said}"
    trainer.train()
    scores = task.measure(trainer.model, "test")
    found, (_, baseline) = scores.metrics(), task.baseline("test")
    assert found["reward_accuracy"].value > 90
    assert found["reward_margin"].beats(baseline.metrics()["reward_margin"])
    assert set(found) == {"reward_accuracy", "reward_margin", "kl", "length_change"}
    assert scores.loss == pytest.approx(
        sum(math.log1p(math.exp(-row["score"])) for row in scores.examples if "score" in row)
        / len(task.table.rows["test"])
    )


def test_a_model_that_has_not_moved_neither_prefers_nor_diverges(make, tmp_path):
    model, task = make(scorer=lambda texts: [float(len(text)) for text in texts])
    task.snapshot_reference(model)
    found = {name: estimate.value for name, estimate in task.measure(model, "test").metrics().items()}
    assert found == pytest.approx(
        {"reward_accuracy": 50, "reward_margin": 0, "kl": 0, "length_change": 0, "win_rate": 50}, abs=1e-5
    )


def test_pairs_of_one_prompt_count_as_one_in_an_interval(make):
    right = np.arange(12) < 9
    reports = []
    for copies in (1, 4):
        rows = [row | {"rejected": f"{row['rejected']} {'?' * n}"} for row in pairs(12) for n in range(copies)]
        table = {"train": rows, "validation": rows, "test": rows}
        _, task = make(splits=table)
        scores = np.zeros((12 * copies, 2))
        task.before["test"] = {"scores": scores, "answers": []}
        moved = scores + np.repeat(np.where(right, 1.0, -1.0), copies)[:, None] * [1, 0]
        found = task.score("test", (moved, [], np.zeros((2, 0)))).estimates
        baseline = task.baseline("test")[1].estimates
        of_both = {name: (found[name].interval(), found[name].minus(baseline[name])) for name in found}
        reports.append([x for both in of_both.values() for one in both for x in (one.value, one.low, one.high)])
        assert found["reward_accuracy"].beats(baseline["reward_accuracy"]) is False  # 9 of 12 prompts, p = 0.15
    assert reports[0] == pytest.approx(reports[1])


def test_metrics_do_not_depend_on_the_order_of_rows_or_their_company(make, monkeypatch):
    rows = {"train": pairs(), "validation": pairs(20), "test": pairs(20)}
    values = []
    for turn, alone in ((1, False), (-1, False), (1, True)):
        if alone:
            monkeypatch.setattr("hf_lm.data.batches.by_length", lambda n, **_: ([i] for i in range(len(n))))
        model, task = make()
        task.table.rows["test"] = [task.table.rows["train"][i] for i in range(20)][::turn]
        task.encoded["test"] = task.encode(task.table.rows["test"])
        task.answers = 0
        task.snapshot_reference(model)
        move(model)
        values.append([e.value for e in task.measure(model, "test").metrics().values()])
    assert values[0] == pytest.approx(values[1], rel=1e-4)
    assert values[0] == pytest.approx(values[2], rel=1e-4)
    assert rows


def test_relatives_of_the_loss_are_finite_and_train(make, tmp_path):
    for loss_type, smoothing in (
        ("hinge", 0),
        ("ipo", 0),
        ("exo_pair", 1e-3),
        ("robust", 0.1),
        ("apo_zero", 0),
        ("sft", 0),
    ):
        model, task = make(loss_type=loss_type, label_smoothing=smoothing, answers=0)
        trainer = trainer_of(model, task, tmp_path)
        loss = trainer.compute_loss(model, trainer._prepare_inputs(task.collate(task.train_dataset[:4])))
        loss.backward()
        assert torch.isfinite(loss), loss_type
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters()), loss_type
        assert "starts_at_reference" not in task.proofs_before(trainer)


@pytest.mark.parametrize(
    ("loss_type", "smoothing", "said"),
    [
        ("sigmoid", 0.1, "only exo_pair, robust, aot, aot_unpaired use it"),
        ("exo_pair", 0.0, "infinite at 0"),
        ("robust", 0.5, "less than 0.5"),
        ("aot", 0.7, "less than 0.5"),
    ],
)
def test_a_smoothing_that_a_loss_ignores_or_does_not_survive_is_refused(make, loss_type, smoothing, said):
    with pytest.raises(ValueError, match=rf"^--loss_type {loss_type} with --label_smoothing {smoothing:g}: .*{said}"):
        make(loss_type=loss_type, label_smoothing=smoothing)


def test_only_an_answer_counts():
    assert labelled([1, 2], [3]) == {"input_ids": [1, 2, 3], "labels": [-100, -100, 3]}


def test_the_recipe_reports_what_preferences_did(tmp_path, tokenizer):
    from test_chat import run_recipe

    transformers.set_seed(0)
    new_gpt2(tokenizer, n_layer=1, n_head=2, n_embd=32, block_size=48).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    data = tmp_path / "pairs.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in pairs(100)))
    report = run_recipe(
        "preference.py",
        model=tmp_path / "base",
        dataset=data,
        output_dir=tmp_path / "out",
        max_length=40,
        max_new_tokens=6,
        max_steps=10,
        learning_rate=1e-2,
        scorer="hf_lm.data.demos.dialogues:plainness",
        skip_proofs="load_back",
    )
    metrics = report["metrics"]["test"]
    assert metrics["reward_accuracy"]["baseline"]["beaten"]
    assert {"low", "high"} <= set(metrics["kl"])
    assert "baseline" not in metrics["length_change"]
    assert metrics["win_rate"]["baseline"]["value"] == 50
    assert 0 <= report["length_bias"]["longer_is_chosen"] <= 100
    lines = [json.loads(line) for line in (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()]
    assert any("reference_answer" in line for line in lines)
    assert any("rejected" in line for line in lines)


def losses_of_epochs(rank, folder, tokenizer, processes, batch, accumulation):
    """The losses of the steps of two epochs of 19 pairs; those of the second show what the first learned."""
    for state in (AcceleratorState, GradientState, PartialState):  # of the process that was forked
        state._reset_state()
    transformers.set_seed(0)
    model = new_gpt2(tokenizer, n_layer=1, n_head=2, n_embd=32, block_size=48, dropout=0.0)
    table = Table("x", "", {"train": pairs(19), "validation": pairs(4), "test": pairs(4)})
    read_preferences(table)
    task = Preference(table, tokenizer, model, max_length=40, max_new_tokens=6)
    settings = {"num_train_epochs": 2, "learning_rate": 1e-2, "per_device_train_batch_size": batch}
    settings |= {"gradient_accumulation_steps": accumulation, "ddp_backend": "gloo" if processes > 1 else None}
    trainer = trainer_of(model, task, folder / str(rank), **settings)
    trainer.train()
    assert trainer.args.world_size == processes
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def test_every_pair_of_an_epoch_counts_once_whatever_shares_the_step(tokenizer, tmp_path):
    (expected,) = on_gloo(1, losses_of_epochs, tmp_path, tokenizer, 1, 8, 1)
    assert len(expected) == 6
    for processes, batch, accumulation in ((1, 2, 4), (2, 4, 1), (2, 2, 2)):  # the last step has 3 pairs
        for losses in on_gloo(processes, losses_of_epochs, tmp_path, tokenizer, processes, batch, accumulation):
            assert losses == pytest.approx(expected, rel=1e-5)
