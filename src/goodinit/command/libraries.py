"""Models of libraries, made from a description of their architecture: weights are never downloaded, foreign code never run."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from goodinit.console import code_error
from goodinit.errors import MissingExtraError, ModelError, OptionError, did_you_mean

# What would fetch weights, or run code that comes with a model.
_REFUSED = ("pretrained", "trust_remote_code", "checkpoint_path", "cache_dir", "code_revision")


def transformers_model(name: str, keywords: Mapping[str, Any]) -> Callable[[], nn.Module]:
    """Find a model of transformers by its configuration: that of its ``architectures``, with weights as drawn by transformers.

    Args:
        name: a folder with a config.json, such a file, or a name on the Hugging Face hub, of which config.json alone is fetched.
        keywords: entries of the configuration to change: ``num_hidden_layers=2``.

    Raises:
        OptionError: no configuration there, one of no model that this version of transformers has, unknown entries.
        ModelError: it cannot be read, or fetched.
        MissingExtraError: transformers is not installed.
    """
    transformers = _library("transformers", keywords)
    config = _config(transformers, name, keywords)
    architecture = next(iter(getattr(config, "architectures", None) or ()), None)
    if architecture is None:
        return _making(f"transformers:{name}", lambda: transformers.AutoModel.from_config(config))
    maker = getattr(transformers, architecture, None)
    if not (isinstance(maker, type) and issubclass(maker, nn.Module)):
        raise OptionError(
            f"the configuration {name!r} is of the architecture {architecture!r}, which transformers {transformers.__version__} "
            "does not have; code that comes with a model is not run here: import its class, and name it as MODULE:NAME"
        )
    return _making(f"transformers:{name}", lambda: maker(config))


def _config(transformers: ModuleType, name: str, keywords: Mapping[str, Any]) -> Any:
    path = Path(name)
    if path.is_dir() and not (path / "config.json").is_file():
        raise OptionError(f"the folder {name!r} has no config.json; transformers writes one with config.save_pretrained(folder)")
    on_hub = not path.exists() and re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name) and not name.endswith(".json")
    if not path.exists() and not on_hub:
        siblings = [file.name for file in path.parent.iterdir()] if path.parent.is_dir() else []
        raise OptionError(
            f"there is no file or folder {name!r}{did_you_mean(path.name, siblings)}; a name on the Hugging Face hub is "
            "ORGANIZATION/NAME, such as openai-community/gpt2"
        )
    try:
        config, unknown = transformers.AutoConfig.from_pretrained(
            name, return_unused_kwargs=True, trust_remote_code=False, local_files_only=not on_hub, **keywords
        )
    except Exception as error:  # whatever the hub, the network, JSON and the check of the entries raise
        raise ModelError(f"transformers cannot read the configuration {name!r}: {type(error).__name__}: {error}") from error
    if unknown:
        key = next(iter(unknown))
        raise OptionError(f"the configuration {name!r} has no entry {key!r}{did_you_mean(key, config.to_dict())}")
    return config


def timm_model(name: str, keywords: Mapping[str, Any]) -> Callable[[], nn.Module]:
    """Find a model of timm's by its name, without its pretrained weights.

    Raises:
        OptionError: timm has no model of this name.
        MissingExtraError: timm is not installed.
    """
    timm = _library("timm", keywords)
    architecture = name.partition(".")[0]  # what follows names pretrained weights
    if not timm.is_model(architecture):
        raise OptionError(f"timm {timm.__version__} has no model {name!r}{did_you_mean(architecture, timm.list_models())}")
    return _making(f"timm:{name}", lambda: timm.create_model(architecture, pretrained=False, **keywords))


LIBRARIES: dict[str, Callable[[str, Mapping[str, Any]], Callable[[], nn.Module]]] = {
    "transformers": transformers_model,
    "timm": timm_model,
}


def _library(name: str, keywords: Mapping[str, Any]) -> ModuleType:
    refused = next((key for key in keywords if key in _REFUSED), None)
    if refused is not None:
        raise OptionError(f"--arg {refused}=…: weights are not downloaded here, and code that comes with a model is not run")
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise code_error(f"importing {name}", error) from error
        raise MissingExtraError(f"{name} is not installed: pip install {name}") from error
    except Exception as error:
        raise code_error(f"importing {name}", error) from error


def _making(source: str, make: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    def made() -> nn.Module:
        try:
            return make()
        except Exception as error:
            raise code_error(f"making {source}", error) from error

    return made
