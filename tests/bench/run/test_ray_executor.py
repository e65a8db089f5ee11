"""One real Ray: four tasks that end well or badly, on two workers."""

import pytest

from quantarena.bench.run.executors import Setting, Task
from quantarena.bench.schema import Status
from quantarena.bench.spec import Cell

CELLS = {
    what: Cell("emoji-t2i", method, bits)
    for what, method, bits in (
        ("ok", "rtn", "w8a8"),
        ("kill", "rtn", "w4a4"),
        ("hang", "rtn", "w4a8"),
        ("raise", "q_diffusion", "w4a4"),
        ("memory", "q_diffusion", "w4a8"),
        ("again", "q_diffusion", "w8a8"),
    )
}


@pytest.mark.slow
def test_workers_die_and_hang_and_the_others_go_on(bench, capsys):
    from quantarena.bench.run.ray_executor import RayExecutor

    script = {f"{c.method}__{c.bits}": what for what, c in CELLS.items() if what != "again"}
    bench.behave(**script)
    setting = Setting(str(bench.results / "smoke"), str(bench.cache), "fake_stages")
    seen = []
    executor = RayExecutor(setting, lambda *news: seen.append(news), workers=2, timeout=6.0)
    waiting, ended, running = list(CELLS.values()), {}, 0
    try:
        while waiting or running:
            while waiting and running < executor.slots:
                executor.start(Task("cell", waiting.pop(0)))
                running += 1
            outcome = executor.wait()
            ended[outcome.task.cell] = outcome
            running -= 1
    finally:
        executor.close()
    by = {what: ended[cell] for what, cell in CELLS.items()}
    assert by["ok"].row.cell == CELLS["ok"]
    assert by["again"].row.status is Status.OK
    assert by["kill"].status is Status.FAILED
    assert "the worker process died" in by["kill"].reason
    assert "in stage quantize (3 of 10)" in by["kill"].reason
    assert by["hang"].status is Status.TIMEOUT
    assert by["hang"].reason == "stopped after 6 s in stage quantize (3 of 10)"
    assert by["raise"].reason.startswith("RuntimeError: the fake was told to raise")
    assert by["memory"].status is Status.OOM
    assert ("quantize", 3, 10) in {news[1:] for news in seen}
    workers = {line.split()[-1] for line in (bench.cache / "log.txt").read_text().splitlines()}
    assert len(workers) >= 3  # a lost worker was replaced
    assert capsys.readouterr() == ("", "")


@pytest.mark.slow
def test_a_run_over_workers(bench):
    code, out, err = bench("run", "smoke", "--executor", "ray", "--workers", "2")
    assert (code, out.split(" -> ")[0]) == (0, "5 ok, 0 skipped, 0 failed"), err
    assert "2 workers" in err
    assert "ray" not in err.lower().replace("starting 2 workers", "")
    lines = (bench.cache / "log.txt").read_text().splitlines()
    cells = {line.split()[-1] for line in lines if line.startswith("cell")}
    timing = {line.split()[-1] for line in lines if line.startswith("time")}
    assert len(cells) == 2
    # Latency is measured by a process of its own when the workers are gone.
    assert len(timing) == 1
    assert not timing & cells
