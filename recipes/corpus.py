"""Prepare a corpus for pretraining: read, filter, deduplicate, remove held-out text, tokenize, with datatrove.

accelerate launch recipes/corpus.py                                             # built-in text, minutes on a laptop
accelerate launch recipes/corpus.py --dataset web/ --scripts Latin --workers 8  # a folder of .jsonl or .parquet files
accelerate launch recipes/corpus.py --dataset hf://datasets/user/name/data --executor slurm --partition cpu --tasks 500
"""

# /// script
# requires-python = ">=3.11"
# dependencies = ["hf-lm[corpus]>=0.1.0,<0.2"]
# ///

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from hf_lm.arguments import Count, Share, Size, TrainingArguments, parse_arguments


@dataclass
class Arguments:
    concerns: ClassVar = ("output_dir", "overwrite_output_dir", "resume_from_checkpoint")  # it trains nothing

    dataset: str = "demo"  # built-in text, a folder of .jsonl or .parquet files, or hf://datasets/USER/NAME/FOLDER
    text_column: str = "text"  # key of the text
    scripts: list[str] = field(default_factory=list)  # Unicode scripts kept, such as Latin Han; none keeps all
    languages: list[str] = field(default_factory=list)  # kept, as --language_model names them; none keeps all
    language_model: str = ""  # a fastText file that labels languages, such as lid.176.bin
    filters: list[str] = field(default_factory=list)  # gopher, fineweb (the default), gopher_repetition, or none
    deduplicate: bool = True  # remove near copies, by MinHash
    evaluation: list[str] = field(default_factory=list)  # files of text that must not occur in the corpus
    leakage_tokens: Size = 50  # documents that share so many consecutive tokens with held-out text are dropped
    held_out: Share = 0.02  # share of the documents for validation, and as many for test; of a large corpus less
    tokenizer: str = "bpe"  # trained on the corpus; otherwise a name or path
    vocab_size: Size = 4096  # entries of a trained tokenizer
    tokens_per_file: Count = 1_000_000_000  # of the merged files, in one shuffled order; 0 keeps a file a task
    executor: Literal["local", "slurm", "ray"] = "local"  # what runs the tasks
    tasks: Count = 0  # parts of the work; 0 is one a file, at most 1000
    workers: Count = 0  # tasks at the same time; 0 is one a core here, and no limit on a cluster
    partition: str = ""  # Slurm's queue
    time: str = "20:00:00"  # Slurm's limit of a task


def main(args: Arguments, training_args: TrainingArguments) -> dict:
    from datatrove.pipeline import dedup, tokens  # the extra `corpus`

    from hf_lm.corpus import steps
    from hf_lm.corpus.stages import Report, Stages, read_beside

    beside = read_beside(args.evaluation, args.tokenizer, args.language_model)
    machine = {"executor": args.executor, "workers": args.workers, "partition": args.partition, "time": args.time}
    stages = Stages(training_args, inputs=steps.input_files(args.dataset), beside=beside, tasks=args.tasks, **machine)
    folder, at, tokenizer = stages.folder, stages.at, stages.folder / "tokenizer"
    names = steps.filter_names(args.filters, args.dataset)
    kept = [step for name in names for step in (steps.quality_filter(name), steps.Count(f"after {name}"))]
    kinds = [steps.language_filter(args.languages, args.language_model)] if args.language_model else []
    kinds += [steps.ScriptFilter(args.scripts)] if args.scripts else []
    reader = [steps.read(args.dataset, args.text_column), steps.Count("read"), *kinds]
    stages.add("filter", [*reader, steps.Count("after language", kinds=True), *kept, steps.write(at("filtered"))])
    unique = [steps.stored(at("filtered"))]
    if args.deduplicate:
        stages.add("signatures", [*unique, steps.signatures(at("signatures"))])
        stages.add("buckets", [dedup.MinhashDedupBuckets(str(at("signatures")), str(at("buckets")))], tasks=14)
        stages.add("clusters", [dedup.MinhashDedupCluster(str(at("buckets")), str(at("copies")))], tasks=1)
        unique += [dedup.MinhashDedupFilter(str(at("copies"))), steps.Count("deduplicated")]
    stages.add("hold_out", [*unique, steps.HoldOut(folder, args.held_out, at("filtered")), steps.write(at("unique"))])
    stages.add("tokenizer", [steps.SaveTokenizer(at("unique"), tokenizer, args.tokenizer, args.vocab_size)], tasks=1)
    held_out = [folder / "validation", folder / "test"]
    clean = [steps.LeakageFilter(held_out, args.evaluation, tokenizer, run=args.leakage_tokens), steps.Count("train")]
    merge = args.tokens_per_file > 0
    tokenize = steps.Tokenize(at("tokens") if merge else folder, tokenizer, shuffle_documents=not merge, seed=0)
    stages.add("tokenize", [steps.stored(at("unique")), *clean, tokenize])
    if merge:
        files = (str(at("tokens")), str(folder), "corpus", args.tokens_per_file)
        stages.add("merge", [tokens.DocumentTokenizerMerger(*files, seed=0)], tasks=1)
    stages.add("report", [Report(folder, at("logs"), list(stages.executors), training_args.run)], tasks=1)
    return stages.run()


if __name__ == "__main__":
    main(*parse_arguments(Arguments, TrainingArguments, output_dir="out/corpus"))
