"""Tune a chat model to preferences: DPO and its relatives on pairs of answers, through TRL.

accelerate launch recipes/preference.py                                             # a small demo, anywhere
accelerate launch recipes/preference.py --model out/chat --dataset Anthropic/hh-rlhf --scorer out/sentiment \
    --scorer_label positive
"""

# /// script
# requires-python = ">=3.11"
# dependencies = ["hf-lm>=0.1.0,<0.2"]
# ///

from dataclasses import dataclass

from hf_lm.arguments import Function, Positive, ReplyArguments, Share, Size, TrainingArguments, parse_arguments
from hf_lm.data.conversations import read_preferences
from hf_lm.data.tables import load_table
from hf_lm.evaluation.rewards import load_scorer
from hf_lm.models.adapters import add_lora
from hf_lm.tasks.preference import LossType, Preference
from hf_lm.training.chat_model import chat_model, with_answers
from hf_lm.training.fit import fit

DEMO, DEMO_SCORER = "demo:preferences", "hf_lm.data.demos.dialogues:plainness"


@dataclass
class Arguments(ReplyArguments):
    model: str = ""  # a chat model, folder or Hub id; "" makes a tiny GPT-2, first trained on both answers
    dataset: str = DEMO  # built-in pairs, a file, a folder, a glob or a Hub id
    max_length: Size = 512  # tokens of a prompt and an answer
    loss_type: LossType = "sigmoid"  # DPO; the others are its variants in TRL
    beta: Positive = 0.1  # strength of the KL penalty towards the reference model
    label_smoothing: Share = 0.0  # share of pairs assumed to be swapped, for robust, exo_pair, aot and aot_unpaired
    scorer: Function = ""  # judges which answer wins: a text classifier's folder, or module:function
    scorer_label: str = ""  # the classifier's label for a good answer


def main(args: Arguments, training_args: TrainingArguments) -> dict:
    from hf_lm.training.trl_trainers import dpo_trainer  # imports trl, which takes seconds

    scorer = args.scorer or (DEMO_SCORER if args.dataset == DEMO else "")
    scorer = load_scorer(scorer, label=args.scorer_label) if scorer else None
    table = load_table(args.dataset)
    read_preferences(table)
    chats = with_answers(table.rows["train"], "chosen", "rejected")
    tiny = {"vocab_size": 2048, "n_embd": 128, "block_size": args.max_length, "steps": 400}
    model, tokenizer, notes = chat_model(args.model, chats, template=args.chat_template, **tiny)
    table.notes += notes
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
            learning_rate=5e-6,
            num_train_epochs=1,
        )
    )
