"""Which worker goes where: pure rules."""

import pytest

from quantarena.bench.cluster.nodes import (
    Need,
    Node,
    all_of,
    alone,
    capacity,
    nodes_of,
    placed,
    share,
    usual,
)

GB = 10**9
SMALL = Node("a", "10.0.0.1", "small", 2.0, 0.0, 4 * GB)
LARGE = Node("b", "10.0.0.2", "large", 8.0, 2.0, 64 * GB)


def test_only_nodes_that_live_count():
    listing = [
        {
            "NodeID": "b",
            "Alive": True,
            "NodeManagerAddress": "10.0.0.2",
            "NodeManagerHostname": "large",
            "Resources": {"CPU": 8.0, "GPU": 2.0, "memory": 64.0 * GB, "node:10.0.0.2": 1.0},
        },
        {"NodeID": "c", "Alive": False, "NodeManagerAddress": "10.0.0.3", "Resources": {}},
        {"NodeID": "a", "Alive": True, "NodeManagerAddress": "10.0.0.4", "Resources": {}},
    ]
    assert nodes_of(listing) == (Node("a", "10.0.0.4", "10.0.0.4", 0.0, 0.0, 0), LARGE)


@pytest.mark.parametrize(
    ("node", "need", "workers"),
    [
        (SMALL, Need(), 2),
        (SMALL, Need(1.0, 0.0, 3 * GB), 1),
        (SMALL, Need(1.0, 0.0, 9 * GB), 1),  # an estimate above all that there is
        (SMALL, Need(1.0, 0.25), 0),
        (SMALL, Need(4.0), 0),
        (LARGE, Need(1.0, 0.5), 4),
        (LARGE, Need(1.0, 0.125), 8),
        (LARGE, Need(1.0, 1.0), 2),
    ],
)
def test_what_fits_a_node(node, need, workers):
    assert capacity(node, need) == workers


def test_a_node_without_enough_memory_reserves_what_it_has():
    assert Need(1.0, 0.0, 9 * GB).on(SMALL) == Need(1.0, 0.0, 4 * GB)


def test_workers_are_spread():
    assert placed({"a": 2, "b": 8}, 3) == {"a": 2, "b": 1}
    assert placed({"a": 2, "b": 8}, 99) == {"a": 2, "b": 8}
    assert placed({"a": 0}, 1) == {"a": 0}


def test_one_timing_a_machine_on_its_largest_node():
    twin = Node("z", "10.0.0.2", "large", 4.0, 0.0, GB)
    assert alone([twin, LARGE, SMALL], gpus=False) == (LARGE, SMALL)
    assert alone([twin, LARGE, SMALL], gpus=True) == (LARGE,)
    assert alone([Node("n", "1.1.1.1", "none", 0.0, 0.0, 0)], gpus=False) == ()
    assert all_of(LARGE, gpus=True) == Need(8.0, 1.0)


def test_a_gpu_is_shared_by_memory():
    card = {"memory": "16384 MiB"}
    assert share(GB, card) == 0.125
    assert share(6 * GB, card) == 0.5
    assert share(60 * GB, card) == 1.0
    assert share(GB, card, whole=True) == 1.0
    assert share(GB, None) == 1.0
    assert share(GB, {"memory": "[N/A]"}) == 1.0


def test_the_usual_kind_of_machine():
    assert usual({"a": "epyc", "b": "xeon", "c": "epyc"}) == "epyc"
    assert usual({"a": "xeon", "b": "epyc"}) == "epyc"
    assert usual({}) == ""
