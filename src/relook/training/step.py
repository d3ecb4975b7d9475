"""One training step as a module, so that compile and DDP wrap the whole of it."""

from typing import Generic

from torch import Tensor, nn

from relook.detector import Detector, Outputs
from relook.types import Losses, Targets


class Step(nn.Module, Generic[Outputs]):
    """images, targets -> the detector's loss terms; has no state of its own."""

    def __init__(self, detector: Detector[Outputs]) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, images: Tensor, targets: Targets) -> Losses:
        """images [B, 3, H, W] normalised -> scalar terms, already weighted."""
        return self.detector.loss(self.detector(images), targets)
