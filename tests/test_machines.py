"""Two machines: two network namespaces joined by a wire, each with its own disk, and what happens when one is lost.

Needs the right to make namespaces (root, or CAP_NET_ADMIN and CAP_SYS_ADMIN) and `ip`; elsewhere it is skipped.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import uuid

import psutil
import pytest
from test_sharded_recipes import PRETRAIN, ROOT, SHARED, curve, run, text  # noqa: F401  (text is a fixture)

PORT = 29519


def ip(*words):
    return subprocess.run(["ip", *words], capture_output=True, text=True)


@pytest.fixture
def machines(tmp_path):
    """The names of two namespaces; the first is 10.77.0.1, the second 10.77.0.2."""
    names = [f"hf{uuid.uuid4().hex[:8]}" for _ in range(2)]
    if shutil.which("ip") is None or any(ip("netns", "add", name).returncode for name in names):
        for name in names:
            ip("netns", "del", name)
        pytest.skip("network namespaces cannot be made here")
    try:
        ip("link", "add", "wire0", "netns", names[0], "type", "veth", "peer", "name", "wire1", "netns", names[1])
        for i, name in enumerate(names):
            ip("-n", name, "address", "add", f"10.77.0.{i + 1}/24", "dev", f"wire{i}")
            for device in ("lo", f"wire{i}"):
                ip("-n", name, "link", "set", device, "up")
        yield names
    finally:
        for name in names:
            ip("netns", "del", name)


def start(machine, rank, folder, dataset, **options):
    """A machine's part of a run; its home, its caches and its output are its own."""
    settings = SHARED | PRETRAIN | {"n_head": 2, "use_cpu": True, "dataset": dataset, "output_dir": folder / "out"}
    tokens = [token for key, value in (settings | options).items() for token in (f"--{key}", str(value))]
    launch = ["-m", "torch.distributed.run", "--nnodes", "2", "--node_rank", str(rank), "--nproc_per_node", "1"]
    launch += ["--master_addr", "10.77.0.1", "--master_port", str(PORT)]
    (folder / "home").mkdir(parents=True)
    places = {"HOME": "home", "XDG_CACHE_HOME": "cache", "HF_HOME": "hf"}
    environment = os.environ | {name: str(folder / place) for name, place in places.items()}
    # Where the name of a machine leads to its loopback, gloo would listen there.
    environment |= {"GLOO_SOCKET_IFNAME": f"wire{rank}", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        ["ip", "netns", "exec", machine, sys.executable, *launch, str(ROOT / "recipes" / "pretrain.py"), *tokens],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, start_new_session=True,
    )  # fmt: skip


def started(process):
    """The launcher and the workers of a machine that live."""
    return [one for one in psutil.process_iter() if one.pid == process.pid or _is_below(one, process.pid)]


def _is_below(one, pid):
    try:
        return os.getsid(one.pid) == pid and one.status() != psutil.STATUS_ZOMBIE
    except (ProcessLookupError, psutil.NoSuchProcess):
        return False


@pytest.mark.slow
def test_two_machines_without_a_shared_disk_train_as_two_processes_of_one(machines, text, tmp_path):  # noqa: F811
    folders = [tmp_path / f"machine{rank}" for rank in range(2)]
    both = [start(*one, text) for one in zip(machines, range(2), folders, strict=True)]
    said = [process.communicate(timeout=900)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], "\n".join(said)[-3000:]
    report = json.loads((folders[0] / "out" / "report.json").read_text())
    alone = run("pretrain", tmp_path / "alone", dataset=text, n_head=2, **PRETRAIN)
    assert curve(report) == pytest.approx(curve(alone), rel=1e-5)
    assert report["metrics"]["test"] == alone["metrics"]["test"]
    assert not (folders[1] / "out" / "report.json").exists()


@pytest.mark.slow
def test_a_lost_machine_ends_the_other_within_seconds(machines, text, tmp_path):  # noqa: F811
    folders = [tmp_path / f"machine{rank}" for rank in range(2)]
    long = {"max_steps": 100_000, "save_steps": 2, "eval_strategy": "no"}
    both = [start(*one, text, **long) for one in zip(machines, range(2), folders, strict=True)]
    try:
        deadline = time.monotonic() + 600
        while not list((folders[0] / "out").glob("checkpoint-*/manifest.json")):
            assert time.monotonic() < deadline, "no checkpoint"
            assert both[0].poll() is None, both[0].communicate()[0][-3000:]
            time.sleep(0.5)
        os.killpg(both[1].pid, signal.SIGKILL)
        lost = time.monotonic()
        said = both[0].communicate(timeout=90)[0]
        assert both[0].returncode not in (0, None)
        assert time.monotonic() - lost < 60
        assert started(both[0]) == []
        assert re.search(r"checkpoint-\d+ is complete|error:", said), said[-3000:]
    finally:
        for process in both:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
