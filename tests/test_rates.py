"""A learning rate of 0 is chosen by the width of the model, and is then the run's."""

from types import SimpleNamespace

import pytest
import transformers

from hf_lm.arguments import TrainingArguments
from hf_lm.models.adapters import add_lora
from hf_lm.training.rates import choose_rate, fine_tuning_rate


def bert(width):
    return transformers.BertConfig(vocab_size=8, hidden_size=width, num_hidden_layers=1, num_attention_heads=1)


def of(config):
    return fine_tuning_rate(SimpleNamespace(config=config))


def test_the_usual_rate_holds_from_the_usual_width_on_and_narrower_models_take_more():
    assert of(bert(768)) == of(bert(4096)) == 5e-5
    assert of(bert(384)) == pytest.approx(2e-4)
    assert of(bert(16)) == 1e-3


@pytest.mark.parametrize(
    "config",
    [
        transformers.T5Config(d_model=384),
        transformers.BartConfig(d_model=384),
        transformers.GPT2Config(n_embd=384),
        transformers.DistilBertConfig(dim=384),
        transformers.EncoderDecoderConfig.from_encoder_decoder_configs(bert(768), bert(384)),
    ],
    ids=lambda config: config.model_type,
)
def test_every_family_has_a_width_and_encoder_decoders_take_twice_the_rate(config):
    assert of(config) == pytest.approx(4e-4 if config.is_encoder_decoder else 2e-4)


def test_an_adapter_takes_ten_times_the_rate_of_its_base():
    model = transformers.BertModel(bert(768))
    assert fine_tuning_rate(add_lora(model, rank=2)) == pytest.approx(10 * 5e-5)


def test_a_rate_that_is_given_stays_and_one_that_is_chosen_is_recorded(tmp_path):
    given = TrainingArguments(output_dir=str(tmp_path), learning_rate=3e-4)
    model = SimpleNamespace(config=bert(768))
    assert (choose_rate(given, model), given.learning_rate) == ("", 3e-4)
    chosen = TrainingArguments(output_dir=str(tmp_path), learning_rate=0)
    assert choose_rate(chosen, model).startswith("learning rate 5.0e-05, by the width")
    assert chosen.learning_rate == chosen.run["learning_rate"] == 5e-5
