"""Images as samples: real files, read by the real packages."""

from __future__ import annotations

import sys
import types

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from goodinit.command.samples import Wanted
from goodinit.command.sources import read_samples
from goodinit.errors import DataError, MissingExtraError, OptionError

NET = nn.Linear(2, 2)


def image(seed, mode="RGB", size=(12, 10)):
    """Of noise around a brightness of its own."""
    rng = np.random.default_rng(seed)
    width, height = size
    channels = {"RGB": (3,), "RGBA": (4,), "LA": (2,), "L": ()}[mode]
    return Image.fromarray(rng.integers(seed % 100, 256, (height, width, *channels)).astype(np.uint8), mode)


def write(folder, count, *, classes=("cats", "dogs"), suffix="png", **options):
    for i in range(count):
        path = folder / classes[i % len(classes)] / f"{i}.{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        image(i, **options).save(path)


def read(folder, rows=64, seed=0, size=None):
    return read_samples(str(folder), Wanted(rows, seed, size), NET)


def test_images_are_standardized_and_have_their_folder_for_a_label(tmp_path):
    write(tmp_path, 20)
    (tmp_path / "notes.txt").touch()
    samples = read(tmp_path)
    x, labels = samples.tensors["images"], samples.tensors["labels"]
    assert x.shape == (20, 3, 10, 12)
    assert x.mean((0, 2, 3)).tolist() == pytest.approx([0] * 3, abs=1e-5)
    assert x.std((0, 2, 3)).tolist() == pytest.approx([1] * 3, abs=1e-5)
    assert sorted(labels.tolist()) == [0] * 10 + [1] * 10
    assert samples.text == f"20 of 20 images of '{tmp_path}', 3x10x12, standardized"


def test_what_systems_and_tools_leave_in_a_folder_is_no_image(tmp_path):
    write(tmp_path, 20)
    for name in ("cats/._0.png", ".ipynb_checkpoints/0.png", "cats/paper.pdf", "dogs/features.h5"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("no image")
    samples = read(tmp_path)
    assert len(samples.tensors["images"]) == 20
    assert sorted(samples.tensors["labels"].tolist()) == [0] * 10 + [1] * 10


def test_grey_images_of_16_bits_beside_others_keep_their_brightness(tmp_path):
    for i, (value, mode) in enumerate([(128, "L"), (128 * 257, "I;16"), (128, "RGB"), (0, "RGB"), (255, "RGB")]):
        array = np.full((6, 6, 3) if mode == "RGB" else (6, 6), value, np.uint16 if mode == "I;16" else np.uint8)
        Image.fromarray(array).save(tmp_path / f"{i}.png")
    samples = read(tmp_path).tensors["images"].mean((1, 2, 3)).sort().values
    assert samples[1].item() == pytest.approx(samples[2].item(), abs=1e-5)
    assert samples[2].item() == pytest.approx(samples[3].item(), abs=1e-5)
    assert samples[0] < samples[1] < samples[4]


def test_another_package_of_that_name_is_told_apart(tmp_path, monkeypatch):
    (tmp_path / "train.parquet").touch()
    monkeypatch.setitem(sys.modules, "datasets", types.ModuleType("datasets"))
    with pytest.raises(DataError, match=r"datasets is 'a folder of that name' here, not the library of Hugging Face"):
        read(tmp_path)


def test_no_source(tmp_path):
    with pytest.raises(OptionError, match="--data: expected a file, a folder, hub:NAME"):
        read("")


def test_labels_are_those_of_the_images(tmp_path):
    for i in range(12):
        (tmp_path / "ab"[i % 2]).mkdir(exist_ok=True)
        Image.new("L", (4, 4), 100 * (i % 2) + i).save(tmp_path / "ab"[i % 2] / f"{i}.png")
    tensors = read(tmp_path, rows=8).tensors
    assert ((tensors["images"].mean((1, 2, 3)) > 0).long() == tensors["labels"]).all()
    (tmp_path / "b" / "1.png").rename(tmp_path / "1.png")
    assert "labels" not in read(tmp_path).tensors


def test_which_images_follows_from_the_seed(tmp_path):
    write(tmp_path, 20)
    drawn = [read(tmp_path, rows=6, seed=seed).tensors["images"] for seed in (0, 0, 1)]
    assert drawn[0].shape[0] == 6
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_images_of_several_sizes_and_modes(tmp_path):
    write(tmp_path, 2, size=(30, 20), suffix="jpg")
    image(2, "L").save(tmp_path / "grey.png")
    image(3, "RGBA").save(tmp_path / "clear.png")
    assert read(tmp_path).tensors["images"].shape == (4, 3, 224, 224)
    assert read(tmp_path, size=16).tensors["images"].shape == (4, 3, 16, 16)


def test_images_are_cut_to_the_middle_not_squeezed(tmp_path):
    pixels = np.zeros((4, 12), np.uint8)
    pixels[:2, 4:8] = 200
    for i in range(2):
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    x = read(tmp_path, size=4).tensors["images"]
    assert x[0, 0, 0].unique().numel() == x[0, 0, 3].unique().numel() == 1
    assert x[0, 0, 0, 0] > x[0, 0, 3, 0]


@pytest.mark.parametrize("mode", ["L", "LA"])
def test_grey_images_have_one_channel(tmp_path, mode):
    write(tmp_path, 3, classes=(".",), mode=mode)
    samples = read(tmp_path)
    assert samples.tensors["images"].shape == (3, 1, 10, 12)
    assert "labels" not in samples.tensors


def test_grey_images_of_16_bits_keep_them(tmp_path):
    Image.fromarray(np.arange(0, 60000, 1000, dtype=np.uint16).reshape(6, 10)).save(tmp_path / "a.png")
    x = read(tmp_path).tensors["images"].flatten()
    assert x.unique().numel() == 60
    assert x.diff().std() < 1e-4


def test_a_set_as_the_hub_has_it(tmp_path, monkeypatch):
    """Parquet files, in a folder of one's own and by name."""
    monkeypatch.setattr("datasets.config.SLEEP_TIME_ON_THREADS_SHUTDOWN", 0)
    features = datasets.Features({"img": datasets.Image(), "fine": datasets.ClassLabel(num_classes=3)})
    rows = {"img": [image(i, size=(8, 8)) for i in range(30)], "fine": [i % 3 for i in range(30)]}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "train-00000-of-00001.parquet")
    of_folder, again, of_name = (
        read_samples(source, Wanted(10, 0), NET) for source in (str(tmp_path), str(tmp_path), f"hub:{tmp_path}")
    )
    for samples in (of_folder, of_name):
        assert samples.tensors["images"].shape == (10, 3, 8, 8)
        assert set(samples.tensors["labels"].tolist()) == {0, 1, 2}
    assert torch.equal(of_folder.tensors["images"], again.tensors["images"])
    assert of_folder.text == f"10 of 30 images of '{tmp_path}', 3x8x8, standardized"
    assert of_name.text == f"10 images of {tmp_path} from the Hugging Face hub, 3x8x8, standardized"
    assert len(read(tmp_path).tensors["images"]) == 30


def test_a_set_without_images(tmp_path):
    datasets.Dataset.from_dict({"text": ["a"], "label": [1]}).to_parquet(tmp_path / "train.parquet")
    with pytest.raises(DataError, match=r"there is no column of images in '.*'; the columns are text, label"):
        read(tmp_path)


def test_a_folder_without_images(tmp_path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(DataError, match=r"no images and no parquet files in the folder '.*'; it holds notes.txt"):
        read(tmp_path)


def test_a_broken_image_is_named(tmp_path):
    write(tmp_path, 2)
    (tmp_path / "cats" / "0.png").write_bytes((tmp_path / "cats" / "0.png").read_bytes()[:100])
    with pytest.raises(DataError, match=r"cannot read the image '.*cats/0.png': "):
        read(tmp_path)


def test_a_set_that_cannot_be_fetched(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match=r"cannot read some/one from the Hugging Face hub \(.*\); fetch .* folder with --data$"):
        read_samples("hub:some/one", Wanted(2, 0), NET)


@pytest.mark.parametrize(("package", "source"), [("PIL", "{folder}"), ("datasets", "hub:some/one")])
def test_what_is_not_installed(monkeypatch, tmp_path, package, source):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=rf"{package}.* is not installed; .* pip install 'goodinit\[data\]'"):
        read_samples(source.format(folder=tmp_path), Wanted(2, 0), NET)
