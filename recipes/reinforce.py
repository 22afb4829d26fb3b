"""Tune a chat model by rewards that can be checked: GRPO, through TRL.

accelerate launch recipes/reinforce.py                                              # sums of two numbers, anywhere
accelerate launch recipes/reinforce.py --model out/chat --dataset openai/gsm8k:main --answer_pattern '#### (.*)'
accelerate launch recipes/reinforce.py --model out/chat --dataset prompts.jsonl --reward my_rewards:politeness
"""

# /// script
# requires-python = ">=3.11"
# dependencies = ["hf-lm>=0.1.0,<0.2"]
# ///

from dataclasses import dataclass

from hf_lm.arguments import Amount, Count, Function, Positive, ReplyArguments, Size, TrainingArguments, parse_arguments
from hf_lm.data.conversations import read_prompts
from hf_lm.data.tables import load_table
from hf_lm.evaluation.rewards import COMPARING, load_reward, reward_bounds
from hf_lm.models.adapters import add_lora
from hf_lm.tasks.reinforce import Reinforce
from hf_lm.training.chat_model import chat_model, with_answers
from hf_lm.training.fit import fit


@dataclass
class Arguments(ReplyArguments):
    model: str = ""  # a chat model, folder or Hub id; "" makes a tiny GPT-2, first trained on sums
    dataset: str = "demo:sums"  # built-in sums, a file, a folder, a glob or a Hub id
    prompt: str = ""  # column; "" guesses
    reference: str = ""  # column that the reward compares with; "" guesses
    answer_pattern: str = ""  # regular expression whose first group in the reference is the answer
    reward: Function = "exact_answer"  # exact_answer, format, length, chrf, or module:function
    pattern: str = ""  # of the reward format: a regular expression that a complete answer must match
    target_length: Count = 0  # of the reward length: characters
    num_generations: Size = 8  # answers sampled for each prompt
    beta: Amount = 0.02  # strength of the KL penalty towards the initial model; 0 has none
    temperature: Positive = 1.0  # of sampling
    collapse_steps: Count = 10  # steps in a row without a learning signal that end a run; 0 never does


def main(args: Arguments, training_args: TrainingArguments) -> dict:
    from hf_lm.training.trl_trainers import grpo_trainer  # imports trl, which takes seconds

    reward = load_reward(args.reward, pattern=args.pattern, target_length=args.target_length)
    table = load_table(args.dataset)
    columns = {"prompt": args.prompt, "reference": args.reference, "answer_pattern": args.answer_pattern}
    read_prompts(table, **columns, compared=args.reward in COMPARING)
    chats = with_answers(table.rows["train"], "reference")
    tiny = {"vocab_size": 320, "n_embd": 128, "block_size": 64, "steps": 600}
    model, tokenizer, notes = chat_model(args.model, chats, template=args.chat_template, **tiny)
    table.notes += notes
    task = Reinforce(
        table,
        tokenizer,
        model,
        reward=reward,
        reward_bounds=reward_bounds(args.reward),
        max_new_tokens=args.max_new_tokens,
        num_generations=args.num_generations,
        beta=args.beta,
        temperature=args.temperature,
        answers=args.answers,
        collapse_steps=args.collapse_steps,
        drop_overlap=args.drop_overlap,
    )
    return fit(add_lora(model, **args.lora()), task, training_args, merge=args.merge, build_trainer=grpo_trainer)


if __name__ == "__main__":
    steps = {"eval_strategy": "steps", "eval_steps": 50, "save_strategy": "steps", "save_steps": 50}
    tiny_model = {"learning_rate": 2e-4, "max_steps": 600, "warmup_steps": 50, "max_new_tokens": 4}
    main(
        *parse_arguments(
            Arguments,
            TrainingArguments,
            fresh=tiny_model | {"per_device_train_batch_size": 128},
            output_dir="out/reinforce",
            **steps | {"learning_rate": 1e-5, "max_steps": 100},
        )
    )
