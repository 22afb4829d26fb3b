"""The recipes: where they are, a copy to change, a run through `accelerate launch`. Nothing heavy before a run."""

import argparse
import ast
import os
import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import NoReturn

from hf_lm.hub.credentials import masked_arguments
from hf_lm.parsing.suggestions import UsageError, did_you_mean
from hf_lm.signals import IN_PLACE

# The exit code of a run that its budget stopped: EX_TEMPFAIL, which schedulers read as "again, later".
EXIT_OUT_OF_BUDGET = 75
# What `accelerate launch` takes and no recipe does: these may come after the recipe's name too.
LAUNCH_OPTIONS = (
    "--num_processes",
    "--num_machines",
    "--machine_rank",
    "--main_process_ip",
    "--main_process_port",
    "--gpu_ids",
    "--config_file",
)


@dataclass(frozen=True)
class Recipe:
    name: str
    path: Path
    said: str  # the first line of its docstring
    configs: tuple[Path, ...]


def find_recipes(folder: Path | None = None) -> dict[str, Recipe]:
    """Every recipe by its name, read and not imported. A configuration belongs to the recipe its name begins with."""
    folder = folder or _recipes_folder()
    paths = {path.stem: path for path in sorted(folder.glob("*.py"))}
    configs: dict[str, list[Path]] = {name: [] for name in paths}
    for path in sorted((folder / "configs").glob("*.yaml")):
        owners = [name for name in paths if path.stem == name or path.stem.startswith(f"{name}_")]
        if owners:
            configs[max(owners, key=len)].append(path)
    return {name: Recipe(name, path, _first_line(path), tuple(configs[name])) for name, path in paths.items()}


def find_launch_files() -> dict[str, str]:
    """What recipes/launch holds, accelerate's configurations and scripts for clusters: {file name: what it is for}."""
    return {path.name: _comment(path) for path in sorted((_recipes_folder() / "launch").iterdir())}


def _comment(path: Path) -> str:
    """The first line of the comment that a file begins with."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return next(line.removeprefix("# ") for line in lines if line.startswith("# "))


def _recipes_folder() -> Path:
    """Inside the package where a wheel was installed, beside it in a source checkout."""
    package = Path(__file__).parent
    for folder in (package / "recipes", package.parent / "recipes"):
        if (folder / "pretrain.py").is_file():
            return folder
    raise FileNotFoundError("this installation holds no recipes: install hf-lm from its wheel or a source checkout.")


def _first_line(path: Path) -> str:
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return text.partition("\n")[0]


def _recipe(name: str) -> Recipe:
    recipes = find_recipes()
    if name not in recipes:
        hint = did_you_mean(name, recipes)
        raise UsageError(f"there is no recipe {name!r}; there are {', '.join(recipes)}.{hint}")
    return recipes[name]


def recipe_path(name: str) -> Path:
    """The file of a recipe: of one by its name, or a path that ends in .py. Raises ValueError or FileNotFoundError."""
    if not name.endswith(".py"):
        return _recipe(name).path
    if not Path(name).is_file():
        raise FileNotFoundError(f"there is no file {name}; a recipe is named: {', '.join(find_recipes())}.")
    return Path(name)


def copy_recipe(name: str, folder: str | Path = ".") -> list[Path]:
    """Write a recipe and its configurations, or a file of recipes/launch, into a folder; returns what was written.

    The recipe comes first. The commands in the copy's docstring name the copy. Raises ValueError for an unknown
    recipe and FileExistsError, with nothing written, where one of the files is there already.
    """
    folder = Path(folder)
    if files := [path for path in (folder, *folder.parents) if path.is_file()]:
        raise NotADirectoryError(f"{files[0]} is a file: give another folder.")
    if name in find_launch_files():
        sources = {folder / name: _recipes_folder() / "launch" / name}
    else:
        recipe = _recipe(name)
        sources = {folder / recipe.path.name: recipe.path}
        sources |= {folder / "configs" / path.name: path for path in recipe.configs}
    there = [str(path) for path in sources if path.exists() or path.is_symlink()]
    if there:
        raise FileExistsError(
            f"{', '.join(there)} {'is' if len(there) == 1 else 'are'} there already and would be lost; "
            f"nothing was written. Give another folder: hf-lm copy {name} FOLDER"
        )
    for path, source in sources.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        code = source.read_text(encoding="utf-8")
        if path.suffix == ".py":
            docstring, mark, rest = code.removeprefix('"""').partition('"""')
            code = '"""' + docstring.replace("recipes/", f"{folder.as_posix()}/".removeprefix("./")) + mark + rest
        with path.open("x", encoding="utf-8") as file:
            file.write(code)
    return list(sources)


def launch(arguments: Sequence[str]) -> NoReturn:
    """Do what `accelerate launch` does, with a recipe's name (or the path of a script) where it takes a path.

    What stands before the name is accelerate's; what follows is the recipe's and reaches it untouched, but for
    LAUNCH_OPTIONS. One process is not started but become: signals reach the recipe, its exit code is this process's,
    and nothing can be left behind. Several are children of this process, which ends with the code of the first that
    failed. Raises ValueError where no recipe is named, where a machine has fewer GPUs than it would start processes,
    and where machines do not come together.
    """
    before, path, rest = _split(arguments)
    if path.is_relative_to(Path.cwd()):
        path = path.relative_to(Path.cwd())
    shown = shlex.join([*before, str(path), *masked_arguments(rest)])
    print(f"accelerate launch {shown}", file=sys.stderr, flush=True)

    import logging

    from accelerate.commands import launch as accelerate_launch
    from torch.distributed import DistError
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous import RendezvousError

    # Its list of values that were not given: the recipe itself says how many processes and which precision there are.
    logging.getLogger("accelerate.commands.launch").setLevel(logging.ERROR)
    # The one name of another module that this package replaces. accelerate 1.15 starts one process with
    # `subprocess.Popen` and waits: SIGTERM ends the launcher and leaves the child behind, and every exit code but 0
    # becomes 1. Its command line has no option for another launcher.
    accelerate_launch.simple_launcher = _become
    args = accelerate_launch.launch_command_parser().parse_args([*before, str(path), *rest])
    check_machine(args, on_cpu=args.cpu or "--use_cpu" in rest)
    try:
        accelerate_launch.launch_command(args)
    except ChildFailedError as error:
        code = error.get_first_failure()[1].exitcode
        raise SystemExit(code if code >= 0 else 128 - code) from None
    except SignalException as error:
        raise SystemExit(128 + error.sigval) from None
    except (RendezvousError, DistError) as error:
        raise ValueError(
            f"the {args.num_machines} machines did not come together at {args.main_process_ip}:"
            f"{args.main_process_port} ({error or type(error).__name__}). Start the command on each of them, with a "
            "port that is open between them."
        ) from None
    raise SystemExit(0)


def check_machine(args: argparse.Namespace, *, on_cpu: bool) -> None:
    """Raise ValueError where this machine has fewer GPUs than it would start processes, or cannot find the others.

    `args` are those of `accelerate launch`; a file that --config_file names says what they leave open.
    """
    import torch
    from accelerate.commands.config.config_args import load_config_from_file

    file = vars(load_config_from_file(args.config_file)) if args.config_file else {}
    machines = args.num_machines or file.get("num_machines", 1)
    here = (args.num_processes or file.get("num_processes", 1)) // machines
    ids = args.gpu_ids or file.get("gpu_ids") or "all"
    gpus = torch.accelerator.device_count() if ids == "all" else len(ids.split(","))
    if here > max(1, gpus) and not on_cpu and not file.get("use_cpu"):
        there = f"this machine has {gpus}" if gpus else "this machine has none"
        raise ValueError(
            f"{args.config_file or '--num_processes'} asks for {here} GPUs on each machine; {there}. "
            + (f"Give --num_processes {gpus * machines}, or " if gpus else "Give ")
            + "--use_cpu for processes on the CPU."
        )
    if machines > 1 and not (args.main_process_ip or file.get("main_process_ip")):
        raise ValueError(f"{machines} machines: give --main_process_ip, the address of one of them, on each.")
    if machines > 1 and args.machine_rank is None and (args.rdzv_backend == "static" or not file):
        raise ValueError(f"{machines} machines: give --machine_rank, 0 to {machines - 1}, one on each.")


def _become(args: argparse.Namespace) -> NoReturn:
    from accelerate.utils import prepare_simple_launcher_cmd_env

    command, environment = prepare_simple_launcher_cmd_env(args)
    environment[IN_PLACE] = "1"
    sys.stdout.flush()
    os.execvpe(command[0], command, environment)


def _split(arguments: Sequence[str]) -> tuple[list[str], Path, list[str]]:
    """accelerate's options, the script, the recipe's options."""
    recipes = find_recipes()

    def is_script(token: str) -> bool:
        return token in recipes or (token.endswith(".py") and Path(token).is_file())

    at = 0
    if arguments[0].startswith("-"):  # accelerate's options come first, and some have values
        at = next((i for i, token in enumerate(arguments) if is_script(token)), -1)
        if at < 0:
            raise UsageError(f"no recipe is named; there are {', '.join(recipes)}. hf-lm run NAME --OPTION VALUE")
    path = recipe_path(arguments[at])
    before, rest = list(arguments[:at]), []
    tokens = iter(arguments[at + 1 :])
    for token in tokens:
        if token.split("=")[0] not in LAUNCH_OPTIONS:
            rest.append(token)
        else:
            before += [token] if "=" in token else [token, *islice(tokens, 1)]  # with its value
    processes = re.search(r"--num_processes[ =](\d+)", " ".join(before))
    if processes and int(processes[1]) > 1 and "--use_cpu" in rest and "--multi_gpu" not in before:
        before.insert(0, "--multi_gpu")  # without it accelerate starts one process on a CPU, and says nothing
    return [_launch_file(*pair) for pair in zip(["", *before], before, strict=False)], path, rest


def _launch_file(option: str, value: str) -> str:
    """What follows or is an option of accelerate; of --config_file the name in recipes/launch becomes its path."""
    prefix = "--config_file=" if value.startswith("--config_file=") else ""
    if not prefix and option != "--config_file":
        return value
    name = value.removeprefix(prefix)
    if Path(name).is_file():
        return value
    folder = _recipes_folder() / "launch"
    there = [path.stem for path in sorted(folder.glob("*.yaml")) if "distributed_type" in path.read_text("utf-8")]
    stem = name.removeprefix("recipes/").removeprefix("launch/").removesuffix(".yaml")
    if stem not in there:
        raise ValueError(
            f"--config_file {name}: there is no such file; recipes/launch has {', '.join(there)}."
            f"{did_you_mean(stem, there)}"
        )
    path = folder / f"{stem}.yaml"
    return prefix + str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)
