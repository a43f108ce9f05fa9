"""From options to a model and its batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from goodinit.command.arguments import DTYPES, chosen, device, keywords, seed_everything
from goodinit.command.inputs import Inputs, read_inputs
from goodinit.command.models import find_model
from goodinit.command.weight_files import load_weights
from goodinit.console import CodeError, code_error
from goodinit.errors import GoodinitError
from goodinit.options import check_model
from goodinit.progress import busy


@dataclass(frozen=True)
class Setup:
    """What is asked for, as words of the command line."""

    model: str
    data: str
    args: Sequence[str] = ()
    weights: Path | None = None
    device: str = "cpu"
    dtype: str | None = None
    seed: int = 0
    batches: int = 1
    batch_size: int | None = None
    image_size: int | None = None

    def prepare(self) -> tuple[nn.Module, Inputs]:
        """Find and make the model, then read its data.

        Raises:
            GoodinitError: of many kinds, see `find_model`, `read_inputs`, `load_weights`.
        """
        where = device(self.device)
        dtype = None if self.dtype is None else DTYPES[chosen("--dtype", self.dtype, DTYPES)]
        with busy(f"goodinit: making {self.model}"):
            make = find_model(self.model, keywords(self.args))
            seed_everything(self.seed)
            model = make()
            check_model(model)
            if self.weights is not None:
                load_weights(model, self.weights)
            model = model.to(device=where, dtype=dtype)
        inputs = read_inputs(
            self.data,
            model,
            batches=self.batches,
            batch_size=self.batch_size,
            seed=self.seed,
            image_size=self.image_size,
        )
        return model, inputs

    def source(self, inputs: Inputs) -> str:
        """Which model, on what, by which random numbers: a line for people."""
        return f"{self.model} on {inputs.text}; seed {self.seed}"


@contextmanager
def running(model: nn.Module, inputs: Inputs) -> Iterator[None]:
    """What the model raises inside is its own error, not goodinit's."""
    try:
        yield
    except GoodinitError:
        raise
    except Exception as error:
        if _of_a_model(error):
            failure = code_error(f"the forward of {type(model).__name__}", error)
            raise CodeError("\n".join([str(failure), f"the data: {inputs.text}", *inputs.hints])) from error
        raise


def _of_a_model(error: Exception) -> bool:
    """Whether it was raised inside a module's forward."""
    trace = error.__traceback__
    while trace is not None:
        code = trace.tb_frame.f_code
        if code.co_name == "_call_impl" and code.co_filename == nn.Module._call_impl.__code__.co_filename:
            return True
        trace = trace.tb_next
    return False
