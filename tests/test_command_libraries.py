"""Models of transformers and timm by their description: real packages, no weights, no foreign code."""

from __future__ import annotations

import json
import sys

import pytest

from goodinit.command.libraries import timm_model, transformers_model
from goodinit.console import CodeError
from goodinit.errors import MissingExtraError, ModelError, OptionError

CONFIG = {
    "model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "n_layer": 2, "n_embd": 16, "n_head": 2, "n_positions": 32,
    "vocab_size": 60, "bos_token_id": 0, "eos_token_id": 0,
}  # fmt: skip


@pytest.fixture
def folder(tmp_path, monkeypatch):
    pytest.importorskip("transformers")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # the network is not asked, and not waited for
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gpt").mkdir()
    return tmp_path / "gpt"


def write(folder, **changes):
    (folder / "config.json").write_text(json.dumps({**CONFIG, **changes}))


@pytest.mark.parametrize("name", ["gpt", "gpt/config.json", "./gpt"])
def test_transformers(folder, name):
    write(folder)
    model = transformers_model(name, {"n_layer": 1})()
    assert type(model).__name__ == "GPT2LMHeadModel"
    assert len(model.transformer.h) == 1
    assert model.lm_head.weight is model.transformer.wte.weight


def test_transformers_without_an_architecture(folder):
    write(folder, architectures=None)
    assert type(transformers_model("gpt", {})()).__name__ == "GPT2Model"


@pytest.mark.parametrize(
    ("name", "changes", "keywords", "error", "message"),
    [
        ("gptt", {}, {}, OptionError, r"there is no file or folder 'gptt' \(did you mean 'gpt'\?\); a name on the .* ORG"),
        ("gpt/c.json", {}, {}, OptionError, r"there is no file or folder 'gpt/c.json'"),
        (".", {}, {}, OptionError, "the folder '.' has no config.json; transformers writes one with config.save_pretrained"),
        ("gpt", {}, {"nlayer": 3}, OptionError, r"the configuration 'gpt' has no entry 'nlayer' \(did you mean 'n_layer'\?\)"),
        ("gpt", {}, {"trust_remote_code": True}, OptionError, "--arg trust_remote_code=…: weights are not downloaded here"),
        ("gpt", {"architectures": ["MyGPT"]}, {}, OptionError, "of the architecture 'MyGPT', which transformers .* does not"),
        ("gpt", {"architectures": ["AutoConfig"]}, {}, OptionError, "'AutoConfig', which transformers"),
        ("gpt", {"model_type": "my_gpt"}, {}, ModelError, "transformers cannot read the configuration 'gpt': .*my_gpt"),
        ("some/one", {}, {}, ModelError, "transformers cannot read the configuration 'some/one': OSError"),
    ],
)  # fmt: skip
def test_no_model_of_transformers(folder, name, changes, keywords, error, message):
    write(folder, **changes)
    with pytest.raises(error, match=message):
        transformers_model(name, keywords)


def test_code_that_comes_with_a_model_is_not_run(folder):
    """As a download would bring it: a model type that transformers does not know, and a file that defines it."""
    write(folder, model_type="mine", auto_map={"AutoConfig": "mine.Config", "AutoModel": "mine.Model"})
    (folder / "mine.py").write_text("raise SystemExit('code was run')\n")
    with pytest.raises(ModelError, match="cannot read the configuration 'gpt'"):
        transformers_model("gpt", {})


def test_a_configuration_that_no_model_can_be_made_of(folder):
    write(folder, n_head=3)
    with pytest.raises(CodeError, match=r"making transformers:gpt raised ValueError: .*divisible"):
        transformers_model("gpt", {})()


@pytest.fixture
def timm():
    import torchvision_ops  # noqa: F401 - finds timm

    return pytest.importorskip("timm")


def test_timm(timm):
    model = timm_model("test_resnet.r160_in1k", {"num_classes": 3})()
    assert model.num_classes == 3


@pytest.mark.parametrize(
    ("name", "keywords", "message"),
    [
        ("resnet19", {}, r"timm [\d.]+ has no model 'resnet19' \(did you mean 'resnet1.*'"),
        ("resnet18", {"pretrained": True}, "--arg pretrained=…: weights are not downloaded here"),
    ],
)
def test_no_model_of_timm(timm, name, keywords, message):
    with pytest.raises(OptionError, match=message):
        timm_model(name, keywords)


def test_an_argument_that_a_model_of_timm_does_not_take(timm):
    with pytest.raises(CodeError, match=r"making timm:test_resnet raised TypeError: .*colour"):
        timm_model("test_resnet", {"colour": 1})()


@pytest.mark.parametrize(("find", "package"), [(transformers_model, "transformers"), (timm_model, "timm")])
def test_what_is_not_installed(monkeypatch, find, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=f"^{package} is not installed: pip install {package}$"):
        find("name", {})
