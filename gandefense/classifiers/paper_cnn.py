"""The classifier of the ISMN paper (Haque & Kang 2021, Table 1)."""

from __future__ import annotations

from torch import Tensor, nn

from gandefense.classifiers.resnet import Normalize


class PaperCNN(nn.Module):
    """Four convolutions and a dense layer: (B, C, H, W) in [0, 1] → logits (B, K).

    Table 1 lists Conv 128, ReLU, Conv 256, ReLU, MaxPool 2×2, BN, Conv 128, ReLU, Conv 64, ReLU, Dense 1024, ReLU,
    Softmax, all convolutions 3×3. It leaves open padding, what feeds the dense layer, and the last layer. Our reading:
    same padding; a second 2×2 pooling before the dense layer, so that it has 4,096 instead of 16,384 inputs at 32×32; a
    linear layer to K logits at the end, and the softmax in the loss.
    """

    def __init__(self, *, classes: int, mean: tuple[float, ...], std: tuple[float, ...], size: int = 32) -> None:
        super().__init__()
        self.normalize = Normalize(mean, std)
        self.features = nn.Sequential(
            *(nn.Conv2d(len(mean), 128, 3, padding=1), nn.ReLU()),
            *(nn.Conv2d(128, 256, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.BatchNorm2d(256)),
            *(nn.Conv2d(256, 128, 3, padding=1), nn.ReLU()),
            *(nn.Conv2d(128, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        )
        self.dense = nn.Sequential(nn.Flatten(), nn.Linear(64 * (size // 4) ** 2, 1024), nn.ReLU())
        self.head = nn.Linear(1024, classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.dense(self.features(self.normalize(images))))
