"""Teach a causal model to answer: supervised fine-tuning on conversations, through TRL.

accelerate launch recipes/chat.py                                           # a small demo, anywhere
accelerate launch recipes/chat.py --model out/pretrain                      # the GPT that pretrain.py made
accelerate launch recipes/chat.py --model Qwen/Qwen3-0.6B-Base --dataset chats.jsonl --lora_rank 16
"""

# /// script
# requires-python = ">=3.11"
# dependencies = ["hf-lm>=0.1.0,<0.2"]
# ///

from dataclasses import dataclass

from hf_lm.arguments import ChatArguments, Size, TrainingArguments, parse_arguments
from hf_lm.data.conversations import read_chat
from hf_lm.data.tables import load_table
from hf_lm.models.adapters import add_lora
from hf_lm.tasks.chat import Chat
from hf_lm.training.chat_model import chat_model
from hf_lm.training.fit import fit


@dataclass
class Arguments(ChatArguments):
    model: str = ""  # a causal checkpoint, folder or Hub id; "" makes a tiny GPT-2, which will be weak
    dataset: str = "demo:dialogues"  # built-in dialogues, a file, a folder, a glob or a Hub id
    prompt: str = ""  # column; "" looks for messages, instruction and output, or prompt and completion
    completion: str = ""  # column of what is learned
    max_length: Size = 512  # tokens of a conversation, and of a block
    packing: bool = True  # fill blocks with complete conversations, isolated from each other


def main(args: Arguments, training_args: TrainingArguments) -> dict:
    from hf_lm.training.trl_trainers import sft_trainer  # imports trl, which takes seconds

    table = load_table(args.dataset)
    read_chat(table, prompt=args.prompt, completion=args.completion)
    chats = (row["messages"] for row in table.rows["train"])
    model, tokenizer, notes = chat_model(
        args.model, chats, template=args.chat_template, vocab_size=4096, block_size=args.max_length
    )
    table.notes += notes
    task = Chat(
        table,
        tokenizer,
        model,
        max_length=args.max_length,
        packing=args.packing,
        fresh=not args.model,
        drop_overlap=args.drop_overlap,
    )
    return fit(add_lora(model, **args.lora()), task, training_args, merge=args.merge, build_trainer=sft_trainer)


if __name__ == "__main__":
    main(
        *parse_arguments(
            Arguments,
            TrainingArguments,
            fresh={"learning_rate": 3e-3, "muon_learning_rate": 3e-3, "max_length": 256, "num_train_epochs": 2},
            output_dir="out/chat",
        )
    )
