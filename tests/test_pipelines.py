"""The call forms of transformers 4.57's pipelines: each is served as it was, or refused with one line that says why.

With HF_LM_TRANSFORMERS_4 set to a Python that has transformers 4, a slow test compares the answers themselves.
"""

import json
import os
import subprocess
from types import SimpleNamespace

import pytest
import torch
import transformers
from huggingface_hub.errors import RevisionNotFoundError
from test_languages import SHAPE, Nllb, mbart
from torch.utils.data import Dataset
from transformers import AutoTokenizer, BartConfig, BartForConditionalGeneration, GenerationConfig

from hf_lm import pipeline
from hf_lm.models.bert import new_bert
from hf_lm.models.target_tokenizer import save_tokenizer
from hf_lm.tokenization.tokenizer import add_frame, encode_documents, encode_with_offsets, new_tokenizer, train_bpe

QUESTION = "Who came?"
CONTEXT = "Only Ann came to the house of the tokenizers. She is a dog, and the dog is unbelievable."
WORDS = ["only", "ann", "came", "to", "the", "house", "of", "token", "##ize", "##rs", "she", "is", "a", "dog", "and"]
WORDS += ["un", "##believ", "##able", "who", ".", ",", "?"]


class Rows(Dataset):
    """As transformers' KeyDataset: neither a list nor a generator."""

    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, i):
        return self.rows[i]


def squad_example(question, context):
    return SimpleNamespace(question_text=question, context_text=context)


NAMES = {"Q": QUESTION, "C": CONTEXT, "R": {"question": QUESTION, "context": CONTEXT}, "Rows": Rows}
NAMES |= {"T": "The quick brown fox.", "U": "A model assigns a probability."}


# What is called, and the form of its answer: D for a dict. transformers 4.57 gives the same.
ANSWERED = {
    "question-answering": {
        "pipe(question=Q, context=C)": "D",
        "pipe(Q, C)": "D",
        "pipe(R)": "D",
        "pipe([R])": "D",
        "pipe([R, R])": "[D, D]",
        "pipe(R, R)": "[D, D]",
        "pipe([])": "[]",
        "pipe(question=[Q, Q], context=C)": "[D, D]",
        "pipe(question=[Q, Q], context=[C, C])": "[D, D]",
        "pipe({'question': [Q, Q], 'context': [C, C]})": "[D, D]",
        "pipe(data=R)": "D",
        "pipe(X=[R, R])": "[D, D]",
        "pipe([example(Q, C), R])": "[D, D]",
        "list(pipe(r for r in [R, R]))": "[D, D]",
        "list(pipe(Rows([R, R])))": "[D, D]",
        "pipe(R, top_k=3)": "[D, D, D]",
        "pipe(R, topk=3)": "[D, D, D]",
        "pipe(R, max_answer_len=1, align_to_words=False)": "D",
        "pipe(R, align_to_words=False)": "D",
        "pipe(R, handle_impossible_answer=True)": "D",
        "pipe(R, doc_stride=8, max_seq_len=24, max_question_len=8)": "D",
        "pipe(R, padding='longest', batch_size=2, num_workers=0)": "D",
    },
    "summarization": {
        "pipe(T)": "[D]",
        "pipe([T], max_new_tokens=6)": "[D]",
        "pipe([T, U], max_new_tokens=6)": "[D, D]",
        "pipe([], max_new_tokens=6)": "[]",
        "list(pipe((t for t in [T, U]), max_new_tokens=6))": "[[D], [D]]",
        "list(pipe(Rows([T, U]), max_new_tokens=6))": "[[D], [D]]",
        "pipe(T, max_new_tokens=6, num_beams=2, num_return_sequences=2)": "[D, D]",
        "pipe([T, U], max_new_tokens=6, num_return_sequences=3)": "[[D, D, D], [D, D, D]]",
        "pipe(T, max_new_tokens=6, num_beams=1)": "[D]",
        "pipe(T, min_new_tokens=4, max_new_tokens=6)": "[D]",
        "pipe(T, max_new_tokens=6, truncation=True, return_text=True, num_workers=0, batch_size=1)": "[D]",
        "pipe(T, max_new_tokens=6, clean_up_tokenization_spaces=True)": "[D]",
        "pipe(T, generation_config=GenerationConfig(max_new_tokens=4, num_beams=2))": "[D]",
        "pipe(T, max_new_tokens=6, return_tensors=True)": "[D]",
    },
}
REFUSED = {
    "question-answering": {
        "pipe()": (ValueError, "the question is None; it must be a text"),
        "pipe(question=Q)": (ValueError, "the context is None"),
        "pipe(question='', context=C)": (ValueError, "the question is ''"),
        "pipe({'question': Q})": (KeyError, r"needs the keys question and context; it has \['question'\]"),
        "pipe(question=[Q], context=[C, C])": (ValueError, "1 questions and 2 contexts"),
        "pipe(['x'])": (ValueError, "'x' is not a dict with the keys question and context"),
        "pipe(R, top_k=0)": (ValueError, "top_k is 0; it must be at least 1"),
        "pipe(R, topk=0)": (ValueError, "top_k is 0"),
        "pipe(R, max_answer_len=0)": (ValueError, "max_answer_len is 0"),
        "pipe(R, doc_stride=24, max_seq_len=24)": (ValueError, "doc_stride is 24; a window has 24 tokens"),
        "pipe(R, max_answer_length=3)": (ValueError, "no option 'max_answer_length'. Did you mean max_answer_len"),
    },
    "summarization": {
        "pipe(5)": (TypeError, "not iterable"),
        "pipe([5])": (TypeError, "an input is a int; give texts"),
        "pipe(T, num_beam=3)": (ValueError, "no option 'num_beam'. Did you mean num_beams"),
        "pipe(T, src_lang='en', tgt_lang='de')": (ValueError, "no options src_lang and tgt_lang"),
        "pipe(T, return_type=0)": (ValueError, "no option 'return_type'"),
    },
}


@pytest.fixture(scope="module")
def folders(texts, tmp_path_factory):
    """A span head and a BART of random weights, as transformers 4 opens them. What they write nobody has set."""
    root = tmp_path_factory.mktemp("pipelines")
    tokenizer = transformers.BertTokenizer(
        vocab={word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS])}
    )
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    transformers.set_seed(0)
    spans = transformers.BertForQuestionAnswering(transformers.BertConfig(vocab_size=len(tokenizer), **sizes))
    with torch.no_grad():
        spans.qa_outputs.weight.mul_(100)  # so that no two spans are about as likely
        spans.qa_outputs.bias.fill_(1.0)  # as one that was trained
    spans.save_pretrained(root / "question-answering")
    save_tokenizer(tokenizer, root / "question-answering")
    tokenizer = add_frame(train_bpe(texts, vocab_size=320))
    ids = {"bos_token_id": 0, "eos_token_id": 0, "forced_eos_token_id": 0, "decoder_start_token_id": 0}
    shape = SHAPE | {"max_position_embeddings": 300, "init_std": 1.0}
    config = BartConfig(vocab_size=len(tokenizer), pad_token_id=1, **shape, **ids)
    BartForConditionalGeneration(config).save_pretrained(root / "summarization")
    save_tokenizer(tokenizer, root / "summarization")
    return root


@pytest.fixture(scope="module")
def pipes(folders):
    return {task: pipeline(task, model=str(folders / task), device="cpu") for task in ANSWERED}


def form(answer):
    if isinstance(answer, list):
        return f"[{', '.join(map(form, answer))}]"
    return "D" if isinstance(answer, dict) else type(answer).__name__


def call(pipe, code):
    return eval(code, NAMES | {"pipe": pipe, "example": squad_example, "GenerationConfig": GenerationConfig})


@pytest.mark.parametrize(("task", "code"), [(task, code) for task, calls in ANSWERED.items() for code in calls])
def test_calls_of_transformers_4_are_answered_in_its_forms(pipes, task, code):
    assert form(call(pipes[task], code)) == ANSWERED[task][code]


@pytest.mark.parametrize(("task", "code"), [(task, code) for task, calls in REFUSED.items() for code in calls])
def test_calls_that_cannot_be_served_are_refused_in_one_line(pipes, task, code):
    error, message = REFUSED[task][code]
    with pytest.raises(error, match=message) as caught:
        call(pipes[task], code)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "options",
    [
        {"revision": "main"},  # of a folder: no effect, as in transformers
        {"model_kwargs": {"attn_implementation": "eager", "torch_dtype": "float32"}},
        {"device_map": "cpu"},
        {"device": -1},
        {"device": torch.device("cpu")},
        {"dtype": "float32", "batch_size": 4, "use_fast": True, "num_workers": 0, "framework": "pt"},
        {"torch_dtype": torch.float32, "trust_remote_code": False},
    ],
    ids=str,
)
def test_options_of_loading_are_handed_through(folders, pipes, options):
    for task, pipe in pipes.items():
        made = pipeline(task, str(folders / task), **options)
        assert made.device.type == "cpu"
        if "model_kwargs" in options:
            assert made.model.config._attn_implementation == "eager"
        code = "pipe(R)" if task == "question-answering" else "pipe(T, max_new_tokens=6)"
        assert form(call(made, code)) == form(call(pipe, code))


def test_the_tokenizer_may_be_a_name_with_options_or_an_object_and_options_have_defaults(folders, pipes):
    name = str(folders / "summarization")
    expected = call(pipes["summarization"], "pipe(T, max_new_tokens=6)")
    for tokenizer in (name, (name, {"use_fast": True}), AutoTokenizer.from_pretrained(name)):
        made = pipeline("summarization", model=name, tokenizer=tokenizer, max_new_tokens=6)
        assert call(made, "pipe(T)") == expected
    made = pipeline("summarization", name, name, name)  # task, model, config, tokenizer
    assert call(made, "pipe(T, max_new_tokens=6)") == expected
    for task, key in (("translation", "translation_text"), ("text2text-generation", "generated_text")):
        [answer] = pipeline(task, model=name)("A text.", max_new_tokens=6)
        assert list(answer) == [key]


@pytest.mark.parametrize(
    ("task", "options", "message"),
    [
        ("summarization", {"trust_remote_code": True}, "trust_remote_code is refused"),
        ("summarization", {"model_kwargs": {"trust_remote_code": True}}, "trust_remote_code is refused"),
        ("question-answering", {"framework": "tf"}, "framework='tf' is refused"),
        ("summarization", {"device": 0, "device_map": "auto"}, "give device or device_map, not both"),
        ("summarization", {"num_beem": 2}, "has no option 'num_beem'. Did you mean num_beams"),
        ("question-answering", {"top_n": 2}, "has no option 'top_n'"),
        ("translation_xx", {}, "there is no task 'translation_xx': give translation, or translation_en_to_de"),
    ],
)
def test_options_that_cannot_be_served_are_refused_when_the_pipeline_is_made(folders, task, options, message):
    folder = folders / ("summarization" if task != "question-answering" else task)
    with pytest.raises(ValueError, match=message):
        pipeline(task, model=str(folder), **options)
    with pytest.raises(ValueError, match=r"needs model=..., a folder or a Hub id"):
        pipeline("summarization")


def test_a_revision_is_downloaded_and_one_that_does_not_exist_is_refused(folders, monkeypatch):
    asked = []

    def download(name, *, revision, token, ignore_patterns):
        asked.append((name, revision, token))
        if revision == "none":
            import httpx

            raise RevisionNotFoundError("404", response=httpx.Response(404, request=httpx.Request("GET", "http://x")))
        assert "*.bin" in ignore_patterns
        return str(folders / "summarization")

    monkeypatch.setattr("hf_lm.inference.pipeline_base.snapshot_download", download)
    pipeline("summarization", model="user/name", revision="v1", token="secret")
    pipeline("summarization", model="user/name", model_kwargs={"revision": "v2"})
    assert asked == [("user/name", "v1", "secret"), ("user/name", "v2", None)]
    for task in ("summarization", "text-classification"):
        with pytest.raises(OSError, match="user/name has no revision 'none'"):
            pipeline(task, model="user/name", revision="none")


def test_how_a_checkpoint_writes_holds_and_where_it_says_nothing_the_defaults_of_transformers_4(folders, tmp_path):
    model = BartForConditionalGeneration.from_pretrained(folders / "summarization")
    tokenizer = AutoTokenizer.from_pretrained(folders / "summarization")

    def settings(task, **options):
        pipe = pipeline(task, model=model, tokenizer=tokenizer)
        return pipe.task, pipe.generation_config.num_beams, pipe.generation_config.max_new_tokens

    assert settings("summarization") == ("summarization", 4, 256)
    model.generation_config.update(num_beams=1, max_new_tokens=9)
    assert settings("summarization") == ("summarization", 1, 9)
    prefix = "translate English to German: "
    model.config.task_specific_params = {"translation_en_to_de": {"prefix": prefix, "num_beams": 2, "max_length": 7}}
    model.generation_config.max_new_tokens = None
    assert settings("translation") == ("translation_en_to_de", 2, None)  # as transformers 4 chose for T5
    pipe = pipeline("translation", model=model, tokenizer=tokenizer)
    with_prefix = pipe("A dog.", return_tensors=True)[0]["translation_token_ids"]
    assert len(with_prefix) <= 7
    assert len(pipe("A dog.", max_length=3, return_tensors=True)[0]["translation_token_ids"]) <= 3
    model.config.task_specific_params = None
    plain = pipeline("translation_en_to_de", model, tokenizer=tokenizer)
    assert plain(prefix + "A dog.", max_length=7, num_beams=2) == pipe("A dog.")


def test_generation_ends_at_a_stop_sequence(pipes):
    [whole] = pipes["summarization"]("The fox.", max_new_tokens=8, num_beams=1)
    stop = whole["summary_text"][2:4]
    [ended] = pipes["summarization"]("The fox.", max_new_tokens=8, num_beams=1, stop_sequence=stop)
    assert stop in ended["summary_text"]
    assert len(ended["summary_text"]) < len(whole["summary_text"])


@pytest.mark.parametrize("make", [mbart, lambda: Nllb(vocab=mbart()._vocab)], ids=["mbart", "nllb"])
def test_languages_are_given_at_the_call_or_when_the_pipeline_is_made(make):
    tokenizer = make()
    transformers.set_seed(0)
    ids = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 2}
    model = BartForConditionalGeneration(BartConfig(vocab_size=len(tokenizer), **ids, **SHAPE))
    german, french = tokenizer.convert_tokens_to_ids(["de_DE", "fr_XX"])
    options = {"model": model, "tokenizer": tokenizer, "max_new_tokens": 4, "num_beams": 1}

    def language(pipe, **languages):
        written = pipe("a dog", return_tensors=True, **languages)[0]["translation_token_ids"]
        return {german, french} & set(written[:2].tolist())

    pipe = pipeline("translation", **options)
    with pytest.raises(ValueError, match="has many languages: give src_lang and tgt_lang"):
        pipe("a dog")
    with pytest.raises(ValueError, match="give both src_lang and tgt_lang"):
        pipe("a dog", tgt_lang="de_DE")
    with pytest.raises(ValueError, match="tgt_lang 'klingon' is not a language of the tokenizer"):
        pipe("a dog", src_lang="en", tgt_lang="klingon")
    assert language(pipe, src_lang="en_XX", tgt_lang="fr_XX") == {french}
    made = pipeline("translation", **options, src_lang="en_XX", tgt_lang="de_DE")
    assert language(made) == {german}
    assert language(made, src_lang="de_DE", tgt_lang="fr_XX") == {french}
    assert language(made) == {german}  # the call before leaves nothing behind
    assert language(pipeline("translation_en_to_de", **options)) == {german}


def test_answers_begin_and_end_with_words_unless_told_otherwise(folders, pipes):
    tokenizer = AutoTokenizer.from_pretrained(folders / "question-answering")
    [(ids, words)] = encode_with_offsets(tokenizer, [CONTEXT], align_to_words=True)
    [(_, tokens)] = encode_with_offsets(tokenizer, [CONTEXT])
    tokenizers = [CONTEXT[a:b] for a, b in tokens.tolist()].index("token")
    assert [CONTEXT[a:b] for a, b in tokens[tokenizers : tokenizers + 3].tolist()] == ["token", "ize", "rs"]
    assert [CONTEXT[a:b] for a, b in words[tokenizers : tokenizers + 3].tolist()] == ["tokenizers"] * 3
    first, last = set(words[:, 0].tolist()), set(words[:, 1].tolist())
    answers = pipes["question-answering"](QUESTION, CONTEXT, top_k=len(ids))
    assert {answer["start"] for answer in answers} <= first
    assert {answer["end"] for answer in answers} <= last
    answers = pipes["question-answering"](QUESTION, CONTEXT, top_k=len(ids), align_to_words=False)
    assert not {answer["end"] for answer in answers} <= last


IN_TRANSFORMERS_4 = """
import json, sys
from torch.utils.data import Dataset
from transformers import GenerationConfig, SquadExample, pipeline
class Rows(Dataset):
    def __init__(self, rows): self.rows = rows
    def __len__(self): return len(self.rows)
    def __getitem__(self, i): return self.rows[i]
root, names, calls = sys.argv[1], json.loads(sys.argv[2]), json.loads(sys.argv[3])
names |= {"Rows": Rows, "GenerationConfig": GenerationConfig}
names["example"] = lambda q, c: SquadExample(None, q, c, None, None, None)
answers = {}
for task, codes in calls.items():
    names["pipe"] = pipeline(task, model=f"{root}/{task}", device="cpu")
    for code in codes:
        try:
            answers[code] = eval(code, names)
        except Exception as error:
            sys.exit(f"{code}: {error!r}")
print(json.dumps(answers, default=lambda tensor: tensor.tolist()))
"""


def same(new, old):
    """Whether two answers agree: text but for white space around it, scores to 1e-4."""
    if isinstance(old, list):
        return len(new) == len(old) and all(map(same, new, old))
    if isinstance(old, dict):
        return new.keys() == old.keys() and all(same(new[key], old[key]) for key in old)
    if isinstance(old, float):
        return abs(new - old) < 1e-4
    return new.strip() == old.strip() if isinstance(old, str) else new == old


@pytest.mark.slow
@pytest.mark.skipif("HF_LM_TRANSFORMERS_4" not in os.environ, reason="HF_LM_TRANSFORMERS_4 names no Python")
def test_transformers_4_gives_the_same_answers(folders, pipes):
    names = {key: value for key, value in NAMES.items() if key != "Rows"}
    calls = {task: list(codes) for task, codes in ANSWERED.items()}
    command = [os.environ["HF_LM_TRANSFORMERS_4"], "-I", "-c", IN_TRANSFORMERS_4, str(folders)]
    done = subprocess.run([*command, json.dumps(names), json.dumps(calls)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    old = json.loads(done.stdout)
    different = []
    for task, codes in calls.items():
        for code in codes:
            new = json.loads(json.dumps(call(pipes[task], code), default=lambda tensor: tensor.tolist()))
            if "top_k" in code or "topk" in code:  # of those of one end transformers 4 gives several
                new, old[code] = new[0], old[code][0]
            if not same(new, old[code]):
                different.append((code, new, old[code]))
    assert not different


@pytest.mark.parametrize("task", ["text-classification", "sentiment-analysis", "question-answering"])
def test_a_model_that_was_trained_to_write_its_answer_is_refused_where_a_head_is_asked(
    task, model, tokenizer, tmp_path
):
    known = {"max_source_length": 40, "prefix": ""}
    model.config.task_specific_params = {"text-classification": known, "question-answering": known}
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="was trained to write its answer and has no head for"):
        pipeline(task, model=str(tmp_path))


@pytest.mark.parametrize("task", ["text-classification", "token-classification"])
def test_a_special_token_that_a_text_spells_is_read_as_text_as_in_training(task, texts, tmp_path):
    tokenizer = new_tokenizer(texts, vocab_size=320)
    classes = {"text": transformers.BertForSequenceClassification, "token": transformers.BertForTokenClassification}
    head = classes[task.split("-")[0]]
    new_bert(tokenizer, model_class=head, labels=("fine", "toxic"), n_embd=16, n_head=2).save_pretrained(tmp_path)
    save_tokenizer(tokenizer, tmp_path)
    forged = f"The fox {tokenizer.sep_token} ends {tokenizer.pad_token}"
    pipe = pipeline(task, model=str(tmp_path), device="cpu")
    [ids] = encode_documents(pipe.tokenizer, [forged])
    read = pipe.preprocess(forged, **pipe._preprocess_params)
    read = next(iter(read)) if task == "token-classification" else read
    assert read["input_ids"][0].tolist() == [tokenizer.cls_token_id, *ids, tokenizer.sep_token_id]
