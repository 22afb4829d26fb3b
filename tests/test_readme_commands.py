"""The README's commands, word for word and in order, against the loopback Hub, with small data and small models."""

import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import transformers
from loopback_hub import hub  # noqa: F401
from test_docs import ROOT, commands

from hf_lm.models.bert import new_bert
from hf_lm.tokenization.tokenizer import add_frame, train_bpe

DOCUMENT = "The {} of the garden said that {} is a word, and nobody in the house had another one for it. "
NAMES = ["cat", "dog", "fox", "owl", "bee", "ant", "hen", "cow"]
TEXTS = [DOCUMENT.format(NAMES[i % 8], f"{NAMES[i * 3 % 8]}{i}") * (1 + i % 3) for i in range(120)]


def lines(rows: list[dict]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def write_data(folder: Path) -> None:
    (folder / "recipes").symlink_to(ROOT / "recipes")
    for name in ("texts", "pairs"):
        (folder / name).mkdir()
    for i, text in enumerate(TEXTS):
        (folder / "texts" / f"{i}.txt").write_text(text)
    pairs = [{"en": f"{name} {i}", "de": f"{i} {name}"} for i, name in enumerate(NAMES * 4)]
    (folder / "pairs" / "train.jsonl").write_text(lines(pairs))
    context = "The cat lives in house {0} of the town."
    questions = [
        {
            "title": str(i),
            "paragraphs": [
                {
                    "context": context.format(i),
                    "qas": [
                        {
                            "id": str(i),
                            "question": f"Where does the cat live, {i}?",
                            "answers": [{"text": f"house {i}", "answer_start": context.index("house")}],
                        }
                    ],
                }
            ],
        }
        for i in range(60)
    ]
    (folder / "squad.json").write_text(json.dumps({"version": "1.1", "data": questions}))
    papers = [{"document": text, "summary": text[:30]} for text in TEXTS[:40]]
    (folder / "papers.jsonl").write_text(lines(papers))
    (folder / "reviews.txt").write_text("a good film\na bad film\n")


def fill_hub(repos: dict[str, dict[str, bytes]], folder: Path) -> None:
    """Small models and rows under the published names."""
    tokenizer = add_frame(train_bpe(TEXTS, vocab_size=400))
    bert = new_bert(tokenizer, labels=["0", "1"], n_layer=1, n_head=2, n_embd=16, block_size=64)
    t5 = transformers.T5Config(vocab_size=len(tokenizer), d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    t5.decoder_start_token_id = t5.pad_token_id = tokenizer.pad_token_id
    t5.eos_token_id = tokenizer.eos_token_id
    models = {
        "google-bert/bert-base-uncased": transformers.BertForMaskedLM(bert.config),
        "google/flan-t5-small": transformers.T5ForConditionalGeneration(t5),
    }
    for name, model in models.items():
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
        repos[name] = {path.name: path.read_bytes() for path in (folder / name).iterdir()}
    split = "---\nconfigs:\n- config_name: {}\n  data_files:\n  - {{split: train, path: train.jsonl}}\n---\n"
    reviews = lines([{"sentence": f"a {('bad', 'good')[i % 2]} film {i}", "label": i % 2} for i in range(80)])
    articles = lines([{"text": f" = {NAMES[i % 8]} {i} = \n {text} \n"} for i, text in enumerate(TEXTS)])
    for name, config, rows in (
        ("stanfordnlp/sst2", "default", reviews),
        ("user/name", "config", lines([{"body": text} for text in TEXTS])),
        ("Salesforce/wikitext", "wikitext-2-v1", articles),
    ):
        repos[f"datasets/{name}"] = {"train.jsonl": rows.encode(), "README.md": split.format(config).encode()}


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_readme_runs_word_for_word_and_in_order(hub, tmp_path):  # noqa: F811
    """What trains for hundreds of steps on one's own text is ended by Ctrl-C once its first proof has passed."""
    (tmp_path / "made").mkdir()
    (work := tmp_path / "work").mkdir()
    write_data(work)
    fill_hub(hub.repos, tmp_path / "made")
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = os.environ | hub.environment() | {"HF_HOME": str(tmp_path / "home"), "PATH": path}
    environment |= {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    ran = 0
    for line in commands(ROOT / "README.md"):
        words = shlex.split(line, comments=True)
        if words[:1] not in (["accelerate"], ["hf-lm"]):  # pip, pytest, mkdocs
            continue
        long = words[2:3] == ["recipes/pretrain.py"] and "--resume_from_checkpoint" not in words
        run = subprocess.Popen(
            words, cwd=work, env=environment, text=True, start_new_session=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background ignores it
        )  # fmt: skip
        printed = ""
        for shown in run.stdout:
            printed += shown
            if long and shown.startswith("  proved"):
                os.killpg(run.pid, signal.SIGINT)  # as a terminal does
        code = run.wait()
        assert "  proved" in printed if long else code == 0, f"{line}\n{printed[-3000:]}"
        ran += 1
    assert ran > 10
    assert any(path.endswith("model.safetensors") for path in hub.repos["user/name"])
    assert len((work / "predictions.jsonl").read_text().splitlines()) == 2
