"""The fresh noise of a stochastic sampler, less what a quantized network has already added (PTQD).

What is left of the quantization noise after its correction enters the next sample with the factor
of the prediction. A sampler that adds fresh noise can add that much less: the variance of the next
sample is then what the sampler meant it to be. A deterministic sampler adds none, so there this
does nothing.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from quantarena.methods.techniques.correct.prediction_noise import PredictionNoise


def fresh_noise_share(
    noise: PredictionNoise, alphas: Sequence[float] | Tensor, sigmas: Sequence[float] | Tensor
) -> Tensor:
    """Factor of the fresh noise at each sampler call of DDIM, (S,), in [0, 1].

    DDIM's next sample is ``sqrt(a') x0 + sqrt(1 - a' - s**2) e + s z``, where ``x0`` is made of the
    sample and the prediction ``e``. Collected, ``e`` has the factor
    ``sqrt(1 - a' - s**2) - sqrt(a' (1 - a) / a)``. Only ``z`` is to be multiplied: the released
    code also puts the smaller ``s`` into the first root, which moves the mean.

    Args:
        noise: measured on the same sampler calls.
        alphas: cumulative products ``a`` at each call and, last, after the last call, (S + 1,).
        sigmas: standard deviation ``s`` of the fresh noise at each call, (S,); 0 for none.

    Returns:
        The factors; 0 where quantization adds more than the sampler would.

    Raises:
        ValueError: numbers of calls that do not fit, or a deviation that DDIM cannot have.
    """
    a, s = (torch.as_tensor(values, dtype=torch.double) for values in (alphas, sigmas))
    if len(a) != len(noise.slope) + 1 or len(s) != len(noise.slope):
        raise ValueError(
            f"noise of {len(noise.slope)} sampler calls, {len(a)} alphas and {len(s)} deviations"
        )
    now, after = a[:-1], a[1:]
    if bool((s < 0).any() or (s**2 > 1 - after + 1e-9).any()):
        raise ValueError("the deviation of fresh noise lies between 0 and sqrt(1 - alpha)")
    direction = (1 - after - s**2).clamp(min=0).sqrt()
    factor = direction - (after * (1 - now) / now).sqrt()
    left = factor * noise.deviation.double() / (1 + noise.slope.double())
    wanted = (s**2 - left**2).clamp(min=0).sqrt()
    return torch.where(s > 0, wanted / s.clamp(min=1e-30), torch.ones_like(s)).float()
