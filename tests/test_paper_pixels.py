"""Preprocessing and augmentation, against plain loops over single images."""

from __future__ import annotations

import pytest
import torch

from goodinit import OptionError
from goodinit.paper.pixels import Augmentation, Preprocessing, Share, in_order, seed_of
from goodinit.paper.pixels import Batches as AnyBatches
from image_sets import images

CPU = torch.device("cpu")


def Batches(images, preprocessing, augmentation, size, seed, **more):
    return AnyBatches(images, preprocessing, augmentation, size=size, seed=seed, device=CPU, **more)


@pytest.fixture
def train():
    return images(60, (3, 8, 6))


def gcn(image):
    x = image.double()
    return ((x - x.mean()) / x.std(correction=0)).float()


def test_scaled_pixels(train):
    assert torch.allclose(Preprocessing.fitted("scaled", train, CPU)(train.pixels), train.pixels * 0.004, rtol=1e-6)


def test_global_contrast_normalization_minus_the_mean_image(train):
    preprocessing = Preprocessing.fitted("gcn", train, CPU)
    each = torch.stack([gcn(image) for image in train.pixels])
    assert torch.allclose(preprocessing.mean, each.mean(0), atol=1e-5)
    x = preprocessing(train.pixels[:7])
    assert torch.allclose(x, each[:7] - each.mean(0), atol=1e-5)
    assert x.is_contiguous(memory_format=torch.channels_last)


def test_an_image_of_one_colour_is_zero():
    pixels = torch.full((1, 3, 4, 4), 200, dtype=torch.uint8)
    assert not Preprocessing("gcn")(pixels).any()


def test_pixels_are_not_changed(train):
    before = train.pixels.clone()
    batches = Batches(train, Preprocessing.fitted("gcn", train, CPU), Augmentation(2, True), 20, seed=0)
    batches[0], list(in_order(train, Preprocessing.fitted("scaled", train, CPU), size=20, device=CPU))
    assert torch.equal(train.pixels, before)


def test_crops_and_mirror_images(train):
    """Each augmented image is one of the crops of its padded image or of their mirror images, and all of these occur."""
    preprocessing = Preprocessing.fitted("gcn", train, CPU)
    batches = Batches(train, preprocessing, Augmentation(pad=2, mirror=True), 20, seed=3)
    plain = preprocessing(train.pixels)
    padded = torch.zeros(60, 3, 12, 10)
    padded[:, :, 2:10, 2:8] = plain
    kinds = set()
    for number in range(12):
        x, labels = batches[number]
        order = batches._draws[0][number % 3 * 20 :][:20]
        assert torch.equal(labels, train.labels[order])
        for image, i in zip(x, order.tolist(), strict=True):
            for top in range(5):
                for left in range(5):
                    crop = padded[i, :, top : top + 8, left : left + 6]
                    kinds |= {(top, left, False)} if torch.equal(image, crop) else set()
                    kinds |= {(top, left, True)} if torch.equal(image, crop.flip(-1)) else set()
    assert len(kinds) == 50


def test_every_augmented_image_is_found():
    """What the test before counts on: exactly one crop fits each image."""
    train = images(4, (1, 5, 5))
    preprocessing = Preprocessing.fitted("scaled", train, CPU)
    batches = Batches(train, preprocessing, Augmentation(pad=1, mirror=True), 4, seed=0)
    padded = torch.zeros(4, 1, 7, 7)
    padded[:, :, 1:6, 1:6] = preprocessing(train.pixels)
    for epoch in range(5):
        x, _ = batches[epoch]
        order = batches._draws[0]
        for image, i in zip(x, order.tolist(), strict=True):
            crops = [padded[i, :, t : t + 5, c : c + 5] for t in range(3) for c in range(3)]
            assert sum(torch.equal(image, c) or torch.equal(image, c.flip(-1)) for c in crops) == 1


@pytest.mark.parametrize(("pad", "mirror"), [(0, False), (0, True), (2, False)])
def test_less_augmentation(train, pad, mirror):
    preprocessing = Preprocessing.fitted("scaled", train, CPU)
    x, _ = Batches(train, preprocessing, Augmentation(pad, mirror), 60, seed=1)[0]
    order = Batches(train, preprocessing, Augmentation(pad, mirror), 60, seed=1)
    order[0]
    plain = preprocessing(train.pixels[order._draws[0]])
    same = (x == plain).flatten(1).all(1)
    flipped = (x == plain.flip(-1)).flatten(1).all(1)
    if pad:
        assert 0 < same.sum() < 20  # a 25th of them
    else:
        assert bool((same | flipped).all())
        assert 15 < flipped.sum() < 45 if mirror else not flipped.any()


def test_every_image_at_most_once_an_epoch(train):
    batches = Batches(train, Preprocessing("scaled"), Augmentation(), 25, seed=0)
    for epoch in range(3):
        batches[2 * epoch]
        order = batches._draws[0][:50]
        assert len(set(order.tolist())) == 50
    a = torch.cat([batches[i][1] for i in (0, 1)])
    b = torch.cat([batches[i][1] for i in (2, 3)])
    assert not torch.equal(a, b)


def test_a_batch_follows_from_its_number_and_the_seed_alone(train):
    def batches(seed):
        return Batches(train, Preprocessing.fitted("gcn", train, CPU), Augmentation(2, True), 20, seed)

    one = batches(0)
    [one[i] for i in range(8)]
    for number in (7, 2, 5):
        for ours, fresh in zip(one[number], batches(0)[number], strict=True):
            assert torch.equal(ours, fresh)
    assert not torch.equal(batches(0)[0][0], batches(1)[0][0])


def test_a_batch_larger_than_the_set(train):
    with pytest.raises(OptionError, match="a batch of 61 images is more than the 60 training images"):
        Batches(train, Preprocessing("scaled"), Augmentation(), 61, seed=0)


def test_all_images_in_order(train):
    parts = list(in_order(train, Preprocessing("scaled"), size=25, device=CPU))
    assert [len(labels) for _, labels in parts] == [25, 25, 10]
    assert torch.equal(torch.cat([labels for _, labels in parts]), train.labels)


def test_seeds_for_every_purpose():
    seeds = {
        seed_of(seed, *purpose) for seed in range(10) for purpose in (("a",), ("b",), ("epoch", 1), ("epoch", 2), ("epoch1",))
    }
    assert len(seeds) == 50
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert seed_of(3, "x") == seed_of(3, "x")


def test_standardized_channels(train):
    preprocessing = Preprocessing.fitted("standardized", train, CPU)
    x = preprocessing(train.pixels)
    assert x.mean((0, 2, 3)).tolist() == pytest.approx([0, 0, 0], abs=1e-5)
    assert x.std((0, 2, 3), correction=0).tolist() == pytest.approx([1, 1, 1], abs=1e-4)


def test_crops_smaller_than_the_image(train):
    preprocessing = Preprocessing.fitted("scaled", train, CPU)
    batches = Batches(train, preprocessing, Augmentation(crop=5), 60, seed=0)
    plain, places = preprocessing(train.pixels), set()
    for epoch in range(3):
        x, _ = batches[epoch]
        assert x.shape == (60, 3, 5, 5)
        for image, i in zip(x, batches._draws[0].tolist(), strict=True):
            fits = [(t, c) for t in range(4) for c in range(2) if torch.equal(image, plain[i, :, t : t + 5, c : c + 5])]
            assert len(fits) == 1
            places |= set(fits)
    assert len(places) == 8
    tested = torch.cat([x for x, _ in in_order(train, preprocessing, size=25, device=CPU, crop=5)])
    assert torch.equal(tested, plain[:, :, 1:6, 0:5])  # the middle


def test_crops_larger_than_the_image(train):
    """Of the padded image in training; in tests the image is in the middle of zeros."""
    preprocessing = Preprocessing.fitted("scaled", train, CPU)
    (x, _), *_ = in_order(train, preprocessing, size=len(train), device=CPU, crop=10)
    height, width = train.pixels.shape[2:]
    top, left = (1 + 10 - height) // 2, (1 + 10 - width) // 2
    assert x.shape[2:] == (10, 10)
    assert torch.equal(x[:, :, top : top + height, left : left + width], preprocessing(train.pixels))
    assert x.count_nonzero() == preprocessing(train.pixels).count_nonzero()


def test_processes_share_every_batch(train):
    preprocessing = Preprocessing.fitted("gcn", train, CPU)
    whole = Batches(train, preprocessing, Augmentation(2, True), 20, seed=0)
    parts = [Batches(train, preprocessing, Augmentation(2, True), 20, seed=0, share=Share(rank, 4)) for rank in range(4)]
    for number in (0, 1, 4):
        for ours, theirs in zip(zip(*(part[number] for part in parts), strict=True), whole[number], strict=True):
            assert torch.equal(torch.cat(ours), theirs)
    tested = [y for rank in range(2) for _, y in in_order(train, preprocessing, size=7, device=CPU, share=Share(rank, 2))]
    assert sorted(torch.cat(tested).tolist()) == sorted(train.labels.tolist())


def test_centred_pixels_are_caffe_s(train):
    x = Preprocessing.fitted("centred", train, CPU)(train.pixels)
    expected = train.pixels.double() - train.pixels.double().mean((0, 2, 3), keepdim=True)
    assert torch.allclose(x.double(), expected, atol=1e-3)


def test_dark_images_keep_their_contrast():
    """Only an image whose pixels differ by less than one in 255 is not brought to std 1."""
    pixels = torch.tensor([10, 14], dtype=torch.uint8).repeat(1, 3, 4, 2)
    assert Preprocessing("gcn")(pixels).std(correction=0).item() == pytest.approx(1)
