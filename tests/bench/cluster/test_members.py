"""Nodes that join, answer, refuse and leave, as a run sees them; what Ray answers is scripted."""

from types import SimpleNamespace

import pytest

from quantarena.bench.cluster import members
from quantarena.bench.cluster.members import Members, Pool
from quantarena.bench.cluster.nodes import Need
from quantarena.bench.errors import RunStopped, UserError
from quantarena.bench.target import DEFAULT_TARGET, Target

GB = 10**9
EPYC = {"cpu": "EPYC", "cores": 4, "gpu": None}
XEON = {"cpu": "Xeon", "cores": 4, "gpu": None}
CARD = {"cpu": "EPYC", "cores": 4, "gpu": {"name": "card", "memory": "16384 MiB"}}


class Ray:
    """The parts of Ray that are asked: a list of nodes, and the answer of each."""

    def __init__(self):
        self.listing, self.answers, self.put = [], {}, lambda value: value

    def join(self, name, machine=EPYC, *, gpus=0.0, refused="", address=None, nice=0):
        self.listing.append(
            {
                "NodeID": name,
                "Alive": True,
                "NodeManagerAddress": address or name,
                "NodeManagerHostname": f"host-{name}",
                "Resources": {"CPU": 4.0, "GPU": gpus, "memory": 16.0 * GB},
            }
        )
        facts = {"machine": machine, "refused": refused, "kernels": "", "nice": nice}
        self.answers[name] = facts | {"oom_kills": 0}

    def leave(self, name):
        self.listing = [entry for entry in self.listing if entry["NodeID"] != name]

    def nodes(self):
        return self.listing

    def get_runtime_context(self):
        return SimpleNamespace(get_node_id=lambda: "home")

    def remote(self, **_):
        def place(function):
            def options(scheduling_strategy):
                node = scheduling_strategy
                return SimpleNamespace(remote=lambda *given: (function.__name__, node))

            return SimpleNamespace(options=options)

        return place

    def get(self, reference, timeout=None):
        what, node = reference
        answer = self.answers[node]
        if isinstance(answer, Exception):
            raise answer
        return answer["oom_kills"] if what == "count_oom_kills" else dict(answer)


@pytest.fixture
def ray(monkeypatch):
    monkeypatch.setattr(Members, "at", lambda self, node: node.id)
    monkeypatch.setattr(members, "LOOK_SECONDS", 0.0)
    made = Ray()
    made.join("home")
    return made


def met(ray, said=None, answer=True, **pool):
    """The members, after all nodes that are there have answered."""
    asked = Pool("auto", 99, pool.pop("target", DEFAULT_TARGET), **pool)
    made = Members(ray, asked, None, (said if said is not None else []).append)
    made.look()
    for member in list(made.asked.values()) if answer else ():
        made.answered(member)
    return made


def test_workers_reserve_the_estimated_memory(ray):
    assert met(ray, memory=6 * GB).room() == {"home": 2}
    assert met(ray, memory=6 * GB).place("home")[1] == Need(1.0, 0.0, 6 * GB)
    assert met(ray, memory=60 * GB).place("home")[1] == Need(1.0, 0.0, 16 * GB)


def test_a_node_that_refuses_gets_no_worker(ray):
    said = []
    ray.join("other", refused="it does not see /shared")
    made = met(ray, said)
    assert made.room() == {"home": 4}
    assert said[1] == "  warning: node host-other (other) takes no part: it does not see /shared"


def test_no_node_at_all_is_an_error_with_the_reasons(ray):
    ray.answers["home"]["refused"] = "it has torch 1.0, the driver has 2.0"
    with pytest.raises(UserError, match=r"no node .* takes part; host-home: it has torch 1\.0"):
        met(ray).require_hope(workers=False)


def test_a_cluster_without_a_gpu(ray, monkeypatch):
    made = met(ray, target=Target("cuda"), device_memory=GB)
    assert made.room() == {"home": 0}
    made.require_hope(workers=False)  # one may still join
    monkeypatch.setattr(members, "PATIENCE_SECONDS", 0.0)
    with pytest.raises(UserError, match="no node of the cluster has a GPU"):
        made.require_hope(workers=False)


def test_parts_of_a_gpu(ray):
    ray.join("card", CARD, gpus=2.0)
    made = met(ray, target=Target("cuda"), device_memory=6 * GB)
    assert made.room() == {"home": 0, "card": 4}
    assert made.place("card")[1].gpus == 0.5
    offloaded = met(ray, target=Target("cuda", offload=True), device_memory=GB)
    assert offloaded.place("card")[1].gpus == 1.0


def test_nodes_join_and_leave(ray):
    said = []
    made = met(ray, said)
    ray.join("late")
    made.look()
    assert [member.node.id for member in made.asked.values()] == ["late"]
    made.answered(next(iter(made.asked.values())))
    assert made.room() == {"home": 4, "late": 4}
    member, _ = made.place("late")
    ray.leave("late")
    assert not made.lives(member)
    assert not made.has(member)
    assert said[-1] == "  node host-late (late) left the cluster"


def test_a_node_that_leaves_before_its_answer_is_told_too(ray):
    said = []
    ray.join("short")
    made = met(ray, said, answer=False)
    ray.leave("short")
    made.look()
    assert said == ["  node host-short (short) left the cluster before it took part"]
    ray.join("refused", refused="it does not see /shared")
    made.look()
    for member in list(made.asked.values()):
        made.answered(member)
    ray.leave("refused")
    made.look()
    assert "takes no part" in said[-1]  # nobody misses it


def test_a_node_that_never_answers_does_not_hold_timings_back(ray, monkeypatch):
    said = []
    made = met(ray, said, timing=True)
    ray.join("silent")
    monkeypatch.setattr(members, "PATIENCE_SECONDS", -1.0)
    for _ in range(2):
        made.look()
    assert said[1:] == [said[-1]]
    assert "node host-silent (silent) has not answered" in said[-1]
    assert made.room() == {}
    monkeypatch.setattr(members, "ANSWER_SECONDS", -1.0)
    made.look()
    assert "node host-silent (silent) takes no part: it did not answer" in said[-1]
    assert made.room() == {"home": 1}


def test_this_machines_node_must_live(ray):
    made = met(ray)
    ray.join("other")
    ray.leave("home")
    with pytest.raises(RunStopped, match="this machine's node died"):
        made.look()


def test_a_node_that_cannot_answer_is_asked_again_and_then_left(ray):
    said = []
    ray.answers["home"] = RuntimeError("no space left")
    made = met(ray, said)
    for _ in range(2):
        assert made.asked
        made.answered(next(iter(made.asked.values())))
    assert not made.asked
    assert "it does not answer (no space left)" in said[-1]


def test_workers_that_do_not_start_close_a_node(ray):
    said = []
    made = met(ray, said)
    member, _ = made.place("home")
    for _ in range(3):
        assert made.room() == {"home": 4}
        made.failed(member, RuntimeError("no torch"))
    assert made.room() == {}
    assert "its workers do not start (no torch)" in said[-1]


def test_niceness_is_told(ray):
    said = []
    ray.answers["home"]["nice"] = 15
    met(ray, said)
    assert "niceness 15" in said[-1]


def test_memory_that_ran_out_on_the_nodes_machine(ray):
    made = met(ray)
    member, _ = made.place("home")
    assert not made.memory_ran_out(member)
    ray.answers["home"]["oom_kills"] = 1
    assert made.memory_ran_out(member)
    assert not made.memory_ran_out(member)  # a later death is another matter


def test_timings_wait_until_the_usual_kind_is_known(ray):
    for name, machine in (("a", XEON), ("b", XEON)):
        ray.join(name, machine)
    made = met(ray, answer=False, timing=True)
    waiting = list(made.asked.values())
    made.answered(waiting[0])
    assert made.room() == {}
    for member in waiting[1:]:
        made.answered(member)
    assert made.room() == {"a": 1, "b": 1}
    assert made.place("a")[1] == Need(4.0)
    for name in ("c", "d", "e"):  # more of another kind join too late
        ray.join(name)
    made.look()
    for member in list(made.asked.values()):
        made.answered(member)
    assert made.room() == {"a": 1, "b": 1}


def test_one_timing_on_two_nodes_of_a_machine(ray):
    ray.join("twin", address="home")
    assert len(met(ray, timing=True).room()) == 1


def test_a_timing_has_a_whole_gpu(ray):
    ray.join("card", CARD, gpus=2.0)
    made = met(ray, timing=True, target=Target("cuda"), device_memory=GB)
    assert made.room() == {"card": 1}
    assert made.place("card")[1] == Need(4.0, 1.0)
