"""Image sets: found, decoded once, kept whole."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("datasets")

from goodinit import DataError, OptionError
from goodinit.hub import files_of, reading
from goodinit.paper.data import load
from image_sets import encoded, write_set

pytestmark = pytest.mark.usefixtures("own_caches")


@pytest.fixture
def own_caches(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "arrow")
    monkeypatch.setenv("GOODINIT_CACHE", str(tmp_path / "cache"))


def pixels(i, array):
    """Image i is all i, but for its first pixel."""
    array = np.full_like(array, i)
    array[0, 0] = 255
    return array


def test_a_set_is_decoded_and_then_mapped(tmp_path):
    write_set(tmp_path / "sets" / "cifar10", change=pixels)
    told = []
    first = load("cifar10", tmp_path / "sets", progress=lambda *args: told.append(args))
    assert first.shape == (3, 32, 32)
    assert first.classes == 10
    assert first.train.labels.tolist() == [i % 10 for i in range(40)]
    assert first.train.pixels[7, :, 0, :2].tolist() == [[255, 7]] * 3
    assert str(first) == "CIFAR-10: 40 training and 40 test images, 32x32, colour"
    assert told[-1] == ("decoding the test images of CIFAR-10", 40, 40)
    told.clear()
    second = load("cifar10", tmp_path / "sets", progress=lambda *args: told.append(args))
    assert not told
    assert torch.equal(first.train.pixels, second.train.pixels)
    assert second.train.facts == first.train.facts
    assert second.train.facts.encodings == {"PNG": 40}
    assert isinstance(np.load(next((tmp_path / "cache").glob("*train*/pixels.npy")), mmap_mode="r"), np.memmap)


def test_what_is_written_to_pixels_does_not_reach_the_cache(tmp_path):
    write_set(tmp_path / "cifar10", change=pixels)
    load("cifar10", tmp_path).train.pixels.zero_()
    assert load("cifar10", tmp_path).train.pixels[7, 0, 5, 5] == 7


def test_other_files_are_decoded_anew(tmp_path):
    write_set(tmp_path / "cifar10", change=pixels)
    before = load("cifar10", tmp_path).train
    write_set(tmp_path / "cifar10", change=lambda i, array: pixels(i + 1, array))
    os.utime(tmp_path / "cifar10" / "train-00000-of-00001.parquet", (1, 1))
    after = load("cifar10", tmp_path).train
    assert after.facts.sha256 != before.facts.sha256
    assert after.pixels[7, 0, 5, 5] == 8


@pytest.mark.parametrize(
    ("name", "folder", "options"),
    [
        ("mnist", ".", {"image": "image", "channels": 1, "size": (28, 28)}),
        ("cifar100", "cifar100", {"label": "fine_label", "classes": 100}),
        ("tiny-imagenet", "tiny_imagenet", {"image": "image", "size": (64, 64), "splits": ("train", "valid")}),
        ("somebody/else-s", "else-s", {"image": "image", "size": (8, 6), "encoding": "JPEG"}),
        ("somebody/bare", "bare", {"features": False}),
    ],
)
def test_layouts_of_the_hub(tmp_path, name, folder, options):
    write_set(tmp_path / folder, **options)
    found = load(name, tmp_path)
    assert found.shape == (options.get("channels", 3), *options.get("size", (32, 32)))
    assert found.classes == options.get("classes", 10)
    assert len(found.train) == len(found.test) == 40
    assert found.train.facts.encodings == {options.get("encoding", "PNG"): 40}


def test_gray_images_among_coloured_ones(tmp_path):
    write_set(tmp_path / "cifar10", change=lambda i, array: array[:, :, 0] if i == 3 else array)
    train = load("cifar10", tmp_path).train
    assert train.pixels.shape == (40, 3, 32, 32)
    assert torch.equal(train.pixels[3, 0], train.pixels[3, 2])
    assert not torch.equal(train.pixels[4, 0], train.pixels[4, 2])


def test_a_folder_of_one_set_among_many(tmp_path):
    """Files in the folder itself do not hide the set's own subfolder."""
    write_set(tmp_path, classes=100)
    write_set(tmp_path / "cifar10")
    assert load("cifar10", tmp_path).classes == 10
    assert load("cifar100", tmp_path).classes == 100
    assert files_of("uoft-cs/cifar10", tmp_path)[1]["train"] == [str(tmp_path / "cifar10" / "train-00000-of-00001.parquet")]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"change": lambda i, array: array[:, :-2] if i == 3 else array},
            "the images of a set must be of one size; of the train images of CIFAR-10 image 3 is 32x30, image 0 32x32",
        ),
        ({"image": "pixels", "features": False}, r"need a column of images .* found: pixels \(.*\), label \(Value\)"),
        ({"label": "target", "features": False}, r"and one of labels \(label, fine_label, labels\); found: img "),
    ],
)
def test_sets_of_another_form(tmp_path, options, message):
    write_set(tmp_path / "cifar10", **options)
    with pytest.raises(DataError, match=message):
        load("cifar10", tmp_path)
    assert not decoded(tmp_path)


def test_images_that_cannot_be_decoded(tmp_path, monkeypatch):
    import image_sets

    whole = image_sets.encoded
    monkeypatch.setattr(image_sets, "encoded", lambda array, encoding: whole(array, encoding)[:-100])
    write_set(tmp_path / "cifar10")
    with pytest.raises(DataError, match=r"image 0 of the train images of CIFAR-10 cannot be decoded \(OSError: .*truncated"):
        load("cifar10", tmp_path)


def test_labels_outside_of_the_classes(tmp_path):
    write_set(tmp_path / "cifar10", features=False, classes=4)
    import datasets

    table = datasets.load_dataset("parquet", data_files=str(tmp_path / "cifar10" / "test-00000-of-00001.parquet"), split="train")
    table.map(lambda row: {"label": row["label"] - 1}).to_parquet(tmp_path / "cifar10" / "test-00000-of-00001.parquet")
    with pytest.raises(DataError, match="the test images of CIFAR-10 have 3 classes; the label of image 0 is -1"):
        load("cifar10", tmp_path)


def test_folders_without_the_set(tmp_path):
    with pytest.raises(OptionError, match=r"there is no data folder '.*none'; without a data folder CIFAR-10 is downloaded"):
        load("cifar10", tmp_path / "none")
    with pytest.raises(DataError, match=r"no CIFAR-10 in the data folder .* in its subfolder cifar10, as in uoft-cs/cifar10"):
        load("cifar10", tmp_path)


def test_a_truncated_file(tmp_path):
    file = write_set(tmp_path / "cifar10") / "train-00000-of-00001.parquet"
    file.write_bytes(file.read_bytes()[:-500])
    with pytest.raises(DataError, match=r"cannot read .*train-00000-of-00001.parquet \(\w+: .*\); is it complete\?"):
        load("cifar10", tmp_path)


def test_a_full_disk_is_not_the_file_s_fault():
    wrapped = RuntimeError("An error occurred while generating the dataset")
    wrapped.__cause__ = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    expected = r"cannot read a.parquet \(OSError: .*No space left.*\); its cache, the folder in HF_HOME, needs more room"
    with pytest.raises(DataError, match=expected), reading("a.parquet"):
        raise wrapped


def test_train_and_test_images_of_two_shapes(tmp_path):
    write_set(tmp_path / "cifar10", splits=("train",))
    write_set(tmp_path / "cifar10", splits=("test",), size=(16, 16))
    with pytest.raises(DataError, match=r"training images of cifar10 are of shape \(3, 32, 32\), its test images of .*16, 16\)"):
        load("cifar10", tmp_path)


def test_a_broken_cache_is_named(tmp_path):
    write_set(tmp_path / "cifar10")
    load("cifar10", tmp_path)
    (folder,) = (path for path in decoded(tmp_path) if "train" in path.name)
    stored = folder / "pixels.npy"
    stored.write_bytes(stored.read_bytes()[:1000])
    with pytest.raises(DataError, match=rf"the decoded images in '.*{folder.name}' cannot be read \(.*\); delete this folder"):
        load("cifar10", tmp_path)
    shutil.rmtree(folder)
    load("cifar10", tmp_path)


def test_a_full_disk_leaves_no_half_of_a_set(tmp_path):
    """Files may not be larger than 100 kB in this process: what a full disk does to a write, done by the kernel."""
    write_set(tmp_path / "cifar10")
    load("cifar10", tmp_path)  # so that Arrow's own files are there
    shutil.rmtree(tmp_path / "cache")
    code = (
        "import resource, datasets\n"
        "from pathlib import Path\n"
        "from goodinit.paper.data import load\n"
        f"datasets.config.HF_DATASETS_CACHE = Path({str(tmp_path / 'arrow')!r})\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        f"load('cifar10', Path({str(tmp_path)!r}))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert "goodinit.errors.DataError: cannot save the decoded images in '" in done.stderr
    assert "(File too large); GOODINIT_CACHE names another folder" in done.stderr
    assert not decoded(tmp_path)


def decoded(folder):
    """What is in the cache, but for locks."""
    return [path for path in (folder / "cache").iterdir() if path.suffix != ".lock"]


def test_processes_decode_a_set_once_and_clear_up_after_those_that_were_killed(tmp_path):
    write_set(tmp_path / "cifar10", change=pixels)
    load("cifar10", tmp_path)
    for path in decoded(tmp_path):
        left = path.with_name(f".{path.name}-abcd")  # by a process that was killed
        path.rename(left)
    caches = {"GOODINIT_CACHE": str(tmp_path / "cache"), "HF_DATASETS_CACHE": str(tmp_path / "arrow")}
    code = (
        "from pathlib import Path\n"
        "from goodinit.paper.data import load\n"
        "told = []\n"
        f"images = load('cifar10', Path({str(tmp_path)!r}), progress=lambda *at: told.append(at))\n"
        "print(int(images.train.pixels[7, 0, 5, 5]), sum(done == total for _, done, total in told))\n"
    )
    started = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env={**os.environ, **caches})
        for _ in range(2)
    ]
    told = [process.communicate(timeout=120)[0].split() for process in started]
    assert [pixel for pixel, _ in told] == ["7", "7"]
    assert sum(int(count) for _, count in told) == 2  # the training images and the test images
    assert sorted(p.name[:22] for p in decoded(tmp_path)) == ["uoft-cs--cifar10-test-", "uoft-cs--cifar10-train"]


def test_the_hub_is_asked_by_name(monkeypatch, tmp_path):
    """Without a network: what would be asked for, and that its answer is read as a folder's is."""
    import datasets

    write_set(tmp_path / "files")
    from_parquet = datasets.load_dataset
    asked = []

    def hub(name, split):
        asked.append((name, split))
        file = str(tmp_path / "files" / f"{'train' if split == 'train' else 'test'}-00000-of-00001.parquet")
        return from_parquet("parquet", data_files=file, split="train")

    monkeypatch.setattr(datasets, "load_dataset", hub)
    monkeypatch.setattr(datasets, "get_dataset_split_names", lambda name: ["train", "validation"])
    assert len(load("somebody/something").test) == 40
    assert asked == [("somebody/something", "train"), ("somebody/something", "validation")]
    asked.clear()
    load("cifar10")
    assert asked[0] == ("uoft-cs/cifar10", "train")


def test_a_set_under_another_s_name_is_refused(tmp_path):
    write_set(tmp_path / "cifar10")
    with pytest.raises(DataError, match=r"the data folder '.*cifar10' is CIFAR-10's by its name; asked for was CIFAR-100"):
        load("cifar100", tmp_path / "cifar10")
    write_set(tmp_path / "other")
    with pytest.raises(
        DataError, match=r"CIFAR-100 has 100 classes of images of shape \(3, 32, 32\); what is in '.*' has 10 of sh"
    ):
        load("cifar100", tmp_path / "other")
    write_set(tmp_path / "sets" / "mnist")
    with pytest.raises(DataError, match=r"MNIST has 10 classes of images of shape \(1, 28, 28\)"):
        load("mnist", tmp_path / "sets")


def real(name):
    folder = Path(os.environ.get("GOODINIT_DATA_DIR", Path(__file__).parents[2] / "shared" / "data"))
    if not (folder / name.replace("-", "_")).is_dir():
        pytest.skip(f"no {name}: name a folder that holds it with GOODINIT_DATA_DIR")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "shape", "counts", "classes", "mean"),
    [
        ("mnist", (1, 28, 28), (60_000, 10_000), 10, [0.1307]),
        ("cifar10", (3, 32, 32), (50_000, 10_000), 10, [0.4914, 0.4822, 0.4465]),
        ("cifar100", (3, 32, 32), (50_000, 10_000), 100, [0.5069, 0.4864, 0.4408]),
        ("tiny-imagenet", (3, 64, 64), (8_000, 1_000), 20, [0.4922, 0.4462, 0.3967]),
    ],
)
def test_real_sets(name, shape, counts, classes, mean):
    found = load(name, real(name))
    assert found.shape == shape
    assert (len(found.train), len(found.test)) == counts
    assert found.classes == classes
    means = found.train.pixels.double().mean((0, 2, 3)) / 255
    assert means.tolist() == pytest.approx(mean, abs=2e-3)
    assert found.train.labels.bincount().float().std() < 0.07 * counts[0] / classes
    assert sum(found.train.facts.encodings.values()) == counts[0]
    assert set(found.train.facts.encodings) <= {"PNG", "WEBP", "JPEG"}


def test_images_of_any_size_are_resized_on_demand(tmp_path):
    def change(i, array):
        wide = np.full((20, 40 + i, 3), 10, np.uint8)
        wide[:, 10 : 30 + i] = 200  # the middle
        return wide

    write_set(tmp_path / "cifar10", change=change)
    train = load("cifar10", tmp_path, size=8).train
    assert train.pixels.shape == (40, 3, 8, 8)
    assert (train.pixels[:, :, :, 2:6] > 180).all()
    assert load("cifar10", tmp_path, size=8).train.facts == train.facts  # from the cache
    assert load("cifar10", tmp_path, size=4).shape == (3, 4, 4)
    with pytest.raises(DataError, match="of the train images of CIFAR-10 image 1 is 20x41, image 0 20x40"):
        load("cifar10", tmp_path)


def test_gray_images_before_coloured_ones(tmp_path):
    write_set(tmp_path / "cifar10", change=lambda i, array: array[:, :, 0] if i < 5 else array)
    train = load("cifar10", tmp_path).train
    assert train.pixels.shape == (40, 3, 32, 32)
    assert torch.equal(train.pixels[2, 0], train.pixels[2, 1])


def test_folders_of_image_files_by_class(tmp_path):
    from PIL import Image

    for split, count in (("train", 3), ("val", 2)):
        for label, name in enumerate(("cat", "dog")):
            (tmp_path / "pets" / split / name).mkdir(parents=True)
            for i in range(count):
                Image.fromarray(np.full((6, 6, 3), 100 * label + i, np.uint8)).save(tmp_path / "pets" / split / name / f"{i}.png")
    for folder in (tmp_path, tmp_path / "pets"):
        found = load("pets", folder)
        assert found.train.facts.classes == ("cat", "dog")
        assert (len(found.train), len(found.test)) == (6, 4)
        assert [int(p[0, 0, 0]) // 100 for p in found.train.pixels] == found.train.labels.tolist()


def write_labels(folder, split, labels, names=None):
    """A part of a set of gray images, with labels of one's own."""
    import datasets

    kinds = {"image": datasets.Image(), "label": datasets.ClassLabel(names=names)} if names else {"image": datasets.Image()}
    table = datasets.Dataset.from_dict(
        {
            "image": [{"bytes": encoded(np.full((4, 4), i, np.uint8), "PNG"), "path": None} for i in range(len(labels))],
            "label": labels,
        },
        features=datasets.Features(kinds) if names else None,
    )
    folder.mkdir(exist_ok=True)
    table.to_parquet(folder / f"{split}.parquet")


def test_classes_of_the_two_parts_are_told_by_their_names(tmp_path):
    write_labels(tmp_path / "own", "train", [0, 1, 2, 3], ["ant", "bee", "cow", "dog"])
    write_labels(tmp_path / "own", "test", [1, 0, 1], ["bee", "dog"])
    found = load("own", tmp_path)
    assert found.test.labels.tolist() == [3, 1, 3]
    assert found.test.facts.classes == found.train.facts.classes == ("ant", "bee", "cow", "dog")


@pytest.mark.parametrize(
    ("train", "test", "expected"),
    [
        (["cat", "ant", "dog"], ["dog", "ant"], ([1, 0, 2], [2, 0])),
        ([3, 7, 10**9], [7, 3, 10**9], ([0, 1, 2], [1, 0, 2])),
        ([False, True], [True, False], ([0, 1], [1, 0])),
    ],
    ids=["names", "identifiers", "flags"],
)
def test_labels_of_other_kinds(tmp_path, train, test, expected):
    write_labels(tmp_path / "own", "train", train)
    write_labels(tmp_path / "own", "test", test)
    found = load("own", tmp_path)
    assert (found.train.labels.tolist(), found.test.labels.tolist()) == expected
    assert found.classes == len(train)


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        (
            [0, 1, 2],
            [0, 5, 3],
            "test images of own are of classes that the training images do not have: 3, 5; those have 0, 1, 2",
        ),
        (
            [0.5, 1.5],
            [0.5],
            "labels must be whole numbers, or all of them names; of the train images of own that of image 0 is 0.5",
        ),
        (
            [0, None, 1],
            [0],
            "labels must be whole numbers, or all of them names; of the train images of own that of image 1 is None",
        ),
        (["ant", None], ["ant"], "all of them names; of the train images of own that of image 1 is None"),
        ([0, -1], [0], "the train images of own have 1 classes; the label of image 1 is -1"),
    ],
)
def test_labels_that_are_none(tmp_path, train, test, message):
    write_labels(tmp_path / "own", "train", train)
    write_labels(tmp_path / "own", "test", test)
    with pytest.raises(DataError, match=message):
        load("own", tmp_path)


@pytest.mark.parametrize("kind", ["parquet", "folders"])
def test_folders_whose_names_look_like_patterns(tmp_path, kind):
    place = tmp_path / "sets [1]"
    if kind == "parquet":
        write_set(place / "own")
    for split in ("train", "test") if kind == "folders" else ():
        for name in ("a", "b"):
            (place / "own" / split / name).mkdir(parents=True)
            Image.new("L", (8, 8), 7).save(place / "own" / split / name / "1.png")
    assert len(load("own", place).train) == (40 if kind == "parquet" else 2)


def one_image(folder, image, suffix=".png"):
    for place in (folder / split / name for split in ("train", "test") for name in ("a", "b")):
        place.mkdir(parents=True)
        image.save(place / f"1{suffix}")
    return load("own", folder).train.pixels[0]


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.fromarray(np.array([[0, 257, 514, 65535]], np.uint16)), [[0, 1, 2, 255]]),
        (Image.fromarray(np.array([[0, 1, 200, 255]], np.uint16)), [[0, 1, 200, 255]]),
        (Image.fromarray(np.array([[True, False]])), [[255, 0]]),
        (Image.merge("LA", [Image.fromarray(np.array([[3, 4]], np.uint8)), Image.new("L", (2, 1), 255)]), [[3, 4]]),
    ],
    ids=["16 bits", "8 of 16 bits", "1 bit", "opaque"],
)
def test_gray_images_of_every_mode(tmp_path, image, expected):
    assert one_image(tmp_path, image).tolist() == [expected]


@pytest.mark.parametrize(
    ("image", "suffix", "message"),
    [
        (
            Image.new("RGBA", (2, 2), (0, 0, 0, 0)),
            ".png",
            r"image 0 of the train images of own is transparent in places \(mode RGBA",
        ),
        (Image.new("LA", (2, 2), (9, 254)), ".png", r"is transparent in places \(mode LA\).* put all images on a background"),
        (Image.new("F", (2, 2), 0.5), ".tiff", r"image 0 of the train images of own has floating-point values \(mode F\)"),
    ],
)
def test_images_of_which_something_would_be_lost(tmp_path, image, suffix, message):
    with pytest.raises(DataError, match=message):
        one_image(tmp_path, image, suffix)
