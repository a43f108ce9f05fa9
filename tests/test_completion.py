"""What shells are offered, asked as the script that --install-completion installs asks; without torch, which takes seconds."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from goodinit.command import arguments, objective
from goodinit.completion import one_of
from goodinit.options import VARIANCES
from goodinit.paper.catalogue import BUDGETS, names

# What is on the line, and what is offered for its last word, which may be empty.
LINES = {
    "goodinit in": ["init", "inspect"],
    "goodinit init --ta": ["--target-std", "--target-mean"],
    "goodinit init net:Net --pre-init ": list(arguments.PRE_INITS),
    "goodinit init --pre-init st": ["structured"],
    "goodinit init --variance ": list(VARIANCES),
    "goodinit init --device ": ["cpu", "cuda", "mps", "auto"],
    "goodinit init --dtype ": list(arguments.DTYPES),
    "goodinit inspect --device c": ["cpu", "cuda"],
    "goodinit inspect net:Net --data x.npz --loss ": [*objective._NAMED, "output"],
    "goodinit inspect --loss net": [],  # a function of one's own
    "goodinit reproduce ": ["list", "report", "run", *names(), "all"],
    "goodinit reproduce l": ["list"],
    "goodinit reproduce table": [name for name in names() if name.startswith("table")],
    "goodinit reproduce run walk": ["walk"],
    "goodinit reproduce mine": [],  # a file
    "goodinit reproduce table2 --budget ": list(BUDGETS),
    "goodinit reproduce table3 --seeds 2 --budget sh": ["short", "short-fitnet4"],
    "goodinit reproduce run --budget ": list(BUDGETS),
    "goodinit reproduce all --budget sm": ["smoke"],
    "goodinit reproduce nosuch --budget f": ["full"],
    "goodinit reproduce mine.toml --budget n": ["night"],
    "goodinit reproduce table3 --device ": ["cpu", "cuda", "auto"],
    "goodinit reproduce table3 --precision b": ["bfloat16"],
    "goodinit reproduce table3 --launcher ": ["local", "ray"],
    "goodinit demo --data ": ["digits", "mnist"],
    "goodinit demo --activation r": ["relu"],
}
# In one process, for starting one takes half a second.
ASK = """
import contextlib, io, json, os, sys
from goodinit.__main__ import main

sys.argv, sys.modules["torch"] = ["goodinit"], None
answers = {}
for words in json.load(sys.stdin):
    os.environ.update(COMP_WORDS=words, COMP_CWORD=str(len(words.split(" ")) - 1))
    with contextlib.redirect_stdout(io.StringIO()) as answer, contextlib.suppress(SystemExit):
        main()
    answers[words] = answer.getvalue().split()
json.dump(answers, sys.stdout)
"""


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("project")
    (folder / "mine.toml").write_text("[budgets.night]\nnote = 'hours'\n")
    done = subprocess.run(
        [sys.executable, "-c", ASK],
        input=json.dumps(list(LINES)), capture_output=True, text=True, timeout=120, check=False, cwd=folder,
        env={**os.environ, "_GOODINIT_COMPLETE": "complete_bash"},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)


@pytest.mark.parametrize("words", LINES)
def test_values_are_offered(answers, words):
    assert answers[words] == LINES[words]


def test_one_of():
    assert one_of("a", "b")() == ["a", "b"]
