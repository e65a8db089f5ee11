import pytest

from quantarena.methods.techniques.learn.param_groups import Decay


def test_decays():
    assert [Decay.LINEAR.factor(x) for x in (0.0, 0.5, 1.0)] == [1.0, 0.5, 0.0]
    assert Decay.COSINE.factor(0.5) == pytest.approx(0.5)
    assert Decay.CONSTANT.factor(0.9) == 1.0
