"""Where a training stands, on disk: a killed one is taken up from there and ends with the same weights."""

from __future__ import annotations

import io
import pickle
import time
from pathlib import Path
from typing import Any

import torch

from goodinit.errors import GoodinitError
from goodinit.files import delete_unfinished, write_whole
from goodinit.paper.config import Training

State = dict[str, Any]
_FORMAT = 3


class CheckpointError(GoodinitError, RuntimeError):
    """A checkpoint is broken, or of another run."""


class Checkpoint:
    """The file of one run."""

    def __init__(self, path: Path, run: Training, *, seconds: float = 60.0) -> None:
        """``seconds``: how much work may be lost."""
        self.path = path
        self._run = run
        self._seconds = seconds
        self._saved = time.monotonic()

    @property
    def due(self) -> bool:
        """Whether the last one is old enough."""
        return time.monotonic() - self._saved >= self._seconds

    def save(self, state: State) -> None:
        """Replace the last one; if that fails it stays.

        Raises:
            SaveError: the disk is full, or the like.
        """
        buffer = io.BytesIO()
        torch.save({"format": _FORMAT, "run": self._run.plain(), "state": state}, buffer)
        write_whole(self.path, buffer.getvalue())
        self._saved = time.monotonic()

    def load(self) -> State | None:
        """Where the run stands; None if it has not begun. What a process left that was killed while it saved is deleted.

        Raises:
            CheckpointError: the file is broken, or of a run with other settings.
        """
        delete_unfinished(self.path)
        if not self.path.exists():
            return None
        try:
            content = torch.load(self.path, map_location="cpu", weights_only=True)
            if content["format"] != _FORMAT:
                raise CheckpointError(f"{str(self.path)!r} is a checkpoint of another version; {self._advice}")  # noqa: TRY301
            theirs, state = content["run"], content["state"]
        except CheckpointError:
            raise
        except pickle.UnpicklingError as error:  # whose text recommends to trust the file
            raise CheckpointError(f"the checkpoint {str(self.path)!r} is none of goodinit's; {self._advice}") from error
        except Exception as error:  # of many kinds: of zip files, of the file system
            raise CheckpointError(
                f"the checkpoint {str(self.path)!r} cannot be read ({type(error).__name__}: {error}); {self._advice}"
            ) from error
        if differences := self._run.differences(theirs):
            raise CheckpointError(
                f"the checkpoint {str(self.path)!r} is of a run with other settings: {'; '.join(differences)}; {self._advice}"
            )
        found: State = state
        return found

    def delete(self) -> None:
        """The run is over."""
        self.path.unlink(missing_ok=True)

    @property
    def _advice(self) -> str:
        return "delete it to begin anew"
