"""What recipes/corpus.py costs: CPU seconds and MB/s of each stage, and peak memory, on text of given sizes.

python tests/benchmarks/corpus.py --text books/ --megabytes 50 500 2000 -- --filters gopher fineweb

Each size is files of 50 MB of sentences drawn from the text in another order, a task a file, in one process after the
other; what follows `--` goes to the recipe. Sentences of less than 50 tokens, so that the held-out documents share no
run of 50 with train. CPU seconds do not depend on what else the machine does.
"""

import argparse
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
FILE = 50_000_000  # bytes


def sentences(folder: Path) -> list[str]:
    """Of 30 to 120 characters."""
    texts = (path.read_text(encoding="utf-8", errors="replace") for path in sorted(folder.rglob("*.txt")))
    found = (re.sub(r"\s+", " ", s).strip() for text in texts for s in re.split(r"(?<=[.!?])\s", text))
    return [sentence for sentence in found if 30 <= len(sentence) <= 120]


def write_text(folder: Path, source: list[str], megabytes: float) -> None:
    """Documents of 36 random sentences in lines of six, seeded by the file's number."""
    folder.mkdir(parents=True)
    left = int(megabytes * 1e6)
    for number in range(-(-left // FILE)):
        draw, size = random.Random(number), min(FILE, left)
        left -= size
        with (folder / f"{number:05d}.jsonl").open("w", encoding="utf-8") as file:
            while size > 0:
                drawn = draw.choices(source, k=36)
                text = "\n".join(" ".join(drawn[i : i + 6]) for i in range(0, 36, 6))
                line = json.dumps({"text": text}, ensure_ascii=False) + "\n"
                size -= len(line.encode())
                file.write(line)


def measure(source: list[str], megabytes: float, options: list[str], folder: Path) -> dict:
    write_text(folder / "in", source, megabytes)
    command = [sys.executable, str(ROOT / "recipes" / "corpus.py"), "--dataset", str(folder / "in")]
    command += ["--workers", "1", "--output_dir", str(folder / "out"), *options]
    started = time.monotonic()
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)
        _, code, used = os.wait4(process.pid, 0)
    if code:
        raise SystemExit((folder / "log").read_text()[-2000:])
    report = json.loads((folder / "out" / "report.json").read_bytes())
    size = report["steps"][0]["bytes"]
    cpu = used.ru_utime + used.ru_stime
    return {
        "megabytes": size / 1e6,
        "documents": report["steps"][0]["documents"],
        "wall_seconds": time.monotonic() - started,
        "cpu_seconds": cpu,
        "cpu_mb_per_second": size / 1e6 / cpu,
        "peak_mib": used.ru_maxrss / 1024,
        "disk_mb": sum(path.stat().st_size for path in (folder / "out").rglob("*") if path.is_file()) / 1e6,
        "kept": report["steps"][-1]["bytes"] / size,
        "tokens": report["tokens"]["tokens"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, required=True, help="folder of .txt files")
    parser.add_argument("--megabytes", type=float, nargs="+", default=[5.0])
    parser.add_argument("options", nargs="*", help="of the recipe, after --")
    args = parser.parse_args()
    source = sentences(args.text)
    for megabytes in args.megabytes:
        folder = Path(tempfile.mkdtemp(prefix="corpus-"))
        try:
            row = measure(source, megabytes, args.options, folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        print(json.dumps({key: round(value, 3) for key, value in row.items()}), flush=True)


if __name__ == "__main__":
    main()
