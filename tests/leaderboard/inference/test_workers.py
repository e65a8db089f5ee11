"""Work in forked processes: the same results as here, whatever happens to a process."""

import dataclasses
import os
import signal

import pytest

from quantarena.leaderboard.inference import workers
from quantarena.leaderboard.ranking import ranking, read_results


@pytest.fixture
def forks(monkeypatch):
    monkeypatch.setattr(workers, "may_fork", lambda rows: True)
    monkeypatch.setattr(workers, "cores", lambda: 2)


def test_each_keeps_the_order_and_runs_elsewhere(forks):
    found = workers.each(lambda n: (n * n, os.getpid()), range(7), 7)
    assert [square for square, _ in found] == [n * n for n in range(7)]
    assert os.getpid() not in {process for _, process in found}


def test_a_killed_process_costs_time_and_no_result(forks):
    here = os.getpid()

    def work(n):
        if os.getpid() != here and n == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return n + 1

    assert workers.each(work, range(6), 6) == [1, 2, 3, 4, 5, 6]


def test_an_error_of_the_work_is_raised(forks):
    def work(n):
        raise ValueError(f"board {n}")

    with pytest.raises(ValueError, match="board 0"):
        workers.each(work, range(3), 3)


def test_what_runs_beside_has_ended_with_the_body(forks, tmp_path):
    with workers.beside(lambda: (tmp_path / "table").write_text(str(os.getpid())), 1):
        pass
    assert (tmp_path / "table").read_text() != str(os.getpid())


def test_what_fails_beside_fails_here_too(forks, capfd):
    def work():
        raise ValueError("the disk is full")

    with pytest.raises(ValueError, match="the disk is full"), workers.beside(work, 1):
        pass
    assert "Traceback" not in capfd.readouterr().err


def test_boards_are_ranked_alike_in_any_number_of_processes(
    tmp_path, make_results, make_grid, monkeypatch
):
    grid = make_grid(images=16, bits=("w8a8", "w4a4"))
    make_results(tmp_path, plan=dataclasses.replace(grid, seeds=(0, 1)))
    rows = read_results.load_rows(tmp_path).rows
    alone = ranking.rank_rows(rows, tmp_path)
    monkeypatch.setattr(workers, "may_fork", lambda rows: True)
    monkeypatch.setattr(workers, "cores", lambda: 2)
    assert ranking.rank_rows(rows, tmp_path) == alone
    assert any(alone.ends.values())
