"""Work in outer threads: the caller's settings of torch stay, results are in order, errors come through."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from torch_fidelity_lsh import lsh_knn_precision_recall, lsh_precision_recall
from torch_fidelity_lsh.metric.parallel import mapped, outer_threads


@pytest.fixture(autouse=True)
def three_threads(monkeypatch):
    monkeypatch.setattr("torch_fidelity_lsh.metric.parallel.FEW_ROWS", 0)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def of_a_new_thread():
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(torch.get_num_threads).result()


def test_pieces_run_in_other_threads_with_one_thread_each():
    meeting = threading.Barrier(3, timeout=20)

    def piece(number):
        meeting.wait()  # Passed only if three run at a time.
        return number, torch.get_num_threads(), threading.get_ident()

    with outer_threads():
        found = mapped(piece, range(3))
    assert [number for number, _, _ in found] == [0, 1, 2]
    assert {threads for _, threads, _ in found} == {1}
    assert len({ident for _, _, ident in found}) == 3


def test_pieces_of_pieces_are_mapped_too():
    with outer_threads():
        found = mapped(lambda i: mapped(lambda j: (i, j), range(5)), range(7))
    assert found == [[(i, j) for j in range(5)] for i in range(7)]


@pytest.mark.parametrize("fails", [False, True])
def test_the_callers_number_of_threads_stays(fails):
    sides = np.random.default_rng(0).standard_normal((2, 300, 20))
    if fails:
        sides[0, 5, 5] = np.nan
        with pytest.raises(ValueError, match="first in row 5"):
            lsh_precision_recall(*sides)
    else:
        lsh_precision_recall(*sides)
    assert torch.get_num_threads() == 3
    assert of_a_new_thread() == 3


def test_what_others_set_for_new_threads_stays():
    with ThreadPoolExecutor(1) as other:
        other.submit(torch.set_num_threads, 2).result()
        with outer_threads():
            assert of_a_new_thread() == 2
            assert other.submit(torch.get_num_threads).result() == 2
        assert (torch.get_num_threads(), of_a_new_thread()) == (3, 2)


def test_an_error_in_a_piece_is_raised_and_the_rest_is_left():
    begun = []

    def piece(number):
        begun.append(number)
        raise KeyError(number)

    with pytest.raises(KeyError), outer_threads():
        mapped(lambda number: mapped(piece, [number, number]), range(100))
    assert len(begun) <= 6
    assert torch.get_num_threads() == 3


def test_callers_in_several_threads_get_what_one_gets():
    rng = np.random.default_rng(0)
    sides = [rng.standard_normal((2, 400, 200)) for _ in range(4)]
    expected = [lsh_knn_precision_recall(*pair).to_dict() for pair in sides]

    def call(pair):
        torch.get_num_threads()  # The first time, torch takes over what any thread set last.
        torch.set_num_threads(2)
        return lsh_knn_precision_recall(*pair).to_dict(), torch.get_num_threads()

    with ThreadPoolExecutor(4) as callers:
        found = list(callers.map(call, sides))
    assert found == [(numbers, 2) for numbers in expected]
