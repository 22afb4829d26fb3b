"""Teach a causal model to answer: supervised fine-tuning on conversations, through TRL.

accelerate launch recipes/chat.py                                           # a small demo, anywhere
accelerate launch recipes/chat.py --model out/pretrain                      # the GPT that pretrain.py made
accelerate launch recipes/chat.py --model Qwen/Qwen3-0.6B-Base --dataset chats.jsonl --lora_rank 16
"""

from dataclasses import dataclass

from accelerate.utils import set_seed

from hf_lm.arguments import FINE_TUNING, FineTuningArguments, TrainingArguments, bf16_is_fast, parse_arguments
from hf_lm.data.conversations import as_text, read_chat
from hf_lm.data.tables import load_table
from hf_lm.models.adapters import add_lora
from hf_lm.models.gpt2 import new_gpt2
from hf_lm.models.loading import load_causal_lm
from hf_lm.tasks.chat import Chat
from hf_lm.tokenization.chat_template import set_chat_template
from hf_lm.tokenization.tokenizer import load_tokenizer, set_pad, train_bpe
from hf_lm.training.fit import fit


@dataclass
class Arguments(FineTuningArguments):
    model: str = ""  # a causal checkpoint, folder or Hub id; "" makes a fresh tiny GPT-2, which will be weak
    dataset: str = "demo:dialogues"  # built-in dialogues, a file, a folder, a glob or a Hub id
    prompt: str = ""  # columns; "" looks for messages, instruction and output, or prompt and completion
    completion: str = ""
    chat_template: str = ""  # a Jinja file; "" keeps the tokenizer's own, or gives it a small one
    max_length: int = 512  # tokens of a conversation, and of a block
    packing: bool = True  # fill blocks with whole conversations, which do not see each other


def main(args: Arguments, training_args: TrainingArguments) -> dict:
    from hf_lm.training.trl_trainers import sft_trainer  # imports trl, which takes seconds

    set_seed(training_args.seed)
    table = load_table(args.dataset)
    read_chat(table, prompt=args.prompt, completion=args.completion)
    if args.model:
        tokenizer = load_tokenizer(args.model)
        set_pad(tokenizer)
        model = load_causal_lm(args.model, tokenizer=tokenizer)
    else:
        tokenizer = train_bpe((as_text(row["messages"]) for row in table.rows["train"]), vocab_size=4096)
        model = new_gpt2(tokenizer, block_size=args.max_length)
        table.notes.append("the model was not pretrained: it knows no more than these conversations, and is weak")
    table.notes.append(set_chat_template(tokenizer, args.chat_template))
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
            fresh={"learning_rate": 3e-3, "muon_learning_rate": 1e-2, "max_length": 256, "num_train_epochs": 2},
            output_dir="out/chat",
            per_device_train_batch_size=8,
            bf16=bf16_is_fast(),
            **FINE_TUNING,
        )
    )
