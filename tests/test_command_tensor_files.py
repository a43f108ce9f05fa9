"""Files of tensors: what is read, and what is refused, pickles above all."""

from __future__ import annotations

import pickle
import shlex
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from goodinit.command.tensor_files import read_tensors
from goodinit.errors import DataError, MissingExtraError, OptionError


def test_safetensors(tmp_path):
    tensors = {"x": torch.randn(3, 2, dtype=torch.bfloat16), "ids": torch.arange(3)}
    save_file(tensors, tmp_path / "a.safetensors")
    samples = read_tensors(tmp_path / "a.safetensors")
    assert samples.tensors.keys() == tensors.keys()
    assert all(torch.equal(samples.tensors[name], t) for name, t in tensors.items())
    assert not samples.ordered


def test_npz(tmp_path):
    np.savez(tmp_path / "named.npz", x=np.ones((3, 2)), y=np.arange(3))
    np.savez_compressed(tmp_path / "numbered.npz", *(np.full(2, i) for i in range(12)))
    named, numbered = (read_tensors(tmp_path / f"{name}.npz") for name in ("named", "numbered"))
    assert {name: (t.dtype, tuple(t.shape)) for name, t in named.tensors.items()} == {
        "x": (torch.float64, (3, 2)),
        "y": (torch.int64, (3,)),
    }
    assert (named.ordered, numbered.ordered) == (False, True)
    assert [t[0].item() for t in numbered.tensors.values()] == list(range(12))


@pytest.mark.parametrize("dtype", [">f4", "<f8", "float16", ">i2", "bool", "complex64"])
def test_npy(tmp_path, dtype):
    array = np.arange(6).reshape(3, 2).astype(dtype)
    np.save(tmp_path / "a.npy", array)
    (tensor,) = read_tensors(tmp_path / "a.npy").tensors.values()
    assert tensor.tolist() == array.tolist()


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".ckpt", ".PT"])
def test_pickles_of_torch_are_refused(tmp_path, suffix):
    with pytest.raises(
        OptionError, match=r"is not read: torch.save makes pickles, and reading one runs whatever code its author"
    ):
        read_tensors(tmp_path / f"batch{suffix}")


@pytest.mark.parametrize(
    ("saved", "name"),
    [
        (torch.ones(3), "x"),
        ({"x": torch.ones(3)}, "x"),
        ({"epoch": 3, "state_dict": {"fc.weight": torch.ones(3)}}, "fc.weight"),
        ((torch.ones(3), torch.zeros(2)), "arr_0"),
    ],
    ids=["tensor", "dict", "checkpoint", "tuple"],
)
def test_the_refusal_says_what_converts_them(tmp_path, saved, name):
    torch.save(saved, tmp_path / "batch.pt")
    with pytest.raises(OptionError) as caught:
        read_tensors(tmp_path / "batch.pt")
    python, option, code = shlex.split(str(caught.value).splitlines()[1])  # as a shell does
    assert (python, option) == ("python", "-c")
    exec(code, {})
    assert load_file(tmp_path / "batch.safetensors")[name].tolist() == [1, 1, 1]


@pytest.mark.parametrize("suffix", [".pkl", ".pickle", ".joblib"])
def test_other_pickles_are_refused(tmp_path, suffix):
    (tmp_path / f"a{suffix}").write_bytes(pickle.dumps([1]))
    with pytest.raises(OptionError, match=r"it is a pickle, .* convert it once:\n  in Python: numpy.savez\('a.npz', x=array\)"):
        read_tensors(tmp_path / f"a{suffix}")


class Bomb:
    def __reduce__(self):
        return pytest.fail, ("a pickle was read",)


@pytest.mark.parametrize("name", ["a.npz", "a.npy", "a.safetensors"])
def test_a_pickle_under_another_name_is_not_read(tmp_path, name):
    (tmp_path / name).write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(DataError):
        read_tensors(tmp_path / name)


@pytest.mark.parametrize("name", ["a.npz", "a.npy"])
def test_objects_in_arrays_are_not_read(tmp_path, name):
    array = np.array([Bomb()], dtype=object)
    if name == "a.npz":
        np.savez(tmp_path / name, x=array)
    else:
        np.save(tmp_path / name, array, allow_pickle=True)
    with pytest.raises(DataError, match=r"holds pickled objects, and reading one runs .*: save arrays of numbers, numpy.savez\("):
        read_tensors(tmp_path / name)


@pytest.mark.parametrize("kind", ["npz", "npy"])
def test_files_that_are_something_else(tmp_path, kind):
    (tmp_path / f"a.{kind}").write_text("<html>not found</html>")
    with pytest.raises(DataError, match=rf"a\.{kind}' is not an {kind} file, or it is incomplete; numpy.savez? writes one$"):
        read_tensors(tmp_path / f"a.{kind}")


@pytest.mark.parametrize("name", ["a.npz", "a.npy", "a.safetensors"])
def test_files_that_are_cut_off(tmp_path, name):
    x = np.random.default_rng(0).standard_normal((50, 20))
    if name == "a.safetensors":
        save_file({"x": torch.as_tensor(x)}, tmp_path / name)
    else:
        np.savez(tmp_path / name, x=x) if name == "a.npz" else np.save(tmp_path / name, x)
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:4000])
    with pytest.raises(DataError, match=rf"cannot read '.*{name}' as .*; is it complete\?"):
        read_tensors(tmp_path / name)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({}, "holds no tensor"),
        ({"x": np.empty((0, 3))}, r"'x' is empty, of shape \(0, 3\)"),
        ({"x": np.array(["a", "b"])}, "'x' is of NumPy's type <U1, not of numbers that torch knows"),
    ],
)
def test_files_of_no_use(tmp_path, arrays, message):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(DataError, match=message):
        read_tensors(tmp_path / "a.npz")


def test_kinds_of_files_that_are_not_read(tmp_path):
    (tmp_path / "a.csv").touch()
    with pytest.raises(
        OptionError, match=r"--data '.*a.csv': expected a file .safetensors, .npz or .npy, a folder of images, hub:"
    ):
        read_tensors(tmp_path / "a.csv")


@pytest.mark.parametrize(("package", "name", "extra"), [("safetensors", "a.safetensors", "cli"), ("numpy", "a.npy", "data")])
def test_what_is_not_installed(monkeypatch, tmp_path, package, name, extra):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=rf"^{package} is not installed; .* pip install 'goodinit\[{extra}\]'"):
        read_tensors(tmp_path / name)
