"""Parts of sharded tensors, and which models need all processes in their forward; on real processes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

import rank_jobs as jobs
from goodinit.processes.sharded import Place, added_up, communicates, has_flat_parameters, is_sharded, local, reshard, whole
from nets import mlp
from processes import FSDP_RUNS, Processes


@pytest.fixture(scope="module")
def two() -> Iterator[Processes]:
    with Processes(2) as processes:
        yield processes


def test_parts_are_written_multiplied_and_zeroed(two):
    assert two.run(jobs.parts_are_written) == [3 * 12] * 2


@pytest.mark.slow
def test_parts_on_meshes_of_two_dimensions():
    with Processes(4) as four:
        assert four.run(jobs.parts_are_written) == [7 * 12] * 4


def test_summands_and_shards(two):
    two.run(jobs.sums_and_wholes)


def test_which_models_need_all_processes(two):
    two.run(jobs.kinds_of_models)


@FSDP_RUNS
def test_whole_tensors_are_dropped(two):
    two.run(jobs.gathered_again)


@FSDP_RUNS
@pytest.mark.parametrize("kind", ["measure", "a failing call"])
def test_parts_are_put_back_after_a_forward(two, kind):
    two.run(jobs.sharded_after_a_forward, kind)


@FSDP_RUNS
def test_gradients_of_parts_are_put_back_without_the_others(two):
    assert all(all(same) for same in two.run(jobs.gradients_of_parts))


def test_what_is_not_sharded_stays_as_it_is():
    x, model = torch.randn(3), mlp(4, 4)
    assert not is_sharded(x)
    assert local(x) is x
    assert added_up(x) is x
    assert whole(x) is x
    assert not communicates(model)
    assert not has_flat_parameters(model)
    reshard(model)


def test_rows_around_a_part():
    assert Place((2, 3), (6, 1), 0).rows(6) == (0, 2)
    assert Place((3,), (1,), 8).rows(6) == (1, 1)
    assert Place((2,), (6,), 11).rows(6) == (1, 2)
    assert Place((2, 3), (6, 1), 0).size == 6
