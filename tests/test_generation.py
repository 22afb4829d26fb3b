"""Text after prompts: likelihoods that are exact, seeds that repeat in any batch, and text cut where it should be."""

import json
import logging
import math
import threading

import pytest
import torch
import transformers
from transformers import BertConfig, BertForMaskedLM, T5Config, T5ForConditionalGeneration

from hf_lm.cli import main
from hf_lm.evaluation.likelihood import labelled, token_log_probs
from hf_lm.inference.decoding import Decoding
from hf_lm.inference.generate import encode_prompt, generate, load_writer, stream
from hf_lm.inference.predict import COLUMNS, generate_lines, read_columns, read_texts
from hf_lm.inference.sampling import Draw, before_stop, seed_of
from hf_lm.models.adapters import add_lora
from hf_lm.models.gpt2 import new_gpt2
from hf_lm.models.recurrent import new_recurrent
from hf_lm.tasks import sentiment, summarization
from hf_lm.tokenization.tokenizer import encode_documents, train_word_level

PROMPTS = ["The quick brown", "", "春眠不觉晓，处处", "A model assigns a probability to every", "x"]


def new_t5(tokenizer):
    config = T5Config(
        vocab_size=len(tokenizer), d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, decoder_start_token_id=1,
        pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    return T5ForConditionalGeneration(config)


@pytest.fixture(params=["gpt2", "recurrent", "t5"])
def writer(request, tokenizer):
    """One model of each kind, with weights large enough that its tokens differ in probability."""
    transformers.set_seed(1)
    make = {
        "gpt2": lambda: new_gpt2(tokenizer, n_layer=2, n_head=2, n_embd=16, block_size=64),
        "recurrent": lambda: new_recurrent(tokenizer, n_layer=1, n_embd=16),
        "t5": lambda: new_t5(tokenizer),
    }
    model = make[request.param]().eval()
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(8)
    return model


def one_by_one(model, prompt, ids):
    """Log-probabilities of ids after a prompt, each from a pass of its own."""
    found = []
    for n in range(len(ids)):
        if model.config.is_encoder_decoder:
            start = [model.config.decoder_start_token_id]
            inputs = {"input_ids": torch.tensor([prompt]), "decoder_input_ids": torch.tensor([start + ids[:n]])}
        else:
            inputs = {"input_ids": torch.tensor([prompt + ids[:n]])}
        with torch.no_grad():
            logits = model(**inputs, use_cache=False).logits[0, -1]
        found.append(logits.log_softmax(-1)[ids[n]].item())
    return found


def test_log_probabilities_equal_a_loop_over_tokens_in_float64(writer, tokenizer):
    model = writer.double()
    prompts = [encode_prompt(model, tokenizer, prompt or "x", max_new_tokens=12)[0] for prompt in PROMPTS]
    ids = [encode_documents(tokenizer, [text])[0][:12] for text in ("jumps over", "的", "", "xyz", "of a text.")]
    causal = not model.config.is_encoder_decoder
    features = [labelled(*pair, causal=causal) for pair in zip(prompts, ids, strict=True)]
    for many in (1, 2**24):
        found = token_log_probs(model, features, max_logits=many)
        for prompt, continuation, log_probs in zip(prompts, ids, found, strict=True):
            assert log_probs.tolist() == pytest.approx(one_by_one(model, prompt, continuation), abs=1e-9)


def test_a_continuation_carries_the_likelihood_of_all_that_was_written(model, tokenizer):
    model = model.eval().double()
    prompt = encode_prompt(model, tokenizer, "The quick")[0]
    settings = {"max_new_tokens": 10, "temperature": 1.3, "top_k": 20, "repetition_penalty": 1.2}
    [[one]] = generate(model, tokenizer, ["The quick"], **settings)
    # The settings change what is chosen, not what is reported: the probability under the model itself.
    writing = list(stream(model, tokenizer, "The quick", **settings))
    assert "".join(writing) == one.text
    assert len(one.log_probs) == 10
    assert one.ended == "length"
    assert one.log_probability == pytest.approx(sum(one.log_probs))
    assert one.per_token == pytest.approx(one.log_probability / 10)
    ids = chosen_ids(model, prompt, settings)
    assert one.log_probs == pytest.approx(one_by_one(model, prompt, ids), abs=1e-9)


def chosen_ids(model, prompt, settings):
    """Greedy choice among what the settings leave, written out: penalty, temperature, top-k, then the row's draw."""
    generator, ids = torch.Generator().manual_seed(seed_of(0, prompt, 0)), []
    for _ in range(settings["max_new_tokens"]):
        with torch.no_grad():
            scores = model(torch.tensor([prompt + ids])).logits[0, -1].float()
        for seen in set(prompt + ids):
            scores[seen] *= settings["repetition_penalty"] if scores[seen] < 0 else 1 / settings["repetition_penalty"]
        scores /= settings["temperature"]
        scores[scores < scores.topk(settings["top_k"]).values[-1]] = -torch.inf
        scores[scores < nucleus(scores, 0.95)] = -torch.inf
        cumulative = scores.double().softmax(-1).cumsum(-1)
        draw = torch.rand(1, generator=generator, dtype=torch.float64) * cumulative[-1]
        ids.append(int((cumulative <= draw).sum()))
    return ids


def nucleus(scores, top_p):
    """The score of the last token that belongs to the likeliest ones with `top_p` together."""
    ordered = scores.sort(descending=True).values
    before = ordered.softmax(-1).cumsum(-1) - ordered.softmax(-1)
    return ordered[before < top_p][-1]


@pytest.mark.parametrize("settings", [{}, {"temperature": 0, "repetition_penalty": 1.5, "no_repeat_ngram_size": 2}])
def test_a_text_does_not_depend_on_the_batch_its_prompt_stands_in(writer, tokenizer, settings):
    prompts = [prompt or "x" for prompt in PROMPTS] if writer.config.is_encoder_decoder else PROMPTS
    settings = {"max_new_tokens": 8, "seed": 5, **settings}
    together = generate(writer, tokenizer, prompts, **settings)
    alone = [generate(writer, tokenizer, [prompt], **settings)[0] for prompt in prompts]
    reversed_ = generate(writer, tokenizer, prompts[::-1], batch_size=2, **settings)[::-1]
    texts = [[one.text for one in found] for found in together]
    assert texts == [[one.text for one in found] for found in alone] == [[one.text for one in f] for f in reversed_]
    streamed = ["".join(stream(writer, tokenizer, prompt, **settings)) for prompt in prompts]
    assert streamed == [found[0].text for found in together]


def test_other_seeds_and_numbers_give_other_texts_and_the_same_seed_the_same(model, tokenizer):
    model.eval()
    settings = {"max_new_tokens": 12, "temperature": 1.0, "num_return_sequences": 4}
    first, again, other = (
        [one.text for one in generate(model, tokenizer, ["The"], seed=seed, **settings)[0]] for seed in (0, 0, 1)
    )
    assert first == again
    assert len(set(first + other)) == 8


def test_draws_follow_the_scores_and_never_fall_on_what_was_left_out():
    probabilities = torch.tensor([0.0, 0.5, 0.0, 0.3, 0.2, 0.0])
    scores = probabilities.log().repeat(20_000, 1)
    chosen = Draw(range(20_000))(torch.zeros(20_000, 1), scores).argmax(-1)
    shares = chosen.bincount(minlength=6) / 20_000
    assert torch.allclose(shares, probabilities, atol=0.015)  # four standard deviations
    assert shares[probabilities == 0].sum() == 0


@pytest.mark.parametrize("stop", ["觉", "晓，", "👩", "fox j"])
def test_a_stop_string_ends_the_text_and_is_not_in_it(scripted, tokenizer, stop):
    text = "春眠不觉晓，👩‍👧 quick fox jumps"
    model = scripted(text)
    settings = {"temperature": 0, "max_new_tokens": 70, "stop": [stop]}
    [[one]] = generate(model, tokenizer, [""], **settings)
    assert one.text == text[: text.index(stop)]
    assert one.ended == "stop"
    assert len(one.log_probs) < len(encode_documents(tokenizer, [text])[0])
    assert "".join(stream(model, tokenizer, "", **settings)) == one.text


def test_a_stop_string_that_stands_in_the_prompt_stops_nothing(scripted, tokenizer):
    model = scripted("aaaa bcd")
    begin = encode_documents(tokenizer, ["aaaa"])[0]
    [[one]] = generate(model, tokenizer, [[tokenizer.bos_token_id, *begin]], temperature=0, stop=["aaaa"])
    assert one.text == " bcd"


def test_a_model_may_end_a_text_with_several_tokens(scripted, tokenizer):
    model = scripted("one.two")
    [dot] = encode_documents(tokenizer, ["."])[0]
    [[whole]] = generate(model, tokenizer, [""], temperature=0)
    assert (whole.text, whole.ended) == ("one.two", "end")
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, dot]
    [[cut]] = generate(model, tokenizer, [""], temperature=0)
    assert cut.ended == "end"
    assert len(cut.log_probs) == len(encode_documents(tokenizer, ["one."])[0])
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    [[given]] = generate(model, tokenizer, [""], temperature=0, end_ids=[dot])
    assert given == cut


def test_streamed_pieces_are_whole_characters(scripted, tokenizer):
    text = "春眠不觉晓 naïve 👩‍👩‍👧 тест こんにちは 🏳️‍🌈"
    assert len(encode_documents(tokenizer, [text])[0]) > len(text)  # many characters are several tokens
    pieces = list(stream(scripted(text), tokenizer, "", temperature=0, max_new_tokens=100))
    assert "".join(pieces) == text
    assert len(pieces) > 8
    assert "\ufffd" not in "|".join(pieces)


def test_a_character_that_is_cut_by_the_length_is_left_out(scripted, tokenizer):
    model = scripted("ab龘龘")
    for length in range(3, 8):
        [[one]] = generate(model, tokenizer, [""], temperature=0, max_new_tokens=length)
        assert one.text in ("ab", "ab龘", "ab龘龘")
        assert "".join(stream(model, tokenizer, "", temperature=0, max_new_tokens=length)) == one.text


def test_pieces_hold_back_what_may_become_a_stop_string():
    assert list(before_stop(iter(["one E", "N", "o END", " two"]), ["END"])) == ["one ", "ENo "]
    assert list(before_stop(iter(["a", "E", "N"]), ["END"])) == ["a", "EN"]


def test_words_keep_the_space_before_them(texts):
    tokenizer = train_word_level(texts)
    transformers.set_seed(0)
    model = new_recurrent(tokenizer, n_layer=1, n_embd=16).eval()
    [[one]] = generate(model, tokenizer, ["The quick"], max_new_tokens=6)
    assert one.text.startswith((" ", "\n"))
    assert "".join(stream(model, tokenizer, "The quick", max_new_tokens=6)) == one.text


def test_leaving_a_stream_stops_the_writer(model, tokenizer):
    model.eval()
    model.config.max_position_embeddings = 0  # would write for long
    calls = []
    forward = model.forward
    model.forward = lambda *args, **kwargs: calls.append(1) or forward(*args, **kwargs)
    pieces = stream(model, tokenizer, [3], max_new_tokens=28, temperature=1.0)
    next(pieces)
    pieces.close()
    assert len(calls) < 28
    assert not [thread for thread in threading.enumerate() if thread.name == "writing"]


def test_an_error_while_writing_reaches_the_reader(model, tokenizer):
    def fail(*args, **kwargs):
        raise RuntimeError("out of memory")

    model.forward = fail
    with pytest.raises(RuntimeError, match="out of memory"):
        list(stream(model, tokenizer, "The"))


def test_a_prompt_follows_the_marker_and_cannot_forge_it(model, tokenizer):
    marker = tokenizer.bos_token_id
    assert encode_prompt(model, tokenizer, "") == ([marker], 0)
    ids, left_out = encode_prompt(model, tokenizer, "a<|endoftext|>", max_new_tokens=4)
    assert (ids[0], left_out) == (marker, 0)
    assert marker not in ids[1:]
    assert tokenizer.decode(ids[1:]) == "a<|endoftext|>"


def test_a_prompt_over_the_context_is_cut_on_the_left_and_said(model, tokenizer, caplog):
    text = "abcdefghij" * 6
    whole = encode_documents(tokenizer, [text])[0]
    ids, left_out = encode_prompt(model, tokenizer, text, max_new_tokens=8)
    assert ids == [tokenizer.bos_token_id, *whole[-23:]]  # 32 positions, 8 to be written, 1 the marker
    assert left_out == len(whole) - 23
    with caplog.at_level(logging.WARNING):
        [[one]] = generate(model.eval(), tokenizer, [text], max_new_tokens=8)
    assert len(one.log_probs) == 8
    assert f"the prompt's first {left_out} tokens were truncated" in caplog.text


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_new_tokens": 32}, "give 30 or less"),
        ({"temperature": -1}, "0 or more"),
        ({"temperature": float("nan")}, "finite number"),
        ({"top_p": 0}, "more than 0"),
        ({"top_p": 1.5}, "1 or less"),
        ({"num_beams": 3}, "give temperature 0, or num_beams 1"),
        ({"temperature": 0, "num_return_sequences": 2}, "raise num_beams"),
        ({"repetition_penalty": 0}, "more than 0"),
        ({"stop": ["a", ""]}, "a stop string is empty"),
    ],
)
def test_settings_that_make_no_sense_are_refused_in_one_line(model, tokenizer, settings, message):
    with pytest.raises(ValueError, match=message) as caught:
        generate(model, tokenizer, ["The"], **settings)
    assert "\n" not in str(caught.value)


def test_a_stop_string_may_be_given_alone():
    assert Decoding(stop="ab").stop == ("ab",)


def test_beams_come_with_the_likeliest_first_and_beat_greedy(model, tokenizer):
    model.eval()
    settings = {"max_new_tokens": 8, "temperature": 0}
    [[greedy]] = generate(model, tokenizer, ["The"], **settings)
    [beams] = generate(model, tokenizer, ["The"], num_beams=5, num_return_sequences=5, **settings)
    likelihoods = [one.log_probability for one in beams]
    assert likelihoods == sorted(likelihoods, reverse=True)
    assert len({one.text for one in beams}) == 5
    assert likelihoods[0] >= greedy.log_probability - 1e-5
    with pytest.raises(ValueError, match="one text can be streamed"):
        stream(model, tokenizer, "The", num_beams=5, **settings)


def test_a_writer_is_loaded_from_a_folder_an_adapter_and_refused_from_an_encoder(model, tokenizer, tmp_path):
    base = tmp_path / "base"
    model.save_pretrained(base)
    tokenizer.save_pretrained(base)
    loaded, own = load_writer(str(base), device="cpu")
    plain = generate(loaded, own, ["The"], max_new_tokens=5)
    assert plain == generate(model.eval(), tokenizer, ["The"], max_new_tokens=5)

    adapted = add_lora(load_writer(str(base))[0], rank=2)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.normal_()
    adapted.save_pretrained(tmp_path / "adapter")
    merged, own = load_writer(str(tmp_path / "adapter"))
    ids = torch.tensor([[0, 5, 6]])
    with torch.no_grad():
        assert torch.allclose(merged(ids).logits, adapted.eval()(ids).logits, atol=1e-4)
        assert not torch.allclose(merged(ids).logits, loaded(ids).logits, atol=1e-2)

    config = BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    BertForMaskedLM(config).save_pretrained(tmp_path / "bert")
    with pytest.raises(ValueError, match="an encoder, which cannot generate text"):
        load_writer(tmp_path / "bert")
    (tmp_path / "adapter" / "adapter_model.safetensors").unlink()
    with pytest.raises(OSError, match="adapter without weights"):
        load_writer(tmp_path / "adapter")
    with pytest.raises(OSError, match="no folder"):
        load_writer(tmp_path / "nothing")


@pytest.mark.parametrize("device", ["foo", "cuda:99"])
def test_a_device_that_is_not_there_is_refused_in_one_line(device, model, tokenizer, tmp_path):
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=rf"there is no device '{device}' here; give cpu"):
        load_writer(tmp_path, device=device)


def test_a_file_of_prompts_goes_on_where_it_was_stopped(model, tokenizer, tmp_path, monkeypatch):
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    prompts = ["The", "line\u2028separator", "春眠", "A", "x"]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps({"prompt": each}) + "\n" for each in prompts))
    assert read_texts(str(tmp_path / "prompts.jsonl")) == prompts
    settings = {"max_new_tokens": 4, "batch_size": 1}
    whole, part = tmp_path / "whole.jsonl", tmp_path / "part.jsonl"
    assert generate_lines(str(tmp_path), prompts, str(whole), **settings) == 5
    lines = whole.read_text(encoding="utf-8")
    rows = [json.loads(line) for line in lines.strip().split("\n")]
    assert [row["input"] for row in rows] == prompts
    found = generate(model.eval(), tokenizer, prompts, **settings)
    assert [row["continuations"][0]["text"] for row in rows] == [one.text for [one] in found]

    part.write_text(lines[: len(lines) // 2], encoding="utf-8")  # cut in the middle of a line
    generate_lines(str(tmp_path), prompts, str(part), **settings)
    assert part.read_text(encoding="utf-8") == lines
    generate_lines(str(tmp_path), prompts, str(part), max_new_tokens=4, batch_size=2)  # the batch is no setting
    with pytest.raises(ValueError, match=r"line 1: other settings than now \(seed 0, not 3\)"):
        generate_lines(str(tmp_path), prompts, str(part), seed=3, **settings)
    with pytest.raises(ValueError, match="not the answer to this run's input"):
        generate_lines(str(tmp_path), prompts[::-1], str(part), **settings)
    with pytest.raises(ValueError, match="5 lines for 4 inputs"):
        generate_lines(str(tmp_path), prompts[:4], str(part), **settings)
    with torch.no_grad():
        next(model.parameters()).add_(1)
    model.save_pretrained(tmp_path)  # another model in the same folder
    with pytest.raises(ValueError, match=r"line 1: other fingerprint of the model than now \(\w{12}, not"):
        generate_lines(str(tmp_path), prompts, str(part), **settings)


@pytest.mark.parametrize(
    ("second", "says"),
    [
        ({"text": None}, "row 2: text is null"),
        ({"text": math.nan}, "row 2: text is null"),
        ({"text": ["b"]}, "row 2: text is a list"),
        ({"other": "b"}, "row 2: has no text"),
    ],
)
def test_an_input_without_text_is_refused_with_its_row(second, says, tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ({"text": "a"}, second)))
    with pytest.raises(ValueError, match=says):
        read_texts(str(path))


def test_predict_reads_a_table_as_training_does(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"source": ["It rains.", "It pours."]}\n{"source": "Dry."}\n')
    assert read_texts(str(tmp_path / "a.jsonl"), lists=True) == ["It rains. It pours.", "Dry."]
    (tmp_path / "b.jsonl").write_text('{"translation": {"en": "Rain.", "de": "Regen."}}\n')
    assert read_texts(str(tmp_path / "b.jsonl"), "en", lists=True) == ["Rain."]
    for name in ("c.tsv", "c.txt"):
        (tmp_path / name).write_text("Rain.\tRegen.\nSun.\tSonne.\n")
        assert read_texts(str(tmp_path / name), "0") == ["Rain.", "Sun."]
    assert read_columns(str(tmp_path / "c.tsv"), ("question", "context"), "1,0")[0]["question"] == "Regen."
    with pytest.raises(ValueError, match=r"--column en: .*c\.txt has lines, not columns"):
        read_texts(str(tmp_path / "c.txt"), "en")


def test_half_a_surrogate_pair_is_read_as_a_replacement_character(model, tokenizer, tmp_path, capsys):
    path = tmp_path / "in.jsonl"
    path.write_text('{"question": "a\\ud83d", "context": "b\\udc00"}\n')
    assert read_texts(str(path), "question") == ["a\ufffd"]
    assert read_columns(str(path), ("question", "context")) == [{"question": "a\ufffd", "context": "b\ufffd"}]
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    main(["generate", str(tmp_path), "bad \udcff", "--num_return_sequences", "2", "--max_new_tokens", "1"])
    assert "bad \ufffd · 1" in capsys.readouterr().out


def test_a_question_without_context_is_refused_with_its_row(tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_text('{"question": "q", "context": 1998}\n{"question": "q", "context": null}\n')
    with pytest.raises(ValueError, match="row 2: context is null"):
        read_columns(str(path), ("question", "context"))


def test_columns_of_other_names_are_listed_in_the_order_of_the_task(tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_text('{"passage": "me", "q": "who?"}\n')
    expected = [{"question": "who?", "context": "me"}]
    assert read_columns(str(path), ("question", "context"), "q,passage") == expected
    with pytest.raises(ValueError, match=r"has the columns \['passage', 'q'\]; .* --column QUESTION,CONTEXT"):
        read_columns(str(path), ("question", "context"))
    with pytest.raises(ValueError, match="give the columns of question and context, in this order"):
        read_columns(str(path), ("question", "context"), "q")


def test_the_columns_that_a_recipe_finds_are_found(tmp_path):
    assert {*sentiment.TEXT, *summarization.SOURCE, "src"} <= {*COLUMNS}
    asked = {"question": "who?", "context": "me"}
    nested = {"data": [{"paragraphs": [{"context": "me", "qas": [{"question": "who?", "id": 1}]}]}]}
    for name, content in (("a.jsonl", {"query": "who?", "passage": "me"}), ("b.json", nested)):
        (tmp_path / name).write_text(json.dumps(content))
        assert read_columns(str(tmp_path / name), ("question", "context")) == [asked]


def test_ctrl_c_in_a_file_of_prompts_keeps_what_is_written(model, tokenizer, tmp_path, monkeypatch, capsys):
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    prompts, output = [f"The {i}" for i in range(9)], tmp_path / "out.jsonl"
    calls = []

    def interrupted(*args, **kwargs):
        calls.append(1)
        if len(calls) > 2:
            raise KeyboardInterrupt
        return generate(*args, **kwargs)

    monkeypatch.setattr("hf_lm.inference.generate.generate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        generate_lines(str(tmp_path), prompts, str(output), max_new_tokens=2, batch_size=1)
    assert "holds 8 of 9; the same command resumes" in capsys.readouterr().err
    assert len(output.read_text().splitlines()) == 8
