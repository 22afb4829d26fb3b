"""recipes/launch: what accelerate and a cluster's scheduler are handed is what they take, and a restart continues."""

import os
import re
import signal
import subprocess
from pathlib import Path

import pytest
import yaml
from accelerate import ParallelismConfig
from accelerate.commands import launch as accelerate_launch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils import FullyShardedDataParallelPlugin, patch_environment
from accelerate.utils.launch import prepare_multi_gpu_env
from test_launching import SCRIPT, start

from hf_lm.launching import _split, check_machine, copy_recipe, find_launch_files

LAUNCH = Path(__file__).parent.parent / "recipes" / "launch"
CONFIGS = sorted(path for path in LAUNCH.glob("*.yaml") if "distributed_type" in path.read_text())
SHELL = {  # the shell code of each script
    "slurm.sh": (LAUNCH / "slurm.sh").read_text(),
    "skypilot.yaml": yaml.safe_load((LAUNCH / "skypilot.yaml").read_text())["run"],
    "kubernetes.yaml": list(yaml.safe_load_all((LAUNCH / "kubernetes.yaml").read_text()))[1]["spec"]["template"][
        "spec"
    ]["containers"][0]["args"][0],
}


def launch_args(*options: str):
    return accelerate_launch.launch_command_parser().parse_args([*options, "recipe.py"])


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_accelerate_knows_each_key_and_takes_each_value(path):
    config = load_config_from_file(str(path))
    options = vars(launch_args()).keys()
    for section in ("fsdp_config", "deepspeed_config", "parallelism_config"):
        assert getattr(config, section).keys() <= options, section
    ip = ["--main_process_ip", "localhost", "--machine_rank", "0"] if config.num_machines > 1 else []
    args, *_ = accelerate_launch._validate_launch_command(launch_args("--config_file", str(path), *ip))
    assert args.num_processes == {"gpu": 1, "fsdp2_2nodes": 16, "hsdp": 16}.get(path.stem, 8)
    assert args.use_deepspeed == path.stem.startswith("zero")
    assert args.use_fsdp == (path.stem in ("fsdp2", "fsdp2_2nodes", "hsdp"))
    if args.use_fsdp:
        with patch_environment(**prepare_multi_gpu_env(args)):
            plugin, parallel = FullyShardedDataParallelPlugin(), ParallelismConfig()
        assert plugin.fsdp_version == 2
        assert plugin.auto_wrap_policy.__name__ == "transformer_auto_wrap_policy"
        assert plugin.state_dict_type.name == "FULL_STATE_DICT"
        assert plugin.reshard_after_forward
        assert not plugin.cpu_ram_efficient_loading
        assert parallel.total_size == (16 if path.stem == "hsdp" else 1)
    if args.use_deepspeed:
        assert args.zero_stage == int(path.stem[-1])


def test_each_launch_file_is_short_says_what_it_is_for_and_is_copied(tmp_path):
    there = find_launch_files()
    assert set(there) == {path.name for path in LAUNCH.iterdir()}
    assert all(what.endswith(".") for what in there.values())
    assert all(len((LAUNCH / name).read_text().splitlines()) < 40 for name in there)
    assert [path.read_text() for path in copy_recipe("slurm.sh", tmp_path)] == [SHELL["slurm.sh"]]
    with pytest.raises(FileExistsError, match="nothing was written"):
        copy_recipe("slurm.sh", tmp_path)


def test_a_launch_file_is_found_by_its_name_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    named = str(LAUNCH / "fsdp2.yaml")
    for name in ("fsdp2", "fsdp2.yaml", "launch/fsdp2.yaml", "recipes/launch/fsdp2.yaml"):
        assert _split(["pretrain", "--config_file", name])[0] == ["--config_file", named]
        assert _split([f"--config_file={name}", "pretrain"])[0] == [f"--config_file={named}"]
    Path("fsdp2.yaml").write_text("distributed_type: MULTI_GPU\n")  # a file that is there comes first
    assert _split(["pretrain", "--config_file", "fsdp2.yaml"])[0] == ["--config_file", "fsdp2.yaml"]
    with pytest.raises(ValueError, match=r"no such file; recipes/launch has ddp, .*Did you mean 'fsdp2'\?"):
        _split(["pretrain", "--config_file", "other/fsdp2.yaml"])
    with pytest.raises(ValueError, match="no such file"):
        _split(["pretrain", "--config_file", "skypilot"])


@pytest.mark.parametrize(
    ("options", "gpus", "error"),
    [
        (["--config_file", "ddp"], 2, r"ddp\.yaml asks for 8 GPUs on each machine; this machine has 2\. .*sses 2"),
        (["--config_file", "ddp"], 0, r"this machine has none\. Give --use_cpu"),
        (["--config_file", "ddp"], 8, None),
        (["--config_file", "ddp", "--num_processes", "2"], 2, None),
        (["--config_file", "ddp", "--gpu_ids", "0,1"], 8, "this machine has 2"),
        (["--config_file", "gpu"], 0, None),  # one process trains on the CPU
        (["--num_processes", "4"], 1, "--num_processes asks for 4 GPUs"),
        (["--config_file", "hsdp"], 8, "2 machines: give --main_process_ip"),
        (["--config_file", "hsdp", "--main_process_ip", "host"], 8, "give --machine_rank, 0 to 1"),
        (["--config_file", "hsdp", "--main_process_ip", "host", "--machine_rank", "1"], 8, None),
        (["--config_file", "hsdp", "--main_process_ip", "host", "--machine_rank", "1"], 4, "8 GPUs.*processes 8"),
        (["--config_file", "fsdp2", "--num_machines", "2", "--num_processes", "16", "--main_process_ip", "host",
          "--rdzv_backend", "c10d"], 8, None),
    ],
)  # fmt: skip
def test_a_launch_that_this_machine_cannot_do_is_one_line(options, gpus, error, monkeypatch):
    monkeypatch.setattr("torch.accelerator.device_count", lambda: gpus)
    args = launch_args(*_split([*options, "pretrain"])[0])
    if error is None:
        check_machine(args, on_cpu=False)
    else:
        with pytest.raises(ValueError, match=error) as raised:
            check_machine(args, on_cpu=False)
        assert "\n" not in str(raised.value)


def test_processes_on_a_cpu_need_no_gpu(monkeypatch):
    monkeypatch.setattr("torch.accelerator.device_count", lambda: 0)
    check_machine(launch_args("--config_file", str(LAUNCH / "ddp.yaml")), on_cpu=True)


def test_machines_that_do_not_come_together_are_one_line(capsys, monkeypatch):
    from torch.distributed import DistNetworkError

    from hf_lm.launching import launch

    def fail(args):
        raise DistNetworkError("The client socket has timed out after 600000ms")

    monkeypatch.setattr(accelerate_launch, "launch_command", fail)
    options = ["--num_machines", "2", "--num_processes", "2", "--main_process_ip", "host", "--machine_rank", "1"]
    with pytest.raises(ValueError, match=r"2 machines did not come together at host:29500 \(The client socket"):
        launch([*options, "--main_process_port", "29500", "pretrain", "--use_cpu"])


# Scripts of clusters


@pytest.mark.parametrize("name", SHELL)
def test_a_script_is_bash_and_gives_saving_less_time_than_the_scheduler_does(name):
    assert subprocess.run(["bash", "-n"], input=SHELL[name], text=True).returncode == 0
    text = (LAUNCH / name).read_text()
    saving = int(re.search(r"TORCH_ELASTIC_SHUTDOWN_TIMEOUT\D+(\d+)", text)[1])
    granted = re.search(r"(?:--signal=TERM@|terminationGracePeriodSeconds: )(\d+)", text)
    assert saving < (int(granted[1]) if granted else 120)  # a spot machine has two minutes


def test_a_kubernetes_pod_finds_the_first_by_the_name_that_the_service_gives_it():
    service, job = yaml.safe_load_all((LAUNCH / "kubernetes.yaml").read_text())
    host = f"{job['metadata']['name']}-0.{service['metadata']['name']}"
    assert f"--main_process_ip {host} " in SHELL["kubernetes.yaml"]
    assert job["spec"]["template"]["spec"]["subdomain"] == service["metadata"]["name"]
    assert service["spec"]["selector"] == {"job-name": job["metadata"]["name"]}
    assert job["spec"]["completions"] == load_config_from_file(str(LAUNCH / "fsdp2_2nodes.yaml")).num_machines


@pytest.mark.parametrize("name", SHELL)
def test_the_main_process_alone_looks_for_a_checkpoint_so_that_machines_which_start_apart_agree(name):
    assert re.search(r" --output_dir \S+ --resume_from_checkpoint latest\b", SHELL[name])
    assert "checkpoint-" not in SHELL[name]


RUNNING = "JobState=RUNNING PreemptEligibleTime=2026-12-01T06:01:30 PreemptTime=None"
CANCELLED = RUNNING.replace("RUNNING", "COMPLETING")
PREEMPTED = CANCELLED.replace("PreemptTime=None", "PreemptTime=2026-12-01T06:01:36")


@pytest.mark.parametrize(
    ("code", "job", "queued"),
    [
        (0, RUNNING, False),
        (1, RUNNING, False),
        (75, RUNNING, True),
        (143, RUNNING, True),  # near the end of its time
        (143, PREEMPTED, True),
        (143, CANCELLED, False),  # by scancel
    ],
)
def test_a_slurm_job_that_was_stopped_is_queued_again_and_continues(code, job, queued, tmp_path):
    fake = {
        "srun": f'printf "%s\\n" "$@" > srun.log; exit {code}',
        "scontrol": f'case "$1 $2" in "show hostnames") echo node7; echo node8;; "show job") echo "{job}";; '
        '*) echo "$@" > scontrol.log; esac',
    }
    for name, body in fake.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    environment = {
        "SLURM_JOB_ID": "12345",
        "SLURM_NNODES": "2",
        "SLURM_GPUS_ON_NODE": "4",
        "SLURM_JOB_NODELIST": "node[7-8]",
    }
    environment["PATH"] = f"{tmp_path}:{os.environ['PATH']}"
    command = ["bash", str(LAUNCH / "slurm.sh"), "fsdp2", "pretrain", "out", "--document_start", "= x"]
    done = subprocess.run(command, cwd=tmp_path, env=os.environ | environment)
    assert done.returncode == code
    words = (tmp_path / "srun.log").read_text().splitlines()
    before, path, rest = _split(words[words.index("run") + 1 :])
    assert path.name == "pretrain.py"
    given = dict(zip(before[::2], before[1::2], strict=True))
    assert (given["--num_machines"], given["--num_processes"]) == ("2", "8")
    assert (given["--main_process_ip"], given["--rdzv_backend"]) == ("node7", "c10d")
    assert rest == ["--output_dir", "out", "--resume_from_checkpoint", "latest", "--document_start", "= x"]
    assert (tmp_path / "scontrol.log").exists() == queued


SLOW_TO_SAVE = SCRIPT.replace('print("stopping", flush=True)', "time.sleep(4); print('saved', flush=True)")


@pytest.mark.slow
@pytest.mark.parametrize(("seconds", "saved"), [(1, False), (60, True)])
def test_the_time_that_several_processes_have_after_sigterm_is_that_of_the_environment(seconds, saved, tmp_path):
    script = tmp_path / "mine.py"
    script.write_text(SLOW_TO_SAVE)
    with patch_environment(TORCH_ELASTIC_SHUTDOWN_TIMEOUT=str(seconds)):
        run = start(script, "--num_processes", 2, "--wait", "--use_cpu")
    for _ in range(2):
        run.stdout.readline()
    run.send_signal(signal.SIGTERM)
    assert ("saved" in run.communicate(timeout=60)[0]) == saved
