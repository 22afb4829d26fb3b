"""One parser for YAML and the command line: `parse_arguments` gives a recipe its resolved run.

Precedence: dataclass < recipe default < YAML (`--config`) < command line. A YAML file is turned into command-line
tokens, so file and terminal share one validator, and a misspelt key or value ends in one line that names where it is.
"""

import atexit
import gc
import math
import os
import sys
import time
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, TypeVar, get_type_hints

import torch
import transformers
import yaml
from accelerate import ParallelismConfig
from transformers import set_seed
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from hf_lm import dry_run
from hf_lm.hub.credentials import error_line, names_secret, report_errors
from hf_lm.output_folder import check_output
from hf_lm.parsing.command_line import (
    Function,  # noqa: F401 - recipes import this type from here, as the next
    Parser,
    check_keys,
    check_same_arguments,
    check_values,
    option_value,
    parse_command_line,
    parse_value,
    refuse_code,
    take_flag,
)
from hf_lm.parsing.config_file import read_config
from hf_lm.parsing.help_text import end_with_help
from hf_lm.parsing.ranges import (  # noqa: F401
    Amount,
    Count,
    Decay,
    Layers,
    Positive,
    Share,
    Size,
    check_ranges,
)
from hf_lm.signals import end_on_signals, end_with_launcher

Arguments = TypeVar("Arguments")


@dataclass
class TrainingArguments(transformers.TrainingArguments):
    """The Trainer's own arguments and the few that hf_lm adds. They work for every recipe."""

    output_dir: str = "trainer_output"  # folder for the model, its report and its checkpoints
    max_steps: int = -1  # optimizer steps; -1: as many as --num_train_epochs has; 0, in pretraining: as the text asks
    push_to_hub: bool = False  # push the finished run to --hub_model_id
    resume_from_checkpoint: str | None = None  # a checkpoint's folder, or latest: the last of --output_dir
    learning_rate: Amount = 5e-5  # learning rate of AdamW, or of --optim; 0 chooses it: in pretraining by the tokens
    # of an optimizer step, in fine-tuning by the width of the model
    muon_learning_rate: Amount = 0.0  # learning rate of Muon, which trains the hidden matrices; 0: --optim trains all
    # weights
    embedding_rate_scale: Positive = 1.0  # with Muon: learning rate of embedding and output layer, as a multiple of
    # --learning_rate
    last_norm_rate_scale: Amount = 0.0  # with Muon: learning rate of the last norm, as a multiple of --learning_rate;
    # 0 chooses it: 1, and 1 / passes^2 in pretraining that reads its text several times
    muon_weight_decay: Amount = 0.0  # decoupled weight decay of Muon's matrices; if not given, pretraining at the
    # default rates chooses it by the passes over the text, up to 1
    sampled_softmax: Count = 0  # pretraining: number of vocabulary entries, sampled by frequency, for which a training
    # step computes logits; saves time with a large vocabulary; 0: all
    teachers: list[str] = field(default_factory=list)  # models of the same task and tokenizer, folders or Hub ids,
    # whose mean prediction is learned
    teacher_weight: Share = 0.5  # weight of the teachers' predictions in the loss; the labels have the rest
    decay_share: Share = 0.4  # share of the steps in which warmup_stable_decay lowers the rate to 0
    rows_per_step: Count = 0  # rows of an optimizer step over all processes, for which gradients are accumulated; 0:
    # batch size x accumulation x processes. A resumed run keeps its rows
    early_stopping_patience: Count = 0  # stop after that many evaluations without a gain beyond noise; 0 never does
    sweep: Count = 0  # try that many learning rates around the given one first, each in a complete training
    max_hours: Amount = 0.0  # stop with a checkpoint before the run has taken that many hours; 0: no limit
    max_cost: Amount = 0.0  # stop with a checkpoint before the run has cost more than that; 0: no limit
    stop_after_steps: Count = 0  # stop with a checkpoint after that step, the schedule unchanged; 0: no limit
    price_per_hour: Amount = 0.0  # price of one hour of all devices together, in any currency
    skip_proofs: list[str] = field(default_factory=list)  # proofs to leave out, by name; the report then says so
    overwrite_output_dir: bool = False  # replace a run that --output_dir already holds
    resume_with_changes: bool = False  # resume although the checkpoint was written by another configuration
    run: dict[str, Any] = field(default_factory=dict, init=False)  # what run.yaml holds
    changed: dict[str, Any] = field(default_factory=dict, init=False)  # those that are not the recipe's default
    asked: set[str] = field(default_factory=set, init=False)  # their names, and what the command line says
    chosen: set[str] = field(default_factory=set, init=False)  # those that the run chose where nobody gave them
    names_metric: bool = field(default=False, init=False)  # whether --metric_for_best_model was given
    started: float = field(default=0.0, init=False)  # when the recipe was, by time.monotonic(); 0: `fit` is the start

    def __post_init__(self) -> None:
        self.names_metric = self.metric_for_best_model is not None
        recorded = [f for f in fields(self) if f.init and f.name not in ONE_INVOCATION and not names_secret(f.name)]
        default = {f.name: f.default if f.default_factory is MISSING else f.default_factory() for f in recorded}
        given = {name: value for name in default if (value := getattr(self, name)) != default[name]}
        self.run = self.changed = {name: _plain_value(value) for name, value in given.items()}
        self.asked = set(given)
        if self.bf16 and not torch.accelerator.is_available():
            self.use_cpu = True  # or the parent says that bf16 needs a GPU
        kinds = get_type_hints(type(self), include_extras=True)
        check_ranges({name: getattr(self, name, None) for name in kinds}, kinds, origin={})
        super().__post_init__()
        if self.deepspeed_plugin is not None:  # or from_pretrained hands out parts under ZeRO-3, before the proofs
            unset_hf_deepspeed_config()
        if self.world_size == 1 < int(os.environ.get("WORLD_SIZE", "1")) and "LOCAL_RANK" in os.environ:
            raise ValueError(
                f"this is one of {os.environ['WORLD_SIZE']} processes, and accelerate takes it for the only one: "
                "without GPUs give --use_cpu."
            )
        # Accelerate sets an address for several processes, and torchrun, which starts them, the number.
        if (
            "ACCELERATE_USE_CPU" in os.environ
            and "MASTER_ADDR" in os.environ
            and self.world_size == 1
            and not ({"WORLD_SIZE", "RANK"} & os.environ.keys())
        ):
            raise ValueError(
                "`accelerate launch` was asked for several processes and started this one alone. On CPUs give it "
                "--multi_gpu and no --cpu (hf-lm run does); for one process unset MASTER_ADDR."
            )
        if self.max_cost and self.price_per_hour <= 0:
            raise ValueError("--max_cost needs --price_per_hour, what an hour of the devices costs.")
        if self.label_smoothing_factor:
            raise ValueError("--label_smoothing_factor has no effect on the losses of hf_lm: leave it out.")

    def __getstate__(self) -> dict[str, Any]:
        """What is pickled or copied: all but the token, which must not reach a file."""
        return self.__dict__ | {"hub_token": None}

    @property
    def budget(self) -> float:
        """Seconds that the run may take; infinite without --max_hours and --max_cost."""
        hours = [self.max_hours] if self.max_hours else []
        hours += [self.max_cost / self.price_per_hour] if self.max_cost else []
        return 3600 * min(hours, default=math.inf)

    @property
    def data_parallel(self) -> int:
        """Processes that read different rows; those of context and sequence parallelism share theirs."""
        asked = os.environ.get("ACCELERATE_USE_PARALLELISM_CONFIG", "").lower() == "true"  # what accelerate goes by
        sizes = self.parallelism_config or (ParallelismConfig() if asked else None)
        return self.world_size // (sizes.non_data_parallel_size if sizes else 1)

    @property
    def rows_in_step(self) -> int:
        """Rows that all processes read in an optimizer step."""
        return self.rows_per_step or self.train_batch_size * self.gradient_accumulation_steps * self.data_parallel


@dataclass
class PretrainingArguments:
    """What recipes that train a language model on text have in common: the defaults of their training."""

    defaults: ClassVar[dict[str, Any]] = {
        "learning_rate": 1e-3,
        "muon_learning_rate": 1e-3,
        "lr_scheduler_type": "warmup_stable_decay",
        "per_device_train_batch_size": 16,
        "weight_decay": 0.1,
    }


@dataclass
class FineTuningArguments:
    """What every fine-tuning recipe takes beside its own arguments, and the defaults of its training.

    These are a rate that follows the checkpoint's width, batches of rows of similar length, and a measurement and a
    checkpoint after each epoch.
    """

    defaults: ClassVar[dict[str, Any]] = {
        "learning_rate": 0.0,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 0.1,
        "weight_decay": 0.01,
        "num_train_epochs": 3,
        "train_sampling_strategy": "group_by_length",
        "logging_first_step": True,  # a run of fewer than logging_steps has a curve too
        "eval_strategy": "epoch",
        "save_strategy": "epoch",
        "load_best_model_at_end": True,
    }

    lora_rank: Count = 0  # rank of LoRA's updates; 0 trains every weight
    lora_alpha: Count = 0  # updates are scaled by this over the rank; 0 is twice the rank
    lora_dropout: Decay = 0.0  # share of LoRA's input that training sets to 0
    dora: bool = False  # split each update into direction and size
    rslora: bool = False  # scale updates by 1 / sqrt(rank) rather than 1 / rank
    quantize: int = 0  # bits of the frozen base under LoRA: 4 or 8; 0 keeps full precision
    merge: bool = True  # add LoRA's updates to the weights, so that the result loads without peft
    drop_overlap: bool = False  # remove training rows that also occur in a held-out split

    def __post_init__(self) -> None:
        without_effect = [name for name in ("lora_alpha", "lora_dropout", "dora", "rslora") if getattr(self, name)]
        if without_effect and not self.lora_rank:
            raise ValueError(f"--{without_effect[0]} has no effect without --lora_rank: give a rank of 1 or more.")
        if self.quantize and not self.lora_rank:
            raise ValueError(f"--quantize {self.quantize} freezes the base: give what is trained a --lora_rank.")
        if self.quantize and not getattr(self, "model", ""):
            raise ValueError(
                f"--quantize {self.quantize} needs --model: a randomly initialised model trains all its weights."
            )
        if (decoder := getattr(self, "decoder", "")) and not getattr(self, "model", ""):
            raise ValueError(f"--decoder {decoder} is a decoder alone: give its encoder as --model.")

    def lora(self) -> dict[str, Any]:
        """The arguments of hf_lm.models.adapters.add_lora."""
        named = {"rank": self.lora_rank, "alpha": self.lora_alpha, "dropout": self.lora_dropout}
        return named | {"dora": self.dora, "rslora": self.rslora}


@dataclass
class ChatArguments(FineTuningArguments):
    """What every recipe that tunes a chat model takes beside its own arguments."""

    defaults: ClassVar[dict[str, Any]] = FineTuningArguments.defaults | {"per_device_train_batch_size": 8}

    chat_template: str = ""  # a Jinja file; "" keeps the tokenizer's own, or gives it a small one


@dataclass
class ReplyArguments(ChatArguments):
    """What every recipe takes beside that tunes a chat model by the answers it gives."""

    defaults: ClassVar[dict[str, Any]] = ChatArguments.defaults | {
        "train_sampling_strategy": "random",
        "logging_steps": 5,
    }

    max_new_tokens: Size = 64  # of an answer
    answers: Count = 64  # held-out prompts that are answered to measure the model


# Training defaults of every recipe; bf16 beside them.
SHARED_DEFAULTS: dict[str, Any] = {"logging_steps": 10, "save_total_limit": 2}

# The Trainer's own that every recipe's --help shows beside ours and those that the recipe sets.
COMMON = ("num_train_epochs", "per_device_train_batch_size", "gradient_accumulation_steps", "report_to", "seed")

# About one invocation rather than about the run: they do not belong in run.yaml.
ONE_INVOCATION = ("resume_from_checkpoint", "overwrite_output_dir", "resume_with_changes")


def parse_arguments(
    arguments_class: type[Arguments],
    training_arguments_class: type[TrainingArguments] = TrainingArguments,
    argv: list[str] | None = None,
    *,
    fresh: dict[str, Any] | None = None,
    **recipe_defaults: Any,
) -> tuple[Arguments, TrainingArguments]:
    """Resolve a recipe's run from its dataclasses, its own defaults, `--config FILE` and the command line; seed it.

    Recipe defaults are SHARED_DEFAULTS, bf16 where the machine is fast at it, those of the recipe's Arguments
    (`defaults`) and `recipe_defaults`, the later over the earlier. `concerns` of a recipe's Arguments: the training
    arguments that its --help shows, where it reads no other. `fresh`: what holds instead where no `--model` is
    given: a randomly initialised model needs other rates than a pretrained one.

    Also takes `--help` and `--help_all`, `--print_config` (show the resolved run and exit), `--allow_code` (a function
    that the YAML file names may be imported) and a bare `--debug` (errors with a traceback; without it an error is one
    line). The resolved run is kept in `training_args.run` and holds no token.
    A wrong key or value ends the process with exit code 2. In a dry run the tokens are its own instead of the
    process', and errors are raised.
    """
    started = time.monotonic()
    if argv is None:
        argv = sys.argv[1:] if (tokens := dry_run.mode().arguments) is None else list(tokens)
    argv = list(argv)
    _use_every_core()
    debug = take_flag(argv, "--debug")
    if not dry_run.active():
        report_errors(debug=debug)
        end_on_signals()
        end_with_launcher()
        atexit.register(gc.freeze)  # or Python looks through all that was imported for two seconds when it ends
    try:
        defaults = SHARED_DEFAULTS | {"bf16": bf16_is_fast()} | getattr(arguments_class, "defaults", {})
        args, training_args = _parse(
            arguments_class, training_arguments_class, argv, defaults | recipe_defaults, fresh or {}
        )
        training_args.started = started
        if training_args.world_size > 1:  # before the first work of one of them
            check_same_arguments(training_args.run | {name: getattr(training_args, name) for name in ONE_INVOCATION})
        dry_run.parsed(args)
        set_seed(training_args.seed)
        return args, training_args
    except (ValueError, OSError) as error:
        if debug or dry_run.active():
            raise
        print(f"error: {error_line(error)}", file=sys.stderr)
        raise SystemExit(2) from None


def _parse(arguments_class, training_arguments_class, argv, recipe_defaults, fresh):
    print_config, allow_code = take_flag(argv, "--print_config"), take_flag(argv, "--allow_code")
    main = sys.modules["__main__"]
    classes = (arguments_class, training_arguments_class)
    program = Path(getattr(main, "__file__", None) or "recipe").name
    parser = Parser(classes, allow_abbrev=False, description=main.__doc__, prog=program)
    parser.add_argument("--config")
    own = {f.name for c in classes for f in fields(c) if f.init}
    kinds = {key: kind for c in classes for key, kind in get_type_hints(c, include_extras=True).items() if key in own}
    if unknown := (set(recipe_defaults) | set(fresh)) - own:
        raise TypeError(f"the recipe sets defaults for unknown arguments: {sorted(unknown)}")
    parser.set_defaults(**recipe_defaults)
    defaults = {key: parser.get_default(key) for key in own}

    origin: dict[str, str] = {}  # key -> where its value was given
    config = option_value(argv, "--config")
    if config is not None:
        values = read_config(config)
        check_keys(values, own, where=config)
        given = {key: parse_value(parser, key, value, kinds[key], config) for key, value in values.items()}
        if not allow_code:
            refuse_code(given, kinds, where=config)
        parser.set_defaults(**given)
        origin |= dict.fromkeys(values, f"{config}: ")
    every = {*TrainingArguments.__annotations__, *recipe_defaults, *COMMON}
    end_with_help(parser, argv, arguments_class, getattr(arguments_class, "concerns", every), fresh)
    namespace = parse_command_line(parser, argv, own)
    origin |= {token[2:].split("=")[0].replace("-", "_"): "--" for token in argv if token.startswith("--")}
    resolved = {key: value for key, value in vars(namespace).items() if key in own}
    if not resolved.get("model"):
        resolved |= {key: value for key, value in fresh.items() if key not in origin}
        defaults |= fresh

    batch = ("per_device_train_batch_size", "gradient_accumulation_steps")
    if "--" in [origin.get(key) for key in batch] and origin.get("rows_per_step") != "--":
        resolved["rows_per_step"] = 0  # which a run.yaml recorded

    run = _saved_run(resolved, arguments_class, training_arguments_class, recipe_defaults | fresh, origin)
    if print_config:
        print(yaml.safe_dump(run, sort_keys=False, allow_unicode=True), end="")
        raise SystemExit(0)
    check_values(resolved, kinds, origin)
    try:
        objects = [c(**{f.name: resolved[f.name] for f in fields(c) if f.init}) for c in parser.dataclass_types]
    except (ValueError, TypeError, ImportError) as error:
        raise ValueError(str(error) or type(error).__name__) from error
    args, training_args = objects
    if not dry_run.active():  # before any work: fit, which makes the folder, comes after the tokenizer and the model
        check_output(
            training_args.output_dir,
            resume=bool(training_args.resume_from_checkpoint),
            overwrite=training_args.overwrite_output_dir,
            inputs=[value for f in fields(arguments_class) if isinstance(value := resolved[f.name], str)],
        )
    training_args.run = run
    training_args.changed = {key: value for key, value in run.items() if value != _plain_value(defaults[key])}
    training_args.asked = {*training_args.changed, *(key for key, where in origin.items() if where == "--")}
    return args, training_args


def _use_every_core() -> None:
    """Undo `accelerate launch`'s OMP_NUM_THREADS=1, its default even for one process on a CPU: share out the cores."""
    if os.environ.get("OMP_NUM_THREADS") == "1" and any(name.startswith("ACCELERATE_") for name in os.environ):
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        torch.set_num_threads(max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))


def bf16_is_fast() -> bool:
    """Whether this machine multiplies in bfloat16 without emulating it; where a GPU is, the GPU.

    In a dry run for another device: whether that one does.
    """
    if (device := dry_run.mode().bf16) is not None:
        return device
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    able = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(able.get("avx512_bf16") or able.get("amx_bf16"))


def _saved_run(resolved, arguments_class, training_arguments_class, recipe_defaults, origin) -> dict[str, Any]:
    """What run.yaml holds: every argument of the recipe, and of the Trainer's those that recipe or user gave.

    Values are taken before TrainingArguments changes them, and no token is among them.
    """
    run = {f.name: resolved[f.name] for f in fields(arguments_class) if not names_secret(f.name)}
    for f in fields(training_arguments_class):
        if not f.init or f.name in ONE_INVOCATION or names_secret(f.name):
            continue
        if f.name in recipe_defaults or f.name in origin:
            run[f.name] = resolved[f.name]
    return {key: _plain_value(value) for key, value in run.items()}


def _plain_value(value: object) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain_value(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain_value(item) for item in value]
    return getattr(value, "value", value)  # an enum is saved as its value
