"""Where samples for a model come from: files of tensors, folders of images, sets of the hub, random numbers."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from goodinit.command.samples import Samples, Wanted
from goodinit.errors import OptionError, did_you_mean


def read_samples(source: str, wanted: Wanted, model: nn.Module) -> Samples:
    """Read or draw samples.

    Args:
        source: a file, a folder of images, ``"hub:name"``, ``"noise:3x224x224"``, ``"tokens:128"``.
        wanted: how many, which, of what size.
        model: whose vocabulary the numbers of tokens are drawn from.

    Raises:
        OptionError: there is no such thing, or it is of a kind that is not read.
        DataError: it cannot be read, or is of no use.
        MissingExtraError: what reads it is not installed.
    """
    if not source:
        raise OptionError("--data: expected a file, a folder, hub:NAME, noise:3x224x224 or tokens:128; got nothing")
    kind, colon, name = source.partition(":")
    sized = (colon and kind in ("noise", "tokens")) or Path(source).is_file()
    if sized and wanted.image_size is not None:
        raise OptionError(f"--image-size is for images in a folder or of the hub; the samples of {source} have a size")
    if colon and kind in ("noise", "tokens"):
        return (_noise if kind == "noise" else _tokens)(name, wanted, model)
    from goodinit.command.image_samples import folder_samples, hub_samples  # noqa: PLC0415 - files of tensors do without
    from goodinit.command.tensor_files import read_tensors  # noqa: PLC0415

    if colon and kind == "hub":
        return hub_samples(name, wanted)
    path = Path(source)
    if path.is_dir():
        return folder_samples(path, wanted)
    if not path.exists():
        raise OptionError(_not_there(path))
    return read_tensors(path)


def _not_there(path: Path) -> str:
    siblings = [file.name for file in path.parent.iterdir()] if path.parent.is_dir() else []
    near = did_you_mean(path.name, siblings, cutoff=0.75)  # for an ending that they share is no resemblance
    return (
        f"there is no file or folder {str(path)!r}{near}; other than these, --data takes hub:NAME, noise:3x224x224 and tokens:128"
    )


def _noise(shape: str, wanted: Wanted, model: nn.Module) -> Samples:  # noqa: ARG001 - the same for every model
    sizes = _sizes("noise", shape)
    x = torch.randn(wanted.rows, *sizes, generator=torch.Generator().manual_seed(wanted.seed))
    text = f"{wanted.rows} samples of noise of unit variance, {'x'.join(map(str, sizes))}; no real data"
    return Samples({"noise": x}, text, ordered=True)


def _tokens(shape: str, wanted: Wanted, model: nn.Module) -> Samples:
    (length, *more) = _sizes("tokens", shape)
    if more:
        raise OptionError(f"--data tokens:{shape}: expected the length of a sequence, such as tokens:128")
    found = next(((name, module) for name, module in model.named_modules() if isinstance(module, nn.Embedding)), None)
    if found is None:
        raise OptionError(f"--data tokens:{shape}: {type(model).__name__} has no nn.Embedding to know its tokens from")
    name, embedding = _input_embedding(model) or found
    known = embedding.num_embeddings
    ids = torch.randint(known, (wanted.rows, length), generator=torch.Generator().manual_seed(wanted.seed))
    whose = name or type(embedding).__name__
    text = f"{wanted.rows} sequences of {length} of the {known:,} tokens of {whose}, drawn at random; no real data"
    return Samples({"input_ids": ids}, text, ordered=True)


def _input_embedding(model: nn.Module) -> tuple[str, nn.Embedding] | None:
    """That of a model of transformers, which knows it; of others the first one is taken, in the order of registration."""
    known = getattr(model, "get_input_embeddings", None)
    embedding = known() if callable(known) else None
    return next(((name, module) for name, module in model.named_modules() if module is embedding), None) if embedding else None


def _sizes(kind: str, text: str) -> tuple[int, ...]:
    sizes = text.replace(",", "x").split("x")
    if not all(size.isdecimal() and int(size) for size in sizes):
        example = "noise:3x224x224" if kind == "noise" else "tokens:128"
        raise OptionError(f"--data {f'{kind}:{text}'.rstrip(':')}: expected the shape of one sample, such as {example}")
    return tuple(map(int, sizes))
