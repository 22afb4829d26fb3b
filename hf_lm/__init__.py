"""hf_lm: the shortest honest way from text to a published language model."""

import logging
import sys
from importlib.machinery import ModuleSpec, PathFinder

__version__ = "0.1.0"

# Where bitsandbytes is installed, transformers imports it through peft. It then warns of kernels it lacks, and
# later at every forward that it rounds activations. Quantized or not, this must be set before that import.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


def __getattr__(name: str):
    if name == "pipeline":  # imported when asked for: it brings torch and transformers
        from hf_lm.pipelines import pipeline

        return pipeline
    raise AttributeError(f"module 'hf_lm' has no attribute {name!r}")


_AUTO_CONFIG = "transformers.models.auto.configuration_auto"


def _register_recurrent() -> None:
    from transformers.models.auto.configuration_auto import AutoConfig

    from hf_lm.models.recurrent_configuration import RecurrentConfig

    AutoConfig.register(RecurrentConfig.model_type, RecurrentConfig, exist_ok=True)


class _RegisterWithAutoConfig:
    """Import hook: makes the recurrent model known to AutoConfig once something imports AutoConfig.

    `import hf_lm` is then free of the seconds that `import transformers` takes. The model's class is registered when
    its first configuration is built (see RecurrentConfig): at this point transformers may still be half imported.
    """

    @staticmethod
    def find_spec(name: str, path=None, target=None) -> ModuleSpec | None:
        if name != _AUTO_CONFIG:
            return None
        spec = PathFinder.find_spec(name, path)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_register(module) -> None:
                execute(module)
                _register_recurrent()

            spec.loader.exec_module = execute_and_register
        return spec


if _AUTO_CONFIG in sys.modules:
    _register_recurrent()
else:
    sys.meta_path.insert(0, _RegisterWithAutoConfig)
