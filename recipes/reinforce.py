"""Tune a chat model by rewards that can be checked: GRPO, through TRL.

accelerate launch recipes/reinforce.py                                              # sums of two numbers, anywhere
accelerate launch recipes/reinforce.py --model out/chat --dataset openai/gsm8k:main --answer_pattern '#### (.*)'
accelerate launch recipes/reinforce.py --model out/chat --dataset prompts.jsonl --reward my_rewards:politeness
"""

from dataclasses import dataclass

from accelerate.utils import set_seed

from hf_lm.arguments import FINE_TUNING, FineTuningArguments, TrainingArguments, bf16_is_fast, parse_arguments
from hf_lm.data.conversations import as_text, read_prompts
from hf_lm.data.tables import load_table
from hf_lm.evaluation.rewards import load_reward
from hf_lm.models.adapters import add_lora
from hf_lm.models.gpt2 import new_gpt2
from hf_lm.models.loading import load_causal_lm
from hf_lm.tasks.reinforce import Reinforce
from hf_lm.tokenization.chat_template import set_chat_template
from hf_lm.tokenization.tokenizer import load_tokenizer, set_pad, train_bpe
from hf_lm.training.fit import fit
from hf_lm.training.warm_up import warm_up


@dataclass
class Arguments(FineTuningArguments):
    model: str = ""  # a chat model, folder or Hub id; "" makes a tiny GPT-2 that has begun to learn sums
    dataset: str = "demo:sums"  # built-in sums, a file, a folder, a glob or a Hub id
    prompt: str = ""  # columns; "" guesses
    reference: str = ""
    answer_pattern: str = ""  # regular expression whose first group in the reference is the answer
    chat_template: str = ""  # a Jinja file; "" keeps the tokenizer's own, or gives it a small one
    reward: str = "exact_answer"  # exact_answer, format, length, chrf, or module:function
    pattern: str = ""  # of the reward format: a regular expression that a whole answer must match
    target_length: int = 0  # of the reward length: characters
    max_new_tokens: int = 64  # of an answer
    num_generations: int = 8  # answers to a prompt that are compared
    beta: float = 0.02  # how dear it is to leave the model as it came; 0 asks nothing for it
    temperature: float = 1.0
    answers: int = 64  # held-out prompts measured, 4 answers to each
    collapse_steps: int = 10  # steps in a row without anything to learn that end a run; 0 never does


def main(args: Arguments, training_args: TrainingArguments) -> dict:
    from hf_lm.training.trl_trainers import grpo_trainer  # imports trl, which takes seconds

    set_seed(training_args.seed)
    reward = load_reward(args.reward, pattern=args.pattern, target_length=args.target_length)
    table = load_table(args.dataset)
    read_prompts(table, prompt=args.prompt, reference=args.reference, answer_pattern=args.answer_pattern)
    if args.model:
        tokenizer = load_tokenizer(args.model)
        set_pad(tokenizer)
        model = load_causal_lm(args.model, tokenizer=tokenizer)
        table.notes.append(set_chat_template(tokenizer, args.chat_template))
    else:
        chats = [[*row["messages"], {"role": "assistant", "content": row["reference"]}] for row in table.rows["train"]]
        tokenizer = train_bpe(map(as_text, chats), vocab_size=320)
        model = new_gpt2(tokenizer, n_embd=128, block_size=64)
        table.notes.append(set_chat_template(tokenizer, args.chat_template))
        warm_up(model, tokenizer, chats, steps=600, seed=training_args.seed)
        table.notes.append("the model is a tiny one that began to learn sums from their answers, in 600 steps")
    task = Reinforce(
        table,
        tokenizer,
        model,
        reward=reward,
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
    main(
        *parse_arguments(
            Arguments,
            TrainingArguments,
            fresh={
                **{"learning_rate": 2e-4, "warmup_steps": 50, "max_steps": 600},
                **{"max_new_tokens": 4, "per_device_train_batch_size": 128},
            },
            output_dir="out/reinforce",
            per_device_train_batch_size=8,
            bf16=bf16_is_fast(),
            **FINE_TUNING
            | {"learning_rate": 1e-5, "train_sampling_strategy": "random", "logging_steps": 5, "max_steps": 100}
            | {"eval_strategy": "steps", "eval_steps": 50, "save_strategy": "steps", "save_steps": 50},
        )
    )
