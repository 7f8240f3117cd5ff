"""A small real network for `python -m torch_kinit`: it reads a picture and a sentence about it."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class PictureAndText(nn.Module):
    """Does a sentence describe a picture? The torch port of a two-branch functional Keras model.

    The picture branch is Conv2D, BatchNormalization, DepthwiseConv2D, Conv2D, Conv2DTranspose; the text branch
    Embedding, Bidirectional(LSTM), GRU. The text then attends to the picture (MultiHeadAttention), and Dense layers
    answer yes or no.
    """

    def __init__(self, vocabulary: int = 500, width: int = 32, heads: int = 4) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(width, eps=1e-3, momentum=0.01)
        self.depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.pointwise = nn.Conv2d(width, width, 1)
        self.upsample = nn.ConvTranspose2d(width, width, 2, stride=2)
        self.words = nn.Embedding(vocabulary, width, padding_idx=0)
        self.reader = nn.LSTM(width, width // 2, batch_first=True, bidirectional=True)
        self.summary = nn.GRU(width, width, batch_first=True)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.hidden = nn.Linear(2 * width, width)
        self.answer = nn.Linear(width, 2)

    def forward(self, picture: Tensor, words: Tensor) -> Tensor:
        """The two logits of each pair."""
        seen = torch.relu(self.norm(self.stem(picture)))
        seen = torch.relu(self.pointwise(self.depthwise(seen)))
        patches = torch.relu(self.upsample(seen)).flatten(2).transpose(1, 2)
        states, _ = self.summary(self.reader(self.words(words))[0])
        found, _ = self.attention(states, patches, patches, need_weights=False)
        joined = torch.cat([states[:, -1], found.mean(1)], dim=1)
        logits: Tensor = self.answer(torch.relu(self.hidden(joined)))
        return logits
