"""The commands that the page on the command line shows, run in a folder that has what it assumes."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import user_project
from test_docs import blocks

PAGE = Path(__file__).parents[1] / "docs" / "command-line.md"
COMMANDS = [
    line
    for kind, code, long in blocks(PAGE)
    if kind == "sh" and not long
    for line in code.splitlines()
    if line.startswith("goodinit in") and "completion" not in line
]
CONFIG = {"model_type": "gpt2", "n_layer": 2, "n_embd": 16, "n_head": 2, "vocab_size": 60, "bos_token_id": 0, "eos_token_id": 0}


@pytest.fixture
def folder(project):
    rng = np.random.default_rng(0)
    np.savez("batch.npz", x=rng.standard_normal((32, 3, 9, 9)), y=rng.integers(0, 4, 32))
    for i in range(8):
        path = Path("images", "ab"[i % 2], f"{i}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (12, 12, 3), dtype=np.uint8)).save(path)
    Path("gpt").mkdir()
    Path("gpt", "config.json").write_text(json.dumps(CONFIG))
    assert user_project.call("init", "net:Net", "--data", "batch.npz", "--out", "trained.safetensors").exit_code == 0
    return project


def test_there_are_commands():
    assert len(COMMANDS) >= 9


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_does_what_it_says(folder, command):
    words = shlex.split(command)[1:]
    result = user_project.call(*words)
    assert result.exit_code == 0, result.output
    for option in ("--out", "--report"):
        if option in words:
            assert Path(words[words.index(option) + 1]).stat().st_size > 0
