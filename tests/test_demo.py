"""The demo's data, training and story on small networks; the full demo among the slow tests."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import math
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from goodinit import lsuv_
from goodinit.demo import (
    BATCH,
    SAMPLE,
    Images,
    Run,
    Setting,
    Silence,
    Story,
    accuracy,
    batches,
    digits,
    mnist,
    network,
    picture,
    run_demo,
    seeded_network,
    train,
)
from goodinit.errors import DataError, MissingExtraError, OptionError
from goodinit.measurement.propagation import measure

TINY = Setting(steps=3, depth=2)


# The data.


def test_digits():
    images = digits()
    assert images.train.shape[1:] == images.test.shape[1:] == (1, 8, 8)
    assert (len(images.train), len(images.test)) == (1437, 360)
    assert images.train.mean().item() == pytest.approx(0, abs=1e-5)
    assert images.train.std().item() == pytest.approx(1, abs=1e-5)
    counts = images.test_labels.bincount(minlength=10) / 360
    assert torch.allclose(counts, images.train_labels.bincount(minlength=10) / 1437, atol=0.005)
    assert torch.equal(images.test, digits().test)
    assert str(images) == "scikit-learn's digits, 1,437 training and 360 test images of 8x8"


def test_test_images_are_standardized_as_the_training_images():
    ones = torch.ones(1, dtype=torch.int64)
    train, test = torch.tensor([1.0, 3.0]).view(2, 1, 1, 1), torch.full((1, 1, 1, 1), 2 + 2**0.5)
    images = Images.standardized((train, ones.repeat(2)), (test, ones), "numbers")
    assert images.train.flatten().tolist() == pytest.approx([-(0.5**0.5), 0.5**0.5])
    assert images.test.item() == pytest.approx(1.0)


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    """datasets keeps what it has read in a folder of the user's; tests have one of their own."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def write_mnist(
    folder: Path, count: int = 12, size: int = 28, images: str = "image", labels: str = "label", first: int = 0
) -> None:
    """A data set as MNIST's on the hub: image i has the pixels i in its left half, 2 i in its right."""
    import datasets
    import numpy as np
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    for split in ("train", "test"):
        pixels = [np.full((size, size), i, np.uint8) for i in range(count)]
        for array in pixels:
            array[:, size // 2 :] *= 2
        rows = {images: [Image.fromarray(array) for array in pixels], labels: [first + i % 10 for i in range(count)]}
        table = datasets.Dataset.from_dict(rows).cast_column(images, datasets.Image())
        table.to_parquet(folder / f"{split}-00000-of-00001.parquet")


@pytest.mark.usefixtures("own_cache")
@pytest.mark.parametrize("subfolder", ["", "mnist"])
def test_mnist_from_a_folder(tmp_path, subfolder):
    write_mnist(tmp_path / "data" / subfolder)
    images = mnist(tmp_path / "data")
    assert images.train.shape == images.test.shape == (12, 1, 14, 14)
    assert images.train_labels.tolist() == [i % 10 for i in range(12)]
    mean, std = 8.25, (11 * 12 * 23 / 6 / 12 * 2.5 - 8.25**2) ** 0.5  # of i and 2 i for i below 12
    left, right = images.train[5, 0, 3, 0].item(), images.train[5, 0, 3, 13].item()
    assert [left, right] == pytest.approx([(5 - mean) / std, (10 - mean) / std], abs=1e-2)


@pytest.mark.usefixtures("own_cache")
def test_mnist_averages_two_by_two_pixels(tmp_path, monkeypatch):
    write_mnist(tmp_path, count=2, size=28)
    pooled = []
    average = F.avg_pool2d

    def record(pixels, size):
        pooled.append((tuple(pixels.shape), size))
        return average(pixels, size)

    monkeypatch.setattr(F, "avg_pool2d", record)
    mnist(tmp_path)
    assert pooled == [((2, 1, 28, 28), 2)] * 2


@pytest.mark.usefixtures("own_cache")
@pytest.mark.parametrize(
    ("layout", "message"),
    [
        ({"size": 32}, r"MNIST's images are gray and of 28x28 pixels; image 0 is an array of shape \(32, 32\)"),
        ({"images": "img"}, "MNIST has the columns image and label; found: img, label"),
        ({"images": "a", "labels": "b"}, "MNIST has the columns image and label; found: a, b"),
        ({"first": 3}, "MNIST's labels are the numbers 0 to 9; label 7 is 10"),
    ],
)
def test_data_that_is_not_mnist(tmp_path, layout, message):
    write_mnist(tmp_path, **layout)
    with pytest.raises(DataError, match=message):
        mnist(tmp_path)


@pytest.mark.usefixtures("own_cache")
def test_a_broken_file(tmp_path):
    for split in ("train", "test"):
        (tmp_path / f"{split}.parquet").write_bytes(b"not parquet")
    with pytest.raises(DataError, match=r"cannot read .*train\.parquet \(\w+: .*\); is it complete\?"):
        mnist(tmp_path)


def test_a_folder_without_mnist(tmp_path):
    for name in ("train-0.parquet", "readme.md", *(f"x{i}" for i in range(9))):
        (tmp_path / name).touch()
    expected = (
        r"no MNIST in the data folder '.*': expected train-\*\.parquet and test-\*\.parquet, in it or in its subfolder mnist, .*"
        r"; it holds readme\.md, train-0\.parquet, x0, .* and 3 more\. Without a data folder MNIST is downloaded"
    )
    with pytest.raises(DataError, match=expected):
        mnist(tmp_path)
    with pytest.raises(OptionError, match=r"there is no data folder '.*nowhere'"):
        mnist(tmp_path / "nowhere")


def test_a_hub_that_cannot_be_reached(monkeypatch):
    datasets = pytest.importorskip("datasets")

    def fail(*args, **kwargs):
        raise ConnectionError("no network")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    expected = r"cannot read ylecun/mnist from the Hugging Face hub \(ConnectionError: no network\); fetch .* --data-dir"
    with pytest.raises(DataError, match=expected):
        mnist()


@pytest.mark.usefixtures("own_cache")
def test_progress_bars_of_datasets_end_as_they_were(tmp_path):
    datasets = pytest.importorskip("datasets")
    write_mnist(tmp_path)
    before = datasets.utils.are_progress_bars_disabled()
    mnist(tmp_path)
    assert datasets.utils.are_progress_bars_disabled() == before


def data_folder() -> Path:
    """Where real data sets may lie: not everybody who runs the tests has them."""
    return Path(os.environ.get("GOODINIT_DATA_DIR", Path(__file__).parents[2] / "shared" / "data"))


@pytest.mark.usefixtures("own_cache")
@pytest.mark.skipif(not (data_folder() / "mnist").is_dir(), reason="no MNIST: name a folder that holds it with GOODINIT_DATA_DIR")
def test_the_real_mnist():
    images = mnist(data_folder() / "mnist")
    assert str(images) == "MNIST at half its resolution, 20,000 training and 10,000 test images of 14x14"
    assert images.train_labels[:5].tolist() == [5, 0, 4, 1, 9]
    assert images.test_labels.bincount().tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert images.test.std().item() == pytest.approx(1, abs=0.05)


# The steps.


def test_batches_hold_every_image_at_most_once_an_epoch():
    indices = torch.stack(list(batches(200, 6, seed=1)))
    assert indices.shape == (6, BATCH)
    for epoch in indices.view(2, 3 * BATCH):
        assert len(set(epoch.tolist())) == 3 * BATCH
    assert not torch.equal(indices[:3], indices[3:])
    assert torch.equal(indices, torch.stack(list(batches(200, 6, seed=1))))
    assert not torch.equal(indices, torch.stack(list(batches(200, 6, seed=2))))


def test_fewer_images_than_a_batch_make_one():
    assert [sorted(batch.tolist()) for batch in batches(5, 2, seed=0)] == [[0, 1, 2, 3, 4]] * 2


def test_the_network_has_no_normalization():
    model = network(4, "relu", 8)
    assert [type(m) for m in model] == [nn.Conv2d, nn.ReLU] * 4 + [nn.Flatten, nn.Linear]
    assert model(torch.zeros(2, 1, 8, 8)).shape == (2, 10)


def test_the_network_starts_as_pytorch_initializes_it():
    before = torch.get_rng_state()
    model = seeded_network(Setting(depth=2, seed=5), 8)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(5)
    for ours, theirs in zip(model.parameters(), network(2, "tanh", 8).parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_training_is_sgd_with_momentum():
    model, x, y = nn.Linear(2, 2), torch.randn(8, 2), torch.randint(2, (8,))
    weight = model.weight.detach().clone()
    velocity, expected = torch.zeros_like(weight), []
    bias, bias_velocity = model.bias.detach().clone(), torch.zeros(2)
    for _ in range(3):
        w, b = weight.clone().requires_grad_(), bias.clone().requires_grad_()
        loss = F.cross_entropy(F.linear(x, w, b), y)
        loss.backward()
        assert w.grad is not None
        assert b.grad is not None
        velocity, bias_velocity = 0.9 * velocity + w.grad, 0.9 * bias_velocity + b.grad
        weight, bias = weight - 0.1 * velocity, bias - 0.1 * bias_velocity
        expected.append(loss.item())
    assert list(train(model, x, y, [torch.arange(8)] * 3, lr=0.1)) == pytest.approx(expected)
    assert torch.allclose(model.weight, weight)


def test_training_stops_when_the_loss_is_no_longer_finite():
    x, y = 1e20 * torch.randn(8, 2), torch.randint(2, (8,))  # the second step's weights are infinite
    losses = list(train(nn.Linear(2, 2), x, y, [torch.arange(8)] * 10, lr=1e38))
    assert [math.isfinite(loss) for loss in losses] == [True, False]


def test_accuracy():
    labels = torch.arange(1200) % 3
    logits = F.one_hot(labels, 3).float()
    assert accuracy(nn.Identity(), logits, labels) == 1
    assert accuracy(nn.Identity(), logits, torch.where(torch.arange(1200) < 300, (labels + 1) % 3, labels)) == 0.75


# The whole.


def test_both_runs_start_from_the_same_network_and_see_the_same_batches():
    images, result = digits(), run_demo(TINY)
    order = list(batches(1437, 3, seed=0))
    for run in (result.default, result.lsuv):
        model = seeded_network(TINY, 8)
        if run is result.lsuv:
            lsuv_(model, images.train[:SAMPLE], generator=torch.Generator().manual_seed(0))
        assert [s.std for s in run.signals] == pytest.approx([s.std for s in measure(model, images.train[:SAMPLE])], rel=1e-4)
        losses = list(train(model, images.train, images.train_labels, order, lr=0.01))
        assert run.losses == pytest.approx(losses, rel=1e-4)
        assert run.train_accuracy == pytest.approx(accuracy(model, images.train, images.train_labels), abs=0.01)
        assert run.test_accuracy == pytest.approx(accuracy(model, images.test, images.test_labels), abs=0.01)
        assert 0 < run.seconds < 60


def test_what_a_result_holds():
    setting = dataclasses.replace(TINY, activation="relu", depth=3, lr=0.003)
    result = run_demo(setting)
    assert result.setting == setting
    assert result.images == str(digits())
    assert result.default.report is None
    assert result.lsuv.report is not None
    names = ["conv1.weight", "conv2.weight", "conv3.weight", "head.weight"]
    assert [s.name for s in result.default.signals] == [s.name for s in result.lsuv.signals] == names
    assert [r.name for r in result.lsuv.report] == names
    assert [s.std for s in result.lsuv.signals] == pytest.approx([1] * 4, abs=1e-3)
    assert max(s.std for s in result.default.signals) < 0.8
    assert (result.default.start, result.lsuv.start) == ("PyTorch's default", "LSUV")


def test_the_same_seed_gives_the_same_demo_and_another_another():
    first, again, other = run_demo(TINY), run_demo(TINY), run_demo(dataclasses.replace(TINY, seed=1))
    assert first.lsuv.losses == again.lsuv.losses
    assert first.default.losses == again.default.losses
    assert first.lsuv.losses[0] != other.lsuv.losses[0]
    assert first.default.losses[0] != other.default.losses[0]


def test_the_generator_ends_as_it_was():
    before = torch.get_rng_state()
    run_demo(TINY)
    assert torch.equal(torch.get_rng_state(), before)


def test_one_thread_runs_and_their_number_ends_as_it_was():
    counts = []

    class Count(Silence):
        def trained(self, run):
            counts.append(torch.get_num_threads())

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        run_demo(TINY, Count())
        counts.append(torch.get_num_threads())
    finally:
        torch.set_num_threads(before)
    assert counts == [1, 1, 2]


@pytest.fixture(scope="module")
def told_and_found():
    """What the story prints of thirty layers and sixty steps, and the result."""
    story, told = Story(), io.StringIO()
    with contextlib.redirect_stdout(told):
        result = run_demo(Setting(steps=60, depth=30), story)
        story.ending(result, Path("here.png"))
    return told.getvalue(), result


def test_thirty_layers_start_to_train_only_from_lsuv(told_and_found):
    _, result = told_and_found
    assert result.default.final_loss == pytest.approx(math.log(10), abs=0.05)
    assert result.lsuv.final_loss < 1.5
    assert result.lsuv.test_accuracy > result.default.test_accuracy + 0.3
    assert result.default.signals[-1].sample_std < 1e-6
    assert result.lsuv.signals[-1].sample_std > 0.5


@pytest.mark.slow
@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_the_full_demo(activation):
    result = run_demo(Setting(activation=activation))
    assert result.default.test_accuracy < 0.2
    assert result.lsuv.test_accuracy > 0.9
    assert len(result.default.losses) == len(result.lsuv.losses) == 400


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"steps": 0}, "steps must be 1 or more; got 0"),
        ({"depth": -2}, "depth must be 1 or more; got -2"),
        ({"data": "mnits"}, r"data must be digits or mnist; got 'mnits' \(did you mean 'mnist'"),
        ({"activation": "rellu"}, r"activation must be tanh or relu; got 'rellu' \(did you mean 'relu'\?\)"),
        ({"seed": -1}, r"seed must be from 0 to 2\*\*63 - 1; got -1"),
        ({"lr": 0.0}, r"lr must be a positive number; got 0\.0"),
        ({"lr": math.nan}, "lr must be a positive number; got nan"),
        ({"data_dir": Path("d")}, r"digits needs no data folder, got 'd'; a data folder is for mnist \(--data mnist\)"),
    ],
)
def test_settings_that_cannot_be_meant(setting, message):
    with pytest.raises(OptionError, match=message):
        run_demo(Setting(**setting))


@pytest.mark.parametrize(("data", "package"), [("digits", "sklearn"), ("mnist", "datasets")])
def test_missing_packages(monkeypatch, data, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=rf"{package} is not installed; .*pip install 'goodinit\[data\]'"):
        run_demo(Setting(data=data))


# What is shown.


def test_the_story_tells_what_was_measured(told_and_found):
    told, result = told_and_found
    assert "30 tanh convolutions of 16 channels and a linear layer: 77,690 parameters" in told
    assert "learning rate 0.01, momentum 0.9;\n            60 steps of 64 images" in told
    last = result.default.signals[-1]
    assert f"  head    {last.std:>8.2g}{last.sample_std:>22.2g}" in told
    assert "whatever the image, the network gives the same answer" in told.partition("2. LSUV")[0]
    assert "whatever the image" not in told.partition("2. LSUV")[2]
    assert str(result.lsuv.report) in told
    for step in (1, 15, 30, 45, 60):
        for run in (result.default, result.lsuv):
            assert f"  step {step:>4} of 60: loss {run.losses[step - 1]:.3f}\n" in told
    assert told.count(" of 60: loss ") == 10
    assert told.count("nothing was learned.") == told.count("it trains.") == 1
    for run in (result.default, result.lsuv):
        assert f"training {run.train_accuracy:.1%}, test {run.test_accuracy:.1%}: " in told
        assert f"{run.test_accuracy:.1%} from {run.start}" in told.splitlines()[-3]
    assert told.endswith("Picture: here.png\n")
    assert "\x1b" not in told
    assert max(map(len, told.splitlines())) <= 100


@pytest.mark.parametrize(
    ("test_accuracy", "verdict"), [(0.1, "nothing was learned"), (0.19, "nothing was learned"), (0.3, "it trains")]
)
def test_the_verdict_is_that_of_the_test_images(capsys, test_accuracy, verdict):
    Story().trained(Run((), None, [2.5] + 37 * [2.3] + [1.0, 2.0], 4.0, 0.9, test_accuracy))
    told = capsys.readouterr().out.splitlines()
    assert told[0] == "  Loss 2.500 at first, 1.500 at the end; guessing has ln 10 = 2.303."
    assert told[1] == f"  Accuracy after 4.0 s: training 90.0%, test {test_accuracy:.1%}: {verdict}."


def test_a_training_that_diverges_is_called_that(capsys):
    run_demo(Setting(steps=5, depth=3, activation="relu", lr=1e38), Story())
    assert "Training diverged: the loss was " in capsys.readouterr().out


def test_short_trainings_are_told_step_by_step(capsys):
    run_demo(TINY, Story())
    assert capsys.readouterr().out.count(" of 3: loss ") == 6


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_terminal_gets_progress_bars(monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    passed_on = list(Story().training(iter([3.0, 2.0]), 2))
    assert passed_on == [3.0, 2.0]
    assert "2/2" in terminal.getvalue()
    assert "loss 2.000" in terminal.getvalue()
    assert "step" not in terminal.getvalue()


def test_silence(capsys):
    run_demo(TINY, Silence())
    run_demo(TINY)
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "")


def test_the_picture_shows_the_result():
    result = run_demo(TINY)
    figure = picture(result)
    left, right = figure.axes
    drawn: dict[object, Any] = {line.get_label(): line.get_ydata() for line in (*left.get_lines(), *right.get_lines())}
    assert list(drawn["PyTorch's default, all elements"]) == [s.std for s in result.default.signals]
    assert list(drawn["LSUV, between images"]) == [s.sample_std for s in result.lsuv.signals]
    assert list(drawn["LSUV"]) == result.lsuv.losses
    assert list(drawn["PyTorch's default"]) == result.default.losses
    assert "2 tanh convolutions" in figure.get_suptitle()
