import torch

from quantarena.methods.techniques.calibrate.kmeans import kmeans


def blobs(sets=5, groups=3, each=8):
    """Well apart clusters in the plane, their members shuffled; and who is whose."""
    centres = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]], dtype=torch.float64)
    truth = torch.stack(
        [torch.arange(groups).repeat(each)[torch.randperm(groups * each)] for _ in range(sets)]
    )
    return centres[truth] + 0.1 * torch.randn(*truth.shape, 2, dtype=torch.float64), truth


def test_clusters_of_every_set_are_found():
    points, truth = blobs()
    ids = kmeans(points, 3, seed=0)
    for found, wanted in zip(ids, truth, strict=True):
        assert len(set(zip(found.tolist(), wanted.tolist(), strict=True))) == 3, "not one to one"


def test_weights_count_as_copies():
    points = torch.tensor([0.0, 1.0, 2.2]).double().reshape(1, 3, 1)
    light, heavy = (
        kmeans(points, 2, seed=0, weights=torch.tensor([w]).double())[0].tolist()
        for w in ([1.0, 1, 1], [100.0, 1, 100])
    )
    assert light[0] == light[1] != light[2]
    assert heavy[0] == heavy[1] != heavy[2]
    turned = kmeans(points, 2, seed=0, weights=torch.tensor([[100.0, 100, 1]]).double())[0]
    assert turned[1] == turned[2] != turned[0]


def test_fewer_distinct_points_than_clusters():
    ids = kmeans(torch.tensor([1.0, 1.0, 4.0, 1.0]).double().reshape(1, 4, 1), 3, seed=0)[0]
    assert ids[0] == ids[1] == ids[3] != ids[2]
    assert int(ids.max()) < 3
