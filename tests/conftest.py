"""For all tests: one thread, since on tensors this small several spend their time in waiting for each other."""

import sys

import pytest
import torch

import user_project

torch.set_num_threads(1)


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A user's project as the current folder; the modules that are imported from it are forgotten afterwards."""
    user_project.write(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", None)).startswith(str(tmp_path)):
            del sys.modules[name]
