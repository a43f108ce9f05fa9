"""Several processes that initialize one model together: as one with all the data, whatever its form; and what goes wrong."""

from __future__ import annotations

import re
import subprocess
import sys
from functools import partial

import pytest
import torch

import rank_jobs as jobs
from goodinit import lsuv_
from goodinit.processes.ranks import Ranks
from nets import mlp
from processes import FSDP, FSDP_RUNS, Failure, Processes

FORMS = ["plain", "ddp", FSDP, "tp"]
WITH_OWN_DATA = FORMS[:3]
ALL_MODELS = list(jobs.TENSOR_PARALLEL)
QUICK_MODELS = ["layer_scale", "shared", "transformer_encoder"]
EXACT = 1e-5


# The weights that one process would have from all the data.


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("size", ["two", "four"])
def test_weights_are_those_of_one_process(form, size, request):
    for differences in request.getfixturevalue(size).run(jobs.as_one, QUICK_MODELS, form):
        assert max(differences.values()) < EXACT, differences


@FSDP_RUNS
def test_parts_and_computed_weights_of_fsdp(group):
    names = ["sliced", "attention", "spectral", "weight_norm", "spectral_norm", "lstm"]
    for differences in group.run(jobs.as_one, names, "fsdp"):
        assert max(differences.values()) < EXACT, differences
    assert max(group.run(jobs.odd_weights)) < EXACT


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_weights_of_many_models_are_those_of_one_process(form, group):
    pytest.importorskip("transformers")
    for differences in group.run(jobs.as_one, ALL_MODELS, form):
        assert len(differences) >= 10
        assert max(differences.values()) < EXACT, differences


@pytest.mark.slow
@pytest.mark.parametrize("form", WITH_OWN_DATA)
def test_weights_of_awkward_models_are_those_of_one_process(form, group):
    from zoo import awkward

    names = {entry.name for entry in awkward.ENTRIES}
    names -= {"in_place", "frozen", "channels_last", "buffering"}  # statistics of a process's batch, by design
    names -= {"grouped_experts", "expanded_weight", "repeated_weight"}  # know the batch's size
    names -= {"graph", "sparse_features"}  # a sparse batch cannot be divided
    if form != "plain":
        names -= {"convolutions"}  # DistributedDataParallel and FSDP2 refuse parameters without a shape
    if form == "fsdp":  # which refuses scalars, and several dtypes at once; functional_call gives a model its shards
        names -= {"weight_norm_convolution", "dead_branch", "complex", "functional_call"}
    for differences in group.run(jobs.as_one, sorted(names), form):
        assert max(differences.values()) < EXACT, differences


def test_not_all_weights_are_alike(two):
    """The tests before could fail."""
    weights = two.run(jobs.alone)
    assert jobs.largest_difference(*weights) > 0.01


@pytest.mark.parametrize("form", FORMS)
def test_biases_that_are_kept(form, group):
    assert max(group.run(jobs.kept_biases, form)) < EXACT


def test_sequence_parallel(group):
    assert max(group.run(jobs.sequence_parallel)) < EXACT


@pytest.mark.slow
@FSDP_RUNS
def test_tensor_parallel_inside_of_fsdp(four):
    assert max(four.run(jobs.two_dimensional)) < EXACT


@FSDP_RUNS
def test_mixed_precision_keeps_the_shards_digits(group):
    for error, more_digits in group.run(jobs.mixed_precision):
        assert error < 1e-5
        assert more_digits


def test_lazy_parameters(group):
    assert max(group.run(jobs.lazy)) < EXACT


@FSDP_RUNS
def test_whole_tensors_that_fsdp_kept_from_a_forward_before(group):
    assert max(group.run(jobs.kept_gathered)) < EXACT


# The same draw.


@pytest.mark.parametrize("form", WITH_OWN_DATA)
@pytest.mark.parametrize("generators", [None, [1, 1, 1, 1]])
def test_the_same_seed_gives_the_same_draw(form, generators, group):
    for difference, same_state in group.run(jobs.draws, form, [5, 5, 5, 5], generators):
        assert difference < EXACT
        assert same_state


@pytest.mark.parametrize("form", WITH_OWN_DATA)
@pytest.mark.parametrize("generators", [None, [1, 2, 3, 4]])
def test_of_different_seeds_the_first_process_s_counts(form, generators, group):
    assert max(difference for difference, _ in group.run(jobs.draws, form, [5, 6, 7, 8], generators)) < EXACT


@pytest.mark.parametrize("form", WITH_OWN_DATA)
@pytest.mark.parametrize("scheme", ["he", "orthonormal", "default"])
def test_so_it_does_for_schemes_that_measure_nothing(form, scheme, group):
    assert max(difference for difference, _ in group.run(jobs.draws, form, [5, 6, 7, 8], None, scheme)) < EXACT


# Experts, and uneven data.


@pytest.mark.parametrize("careless", [False, True])
@pytest.mark.parametrize("options", [{}, {"in_order": True}, {"stacked": True}, {"keep": True}])
@pytest.mark.parametrize("form", WITH_OWN_DATA)
def test_experts_that_some_processes_reach(form, options, careless, group):
    assert max(group.run(jobs.experts, form, careless, options)) < EXACT


@FSDP_RUNS
@pytest.mark.parametrize("careless", [False, True])
def test_experts_in_parts_that_fsdp_gathers_one_by_one(careless, group):
    assert max(group.run(jobs.experts_in_units, careless)) < EXACT


@pytest.mark.parametrize("careless", [False, True])
def test_experts_that_are_reached_in_some_batches(careless, group):
    assert max(group.run(jobs.many_batches_of_experts, careless)) < EXACT


def test_a_pass_that_is_done_again_starts_from_the_same_state(group):
    assert max(group.run(jobs.done_again)) < EXACT


def test_a_computed_weight_that_not_all_use(two):
    messages = [outcome.text for outcome in two.outcomes(jobs.computed_on_one)]
    assert messages[0].startswith(
        "'b.parametrizations.weight.original1' is computed from parameters, and not all processes use it"
    )
    assert messages[1].startswith("process 0 failed: ModelError: 'b.parametrizations")


@pytest.mark.parametrize("form", WITH_OWN_DATA)
@pytest.mark.parametrize("first", [22, 30, 0])
def test_uneven_and_empty_batches(form, first, group):
    cuts = [first] if group.size == 2 else [first, first, first]
    assert max(group.run(jobs.uneven, form, cuts)) < EXACT


@pytest.mark.parametrize("options", [{}, {"pre_init": None, "tol": 1e-5}])
@pytest.mark.parametrize("form", WITH_OWN_DATA)
def test_loaders_of_different_length(form, options, group):
    counts = [5, 3, 4, 5][: group.size]
    for difference, report, warned in group.run(jobs.many_batches, form, counts, options):
        assert difference < EXACT
        in_step = form == "fsdp"  # whose forward needs all processes
        assert report.batches == (3 if in_step else 5)
        assert report.sweeps <= 3
        had = "3" if in_step else "3 to 5 in the processes"
        assert warned == [f"lsuv_: batches=5 was asked for, the data had {had}"]
        assert all(record.spread > 0 for record in report)


@pytest.mark.parametrize("options", [{}, {"pre_init": None, "tol": 1e-5}])
def test_many_batches_in_tensor_parallelism(options, group):
    for difference, report, warned in group.run(jobs.many_batches, "tp", [5] * group.size, options):
        assert difference < EXACT
        assert (report.batches, warned) == (5, [])


# What is sent.


@pytest.mark.parametrize("form", [*FORMS, pytest.param("fsdp from meta", marks=FSDP_RUNS), "tp from meta"])
@pytest.mark.parametrize("depth", [2, 6])
def test_one_small_message_an_operator(form, depth, two):
    form, _, meta = form.partition(" from ")
    gathered_modules = depth if form == "fsdp" else 0  # before each of which the processes wait for each other
    for found in two.run(partial(jobs.communication, meta=bool(meta)), form, depth, 1):
        own = found["inside"].pop(("allreduce", 64))
        assert own == depth + gathered_modules
        assert found["inside"] == found["forward"]  # the model's own communication is that of a plain forward
        # Apart from operators: four words on whether all go on, and the models' digests.
        assert sum(found["outside"].values()) <= 7
        assert max(size for _, size in found["outside"]) < 250


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("depth", [2, 6])
def test_one_small_message_an_operator_and_sweep(form, depth, two):
    gathered_modules = depth if form == "fsdp" else 0
    for found in two.run(jobs.communication, form, depth, 3):
        corrections = found["passes"] - 1 - 3 * found["sweeps"]
        assert found["sweeps"] > 1
        assert found["inside"].pop(("allreduce", 64)) == (depth + gathered_modules) * (1 + corrections)
        assert found["inside"] == {key: count * found["passes"] for key, count in found["forward"].items()}
        # What was measured on all batches, of all operators at once.
        assert found["outside"].pop(("allreduce", 64 * depth)) == found["sweeps"]


def test_weights_are_drawn_while_the_other_process_answers(two):
    assert two.run(jobs.drawn_ahead) == [3, 3]  # all but the first


def test_what_is_sent_besides_does_not_grow_with_the_depth(two):
    shallow, deep = (two.run(jobs.communication, "plain", depth, 3)[0] for depth in (3, 9))
    rows = [("allreduce", 64 * depth) for depth in (3, 9)]
    assert shallow["sweeps"] == deep["sweeps"]
    assert {k: v for k, v in shallow["outside"].items() if k not in rows} == {
        k: v for k, v in deep["outside"].items() if k not in rows
    }


# What goes wrong.

CAT = "ValueError: the cat sat on the keyboard"
NAN = "NonFiniteError: NaN or infinity in the output of linear with the weight '"


def assert_all_fail(outcomes, who, own, told):
    """Process ``who`` with its own exception, the others with its message; all is as before, and all can go on."""
    for rank, found in enumerate(outcomes):
        assert not isinstance(found, Failure), found
        if rank == who:
            assert found["kind"] == own
        else:
            assert found["kind"] == "RankError"
            assert found["text"].startswith(f"process {who} failed: {told}")
            assert found["text"].endswith("All weights are as before")
        assert found["same"]
        assert found["random"]
        assert found["afterwards"]


@pytest.mark.parametrize(
    ("how", "own", "told"),
    [
        ("raise", "ValueError", CAT),
        ("nan", "NonFiniteError", NAN),
        ("interrupt", "KeyboardInterrupt", "KeyboardInterrupt"),
        ("data", "DataError", "DataError: list of length 0 is empty: it yielded no batch"),
        ("option", "OptionError", "OptionError: skip: the pattern 'nothing' matches no parameter"),
        ("model", "ModelError", "ModelError: model must be a torch.nn.Module; got NoneType"),
    ],
)
@pytest.mark.parametrize("form", WITH_OWN_DATA)
def test_a_process_that_fails_makes_all_fail(form, how, own, told, group):
    assert_all_fail(group.outcomes(jobs.failure, form, how, 1, {}), 1, own, told)


@pytest.mark.parametrize(("how", "own", "told"), [("raise", "ValueError", CAT), ("nan", "NonFiniteError", NAN)])
@pytest.mark.parametrize("form", WITH_OWN_DATA)
def test_a_process_that_fails_as_on_a_gpu(form, how, own, told, group):
    assert_all_fail(group.outcomes(jobs.failure, form, how, 0, {"careless": True}), 0, own, told)


@pytest.mark.parametrize("forward", [3, 5])  # the second of three batches is measured; the first pass after that
@pytest.mark.parametrize(("how", "own", "told"), [("raise", "ValueError", CAT), ("nan", "NonFiniteError", NAN)])
def test_a_process_that_fails_in_a_sweep(how, own, told, forward, group):
    options = {"batches": 3, "when": forward}
    assert_all_fail(group.outcomes(jobs.failure, "plain", how, 1, options), 1, own, told)


@pytest.mark.parametrize(("form", "options"), [("tp", {}), pytest.param("fsdp", {"batches": 3, "when": 3}, marks=FSDP_RUNS)])
def test_a_failure_where_others_wait_inside_of_the_model(form, options):
    """They learn of it when the process that failed ends, as under torchrun it does."""
    with Processes(2, timeout=20) as processes:
        found, ended = processes.outcomes(jobs.failure, form, "exit", 1, options)
    assert ended.kind == "died"
    assert found["kind"] == "RankError"
    told = r"(\ngoodinit\.lsuv_: [^\n]*)?"  # Python 3.10 has it in the message
    assert re.match(rf"process 1 failed: {re.escape(CAT)}{told} \(", found["text"])
    assert found["same"]


@pytest.mark.parametrize("what", ["forward", "data"])
def test_a_failure_where_others_wait_for_what_is_not_ours(what, tmp_path):
    """In the model's own communication, or in a loader that hands out batches."""
    told = tmp_path / "told"
    with Processes(2, timeout=60) as processes:
        outcomes = processes.outcomes(jobs.failing_where_others_wait, what, str(told))
    ended, found = reversed(outcomes) if what == "forward" else outcomes
    assert ended.kind == "died"
    assert told.read_text().startswith(CAT)
    assert found.startswith(f"RankError: process {1 if what == 'forward' else 0} failed: {CAT}")


def test_nan_in_tensor_parallelism(two):
    assert_all_fail(two.outcomes(jobs.failure, "tp", "nan", 1, {}), 1, "NonFiniteError", NAN)


@pytest.mark.parametrize("form", ["plain", FSDP, "tp"])
@pytest.mark.parametrize("options", [{}, {"batches": 3, "when": 3}])
def test_a_killed_process(form, options):
    with Processes(2, timeout=20) as processes:
        found, ended = processes.outcomes(jobs.failure, form, "kill", 1, options)
    assert ended.kind == "died"
    assert found["kind"] == "RankError"
    assert found["text"].startswith("process 0 no longer reaches process 1, which died (")
    assert found["text"].endswith("All weights here are as before")
    assert found["same"]
    assert found["seconds"] < 15


def test_a_killed_process_that_kept_the_store():
    with Processes(2, timeout=20, first_keeps_store=True) as processes:
        ended, found = processes.outcomes(jobs.failure, "plain", "kill", 0, {})
    assert ended.kind == "died"
    assert found["text"].startswith("process 1 no longer reaches process 0, or the launcher (")
    assert found["same"]


@pytest.mark.slow
@pytest.mark.parametrize("form", ["plain", FSDP])
def test_of_four_processes_one_is_killed(form):
    with Processes(4, timeout=5) as processes:
        outcomes = processes.outcomes(jobs.failure, form, "kill", 2, {})
    assert outcomes.pop(2).kind == "died"
    for found in outcomes:
        assert "no longer reaches process 2, which died" in found["text"]
        assert found["same"]
        assert found["seconds"] < 12


@pytest.mark.slow
@pytest.mark.parametrize("form", ["plain", FSDP])
def test_a_process_that_is_stuck(form):
    """No longer than the process group's time-out, and the few seconds in which it could say that it is there."""
    with Processes(2, timeout=4) as processes:
        found, _ = processes.outcomes(jobs.failure, form, "sleep", 1, {})
    assert found["text"].startswith("process 0 no longer reaches process 1, which died or waits for something else (")
    assert found["same"]
    assert 4 <= found["seconds"] < 15


# Bad input.


MODELS_DIFFER = "the processes have different models: process 0 has "
DIFFERENCES = {
    "shape": MODELS_DIFFER
    + "'0.weight' of shape (8, 6), torch.float32, process 1 '0.weight' of shape (9, 6), torch.float32; build the "
    "same model everywhere, or initialize each by itself with distributed=False",
    "name": MODELS_DIFFER + "'2.weight' of shape (4, 8), torch.float32, process 1 '3.weight' of shape",
    "number": MODELS_DIFFER + "4 parameters, process 1 6",
    "dtype": MODELS_DIFFER + "'0.weight' of shape (8, 6), torch.float32, process 1 '0.weight' of shape (8, 6), torch.float64",
    "value": "the parameter '2.weight' holds other numbers in process 1 than in process 0; wrap the model in "
    "DistributedDataParallel first, or call torch.manual_seed alike in all processes before building it",
    "option": "the processes were given different options: process 0 target_std=1.0,",
    "function": "skip=(), batches=1, tol=0.01, mode='train', process 1 target_std=1.0, pre_init=xavier_normal_",
}


@pytest.mark.parametrize(("what", "message"), DIFFERENCES.items())
def test_processes_that_differ(what, message, two):
    for found in two.outcomes(jobs.different, what):
        assert found.kind == "RankError"
        assert message in found.text


def test_processes_that_do_not_differ(two):
    """The same function is at another address in every process."""
    two.run(jobs.different, "same function")


def test_flat_parameters_are_refused(two):
    for found in two.outcomes(jobs.with_flat_parameters):
        assert found.kind == "ModelError"
        assert found.text.startswith("FullyShardedDataParallel keeps weights as pieces of flat parameters")


def test_a_backend_without_the_device():
    with Processes(2, backend="cuda:gloo", timeout=20) as processes:
        for found in processes.outcomes(jobs.backend_without_device):
            assert found.kind == "OptionError"
            assert found.text.startswith(
                "the process group's backend 'cuda:gloo' cannot add up tensors on the model's device 'cpu'; use"
            )


def test_each_by_itself(two):
    assert two.run(jobs.alone_in_a_group) == [True, True]


def test_without_a_process_group():
    model, x = mlp(6, 8, 4), torch.randn(20, 6)
    ranks = Ranks(model)
    assert (ranks.size, ranks.rank, ranks.gathered("a"), ranks.in_lockstep) == (1, 0, ["a"], False)
    assert lsuv_(model, x, distributed=True).ok


@pytest.mark.slow
def test_with_torchrun(tmp_path):
    (tmp_path / "script.py").write_text(
        "import torch, goodinit\n"
        "from torch import nn\n"
        "torch.distributed.init_process_group('gloo')\n"
        "rank = torch.distributed.get_rank()\n"
        "torch.manual_seed(0)\n"
        "model = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 4))\n"
        "x = torch.randn(64, 8)\n"
        "report = goodinit.lsuv_(nn.parallel.DistributedDataParallel(model), x[rank::2])\n"
        "std = model(x).std(correction=0).item()\n"
        "print(f'process {rank}: {report.ok}, {std:.4f}\\n', end='')\n"  # written at once, or lines of both get mixed
    )
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        str(tmp_path / "script.py"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == 0, done.stderr
    assert {"process 0: True, 1.0000", "process 1: True, 1.0000"} <= set(done.stdout.splitlines())
