"""Weights on disk: whole or not at all, tied ones too, nothing unpickled."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_model, save_file
from torch import nn

from goodinit.command.weight_files import check_saveable, check_weights_path, load_weights, save_weights
from goodinit.errors import DataError, MissingExtraError, ModelError, OptionError
from nets import assert_same


def tied():
    net = nn.Sequential(nn.Embedding(50, 8), nn.Linear(8, 8).bfloat16(), nn.BatchNorm1d(8), nn.Linear(8, 50, bias=False))
    net[3].weight = net[0].weight
    return net


def test_what_is_saved_is_loaded_by_safetensors_and_by_us(tmp_path):
    model, file = tied(), tmp_path / "w.safetensors"
    assert save_weights(model, file) == file.stat().st_size
    for load in (load_model, load_weights):
        other = tied()
        load(other, file)
        assert_same(dict(model.state_dict()), dict(other.state_dict()))
        assert other[3].weight is other[0].weight
    with safe_open(file, "pt") as held:
        assert held.metadata()["format"] == "pt"
        assert len(held.keys()) == len(model.state_dict()) - 1


def test_lazy_layers_get_their_form_from_the_file(tmp_path):
    def make():
        net = nn.Sequential(nn.LazyLinear(8), nn.Linear(8, 8), nn.Linear(8, 8))
        net[2].weight = net[1].weight
        return net

    model, file = make(), tmp_path / "w.safetensors"
    model(torch.randn(4, 8))
    save_weights(model, file)
    other = make()
    load_weights(other, file)
    assert_same(dict(model.state_dict()), dict(other.state_dict()))
    with pytest.raises(ModelError, match="are of another model"):
        load_weights(nn.Sequential(nn.LazyLinear(8)), file)


def test_equal_weights_are_equal_bytes(tmp_path):
    """safetensors puts the metadata in an order that differs from file to file."""
    model = nn.ModuleDict({name: nn.Linear(2, 2) for name in ("a", "é", '"')})
    for module in model.values():
        module.weight = model["a"].weight
    written = set()
    for _ in range(20):
        save_weights(model, tmp_path / "w.safetensors")
        written.add((tmp_path / "w.safetensors").read_bytes())
    assert len(written) == 1
    with safe_open(tmp_path / "w.safetensors", "pt") as held:
        assert held.metadata().keys() == {"format", "made_by", "é.weight", '".weight'}
        assert held.get_tensor("é.bias").equal(model["é"].bias)


def parts(model, whole):
    """As the weights of an LSTM lie on a GPU: beside each other in one tensor."""
    for p, part in zip(model.parameters(), whole.split([p.numel() for p in model.parameters()]), strict=True):
        p.data = part.view(p.shape)


def overlapping(model, whole):
    for i, p in enumerate(model.parameters()):
        p.data = whole[i : i + p.numel()].view(p.shape)


def transposed(model, whole):
    for p in model.parameters():
        p.data = torch.randn(p.shape[::-1]).t() if p.dim() == 2 else p.data


@pytest.mark.parametrize("lay", [parts, overlapping, transposed])
def test_weights_that_do_not_lie_each_in_memory_of_its_own(tmp_path, lay):
    model = nn.LSTM(3, 4)
    lay(model, torch.randn(sum(p.numel() for p in model.parameters())))
    save_weights(model, tmp_path / "w.safetensors")
    other = nn.LSTM(3, 4)
    load_weights(other, tmp_path / "w.safetensors")
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), other.parameters(), strict=True))


def test_a_full_disk_leaves_what_was_there(tmp_path):
    """A process whose files may not grow beyond a size: what a full disk does to a write, done by the kernel."""
    file = tmp_path / "w.safetensors"
    file.write_bytes(b"old")
    code = (
        "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (10000, 10000))\n"
        "from pathlib import Path\nfrom torch import nn\nfrom goodinit.command.weight_files import save_weights\n"
        "from goodinit.errors import SaveError\n"
        f"try: save_weights(nn.Linear(100, 100), Path({str(file)!r}))\n"
        "except SaveError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == f"cannot save w.safetensors in {str(tmp_path)!r}: File too large; 40,400 bytes\n"
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {file.name: b"old"}


def test_an_error_of_another_kind_leaves_what_was_there(tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise ValueError("no such type")

    monkeypatch.setattr("safetensors.torch.save_file", fail)
    with pytest.raises(OSError, match=r"^cannot save w.safetensors: no such type$"):
        save_weights(nn.Linear(2, 2), tmp_path / "w.safetensors")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("w.pt", r"--out '.*w.pt': weights are saved as safetensors, so its name should end in .safetensors"),
        (
            "none/w.safetensors",
            r"weights cannot be saved as '.*': No such file or directory; name a file in a folder that you can",
        ),
        ("", r"weights cannot be saved as '.*', which is a folder; name a file in it, '.*weights.safetensors'"),
    ],
)
def test_paths_that_cannot_be(tmp_path, name, message):
    with pytest.raises(OptionError, match=message):
        check_weights_path(tmp_path / name)


def test_a_model_with_a_state_that_is_no_tensor():
    class Counting(nn.Linear):
        def get_extra_state(self):
            return 3

        def set_extra_state(self, state):
            pass

    check_saveable(tied())
    with pytest.raises(ModelError, match=r"'0._extra_state' in the model's state_dict is no tensor"):
        check_saveable(nn.Sequential(Counting(2, 2)))


def test_weights_that_are_not_there(tmp_path):
    with pytest.raises(OptionError, match=r"--weights: there is no file '.*w.safetensors'"):
        load_weights(tied(), tmp_path / "w.safetensors")
    with pytest.raises(OptionError, match=r"w.pt' is not read: torch.save makes pickles"):
        load_weights(tied(), tmp_path / "w.pt")
    (tmp_path / "w.safetensors").write_bytes(b"nothing of the kind")
    with pytest.raises(DataError, match=r"cannot read '.*w.safetensors' as safetensors"):
        load_weights(tied(), tmp_path / "w.safetensors")


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"weight": torch.ones(2, 3)}, 'are of another model. .*Missing key.*"bias"'),
        ({"weight": torch.ones(2, 3), "bias": torch.ones(2), "more": torch.ones(1)}, 'Unexpected key.*"more"'),
        ({"weight": torch.ones(3, 3), "bias": torch.ones(2)}, r"size mismatch for weight: .*\[3, 3\].*\[2, 3\]"),
    ],
)
def test_weights_of_another_model(tmp_path, weights, message):
    save_file(weights, tmp_path / "w.safetensors")
    with pytest.raises(ModelError, match=f"(?s){message}"):
        load_weights(nn.Linear(3, 2), tmp_path / "w.safetensors")


def test_without_safetensors(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(MissingExtraError, match=r"safetensors is not installed; .* pip install 'goodinit\[cli\]'"):
        check_weights_path(tmp_path / "w.safetensors")
