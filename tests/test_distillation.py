"""Distillation: the loss against the mixture of labels and teachers, and teachers that cannot teach."""

from types import SimpleNamespace

import pytest
import torch
from test_trainer import make_trainer  # noqa: F401  (a fixture)
from transformers import set_seed

from hf_lm.arguments import TrainingArguments
from hf_lm.models.gpt2 import new_gpt2
from hf_lm.tasks import proofs
from hf_lm.tasks.losses import label_loss, next_token_loss, span_loss
from hf_lm.tokenization.tokenizer import train_bpe
from hf_lm.training.distillation import Distillation, distilled_loss


class Says(torch.nn.Module):
    """A teacher with the same logits whatever it reads."""

    def __init__(self, logits):
        super().__init__()
        self.logits = torch.nn.Parameter(logits)

    def forward(self, input_ids):
        return SimpleNamespace(logits=self.logits.expand(*input_ids.shape, -1))


def batch_and_logits(vocabulary=7):
    torch.manual_seed(0)
    labels = torch.randint(vocabulary, (3, 5))
    labels[1, 2:4] = -100
    return {"input_ids": labels.clamp(min=0), "labels": labels}, torch.randn(3, 5, vocabulary, requires_grad=True)


@pytest.mark.parametrize("shifts", [True, False])
def test_the_loss_is_that_of_the_labels_and_of_the_mean_of_the_teachers(shifts):
    batch, logits = batch_and_logits()
    teachers = [Says(torch.randn(7)), Says(torch.randn(7))]
    loss = Distillation(teachers, weight=0.3, shifts_labels=shifts)(SimpleNamespace(logits=logits), batch)
    mean = sum(teacher.logits.double().softmax(-1) for teacher in teachers) / 2
    expected = 0.0
    for row in range(3):
        for i in range(5 - shifts):
            label = batch["labels"][row, i + shifts]
            if label != -100:
                log_probs = logits[row, i].double().log_softmax(-1)
                expected += -0.7 * log_probs[label].item() - 0.3 * (mean * log_probs).sum().item()
    assert loss.item() == pytest.approx(expected, rel=1e-6)
    loss.backward()
    assert all(teacher.logits.grad is None for teacher in teachers)
    assert not any(teacher.training for teacher in teachers)


def test_without_weight_it_is_the_loss_of_the_labels_and_a_batch_without_labels_has_none():
    batch, logits = batch_and_logits()
    outputs, teacher = SimpleNamespace(logits=logits), [Says(torch.randn(7))]
    for shifts, plain in ((True, next_token_loss), (False, label_loss)):
        loss = Distillation(teacher, weight=0.0, shifts_labels=shifts)(outputs, batch)
        torch.testing.assert_close(loss, plain(outputs, batch))
        nothing = batch | {"labels": torch.full_like(batch["labels"], -100)}
        assert Distillation(teacher, weight=0.5, shifts_labels=shifts)(outputs, nothing) == 0
    classes = {"input_ids": batch["input_ids"], "labels": torch.tensor([1, 4, 6])}  # one for a text
    per_text = Says(torch.randn(7))
    per_text.forward = lambda input_ids: SimpleNamespace(logits=per_text.logits.expand(len(input_ids), -1))
    loss = Distillation([per_text], weight=1.0, shifts_labels=False)(SimpleNamespace(logits=logits[:, 0]), classes)
    said = per_text.logits.softmax(-1)
    torch.testing.assert_close(loss, -(said * logits[:, 0].log_softmax(-1)).sum())


def test_a_student_approaches_its_teacher_and_the_loss_does_not_depend_on_the_batch(make_trainer, model, tokenizer):  # noqa: F811
    set_seed(1)
    teacher = new_gpt2(tokenizer, n_layer=1, n_head=2, n_embd=16, block_size=32)
    trainer = make_trainer(model, max_steps=12, learning_rate=3e-3)
    trainer.loss = Distillation([teacher], weight=1.0, shifts_labels=True)
    assert proofs.loss_invariance(trainer, [trainer.train_dataset[i] for i in range(4)]).passed

    def divergence():
        ids = trainer.data_collator([trainer.train_dataset[0]])["input_ids"]
        with torch.no_grad():
            said, expected = (each.eval()(ids).logits.log_softmax(-1) for each in (model, teacher))
        return (expected.exp() * (expected - said)).sum(-1).mean().item()

    before = divergence()
    trainer.train()
    assert divergence() < 0.8 * before


def task_of(tokenizer, **changes):
    task = {"loss": next_token_loss, "tokenizer": tokenizer, "auto_class": "AutoModelForCausalLM"}
    return SimpleNamespace(**task | {"shifts_labels": True} | changes)


def saved(model, tokenizer, folder):
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def test_a_teacher_reads_each_document_of_a_block_alone(model, tokenizer, tmp_path):
    folder = saved(model, tokenizer, tmp_path / "teacher")
    args = TrainingArguments(output_dir=str(tmp_path), teachers=[folder], teacher_weight=1.0, use_cpu=True)
    loss = distilled_loss(new_gpt2(tokenizer, n_layer=1, n_head=2, n_embd=16, block_size=32), args, task_of(tokenizer))
    torch.manual_seed(0)
    ids, logits = torch.randint(5, 300, (1, 12)), torch.randn(1, 12, len(tokenizer))
    positions = torch.tensor([[*range(5), *range(7)]])
    labels = torch.where(torch.arange(12) > 5, ids, -100)  # those of the second document
    packed = loss(SimpleNamespace(logits=logits), {"input_ids": ids, "position_ids": positions, "labels": labels})
    alone = loss(SimpleNamespace(logits=logits[:, 5:]), {"input_ids": ids[:, 5:], "labels": ids[:, 5:]})
    torch.testing.assert_close(packed, alone)


def test_one_that_cannot_teach_is_refused_in_one_line(model, tokenizer, texts, tmp_path):
    settings = {"output_dir": str(tmp_path / "out"), "use_cpu": True, "report_to": "none"}
    fits = saved(model, tokenizer, tmp_path / "fits")
    args = TrainingArguments(**settings, teachers=[fits], teacher_weight=0.25)
    loss = distilled_loss(model, args, task_of(tokenizer))
    assert isinstance(loss, Distillation)
    assert (loss.weight, len(loss.teachers)) == (0.25, 1)

    other = train_bpe(texts[:20], vocab_size=290)
    args.teachers = [fits, saved(new_gpt2(other, n_layer=1, n_head=1, n_embd=8), other, tmp_path / "other")]
    with pytest.raises(ValueError, match=r"other has another tokenizer than this model"):
        distilled_loss(model, args, task_of(tokenizer))
    args.teachers = [fits]
    model.config.id2label = {0: "good", 1: "bad"}
    with pytest.raises(ValueError, match=r"classes LABEL_0, LABEL_1, this model good, bad"):
        distilled_loss(model, args, task_of(tokenizer))
    with pytest.raises(ValueError, match=r"--teachers does not go with spans"):
        distilled_loss(model, args, task_of(tokenizer, loss=span_loss))
    args.sampled_softmax = 4
    with pytest.raises(ValueError, match=r"--teachers does not go with --sampled_softmax"):
        distilled_loss(model, args, task_of(tokenizer))
    args.teachers = ["no/where"]
    args.sampled_softmax = 0
    with pytest.raises(OSError, match="no/where"):
        distilled_loss(model, args, task_of(tokenizer))
