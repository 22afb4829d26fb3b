"""Tune a chat model to preferences: DPO and its relatives on pairs of answers, through TRL.

accelerate launch recipes/preference.py                                             # a small demo, anywhere
accelerate launch recipes/preference.py --model out/chat --dataset prefs.jsonl
accelerate launch recipes/preference.py --model out/chat --dataset Anthropic/hh-rlhf --scorer out/sentiment \
    --scorer_label positive
"""

from dataclasses import dataclass

from accelerate.utils import set_seed

from hf_lm.arguments import FINE_TUNING, FineTuningArguments, TrainingArguments, bf16_is_fast, parse_arguments
from hf_lm.data.conversations import as_text, read_preferences
from hf_lm.data.tables import load_table
from hf_lm.evaluation.rewards import load_scorer
from hf_lm.models.adapters import add_lora
from hf_lm.models.gpt2 import new_gpt2
from hf_lm.models.loading import load_causal_lm
from hf_lm.tasks.preference import LossType, Preference
from hf_lm.tokenization.chat_template import set_chat_template
from hf_lm.tokenization.tokenizer import load_tokenizer, set_pad, train_bpe
from hf_lm.training.fit import fit
from hf_lm.training.warm_up import warm_up

DEMO, DEMO_SCORER = "demo:preferences", "hf_lm.data.demos.dialogues:plainness"


@dataclass
class Arguments(FineTuningArguments):
    model: str = ""  # a chat model, folder or Hub id; "" makes a tiny GPT-2 that first reads both kinds of answers
    dataset: str = DEMO  # built-in pairs, a file, a folder, a glob or a Hub id
    chat_template: str = ""  # a Jinja file; "" keeps the tokenizer's own, or gives it a small one
    max_length: int = 512  # tokens of a prompt and an answer
    max_new_tokens: int = 64  # of an answer to a held-out prompt
    loss_type: LossType = "sigmoid"  # DPO; the others are its relatives in TRL
    beta: float = 0.1  # how dear it is to leave the reference
    label_smoothing: float = 0.0  # for robust and exo_pair
    answers: int = 64  # held-out prompts that model and reference answer; 0 leaves KL, length and wins out
    scorer: str = ""  # who says which answer wins: a text classifier's folder, or module:function
    scorer_label: str = ""  # the classifier's label that is good


def main(args: Arguments, training_args: TrainingArguments) -> dict:
    from hf_lm.training.trl_trainers import dpo_trainer  # imports trl, which takes seconds

    set_seed(training_args.seed)
    scorer = args.scorer or (DEMO_SCORER if args.dataset == DEMO else "")
    scorer = load_scorer(scorer, label=args.scorer_label) if scorer else None
    table = load_table(args.dataset)
    read_preferences(table)
    if args.model:
        tokenizer = load_tokenizer(args.model)
        set_pad(tokenizer)
        model = load_causal_lm(args.model, tokenizer=tokenizer)
        table.notes.append(set_chat_template(tokenizer, args.chat_template))
    else:
        chats = [
            [*row["messages"], {"role": "assistant", "content": row[side]}]
            for row in table.rows["train"]
            for side in ("chosen", "rejected")
        ]
        tokenizer = train_bpe(map(as_text, chats), vocab_size=2048)
        model = new_gpt2(tokenizer, n_embd=128, block_size=args.max_length)
        table.notes.append(set_chat_template(tokenizer, args.chat_template))
        warm_up(model, tokenizer, chats, steps=400, seed=training_args.seed)
        table.notes.append("the model is a tiny one that first read chosen and rejected answers alike, in 400 steps")
    task = Preference(
        table,
        tokenizer,
        model,
        max_length=args.max_length,
        max_new_tokens=args.max_new_tokens,
        beta=args.beta,
        loss_type=args.loss_type,
        label_smoothing=args.label_smoothing,
        answers=args.answers,
        scorer=scorer,
        drop_overlap=args.drop_overlap,
    )
    return fit(add_lora(model, **args.lora()), task, training_args, merge=args.merge, build_trainer=dpo_trainer)


if __name__ == "__main__":
    main(
        *parse_arguments(
            Arguments,
            TrainingArguments,
            fresh={"learning_rate": 5e-5, "max_steps": 60, "max_length": 128, "max_new_tokens": 32},
            output_dir="out/preference",
            per_device_train_batch_size=8,
            bf16=bf16_is_fast(),
            **FINE_TUNING
            | {"learning_rate": 5e-6, "num_train_epochs": 1, "train_sampling_strategy": "random", "logging_steps": 5},
        )
    )
