"""Torch ports of the six models of compared_keras: made with care, and made as people make them at first."""

import torch
from torch import nn
from torch.nn.utils import parametrizations

import torch_kinit as kinit


class Mnist(nn.Sequential):
    def __init__(self):
        super().__init__(
            *(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(1, 4, 3, 2), nn.ReLU(), nn.BatchNorm2d(4, 1e-3, 0.01)),
            *(nn.ConstantPad2d((0, 1, 0, 1), float("-inf")), nn.MaxPool2d(2), nn.Dropout(0.25), nn.Flatten()),
            *(kinit.flattened(nn.Linear(64, 8), (4, 4, 4)), nn.ReLU(), nn.Dropout(0.25)),
            *(nn.Linear(8, 10), nn.Softmax(-1)),
        )


class CarelessMnist(nn.Sequential):
    def __init__(self):
        super().__init__(
            *(nn.Conv2d(1, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2, padding=1)),
            *(nn.Dropout(0.5), nn.Flatten(), nn.Linear(64, 8), nn.Tanh(), nn.Linear(8, 10), nn.Sigmoid()),
        )


def without_second_bias(rnn):
    """Keras' one bias."""
    for name, parameter in rnn.named_parameters():
        if name.startswith("bias_hh"):
            nn.init.zeros_(parameter).requires_grad_(False)
    return rnn


class Lstm(nn.Module):
    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(20, 5)
        self.first = without_second_bias(nn.LSTM(5, 4, batch_first=True, bidirectional=True))
        self.drop = nn.Dropout(0.25)
        self.second = without_second_bias(nn.LSTM(8, 3, batch_first=True, bidirectional=True))
        self.head = nn.Linear(6, 1)

    def forward(self, x):
        lengths = (x != 0).sum(1)
        pack = nn.utils.rnn.pack_padded_sequence(self.words(x), lengths, batch_first=True, enforce_sorted=False)
        x, _ = nn.utils.rnn.pad_packed_sequence(self.first(pack)[0], batch_first=True, total_length=x.shape[1])
        pack = nn.utils.rnn.pack_padded_sequence(self.drop(x), lengths, batch_first=True, enforce_sorted=False)
        _, (h, _) = self.second(pack)
        return torch.sigmoid(self.head(torch.cat([h[-2], h[-1]], 1)))


class CarelessLstm(nn.Module):
    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(20, 5, padding_idx=0)
        self.first = nn.LSTM(5, 4, bidirectional=True)
        self.second = nn.LSTM(8, 3, batch_first=True, bidirectional=True)
        self.drop = nn.Dropout()
        self.head = nn.Linear(6, 1)


class Gru(nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.drop = nn.Embedding(20, 5), nn.Dropout1d(0.25)
        self.gru = nn.GRU(5, 4, batch_first=True, bidirectional=True)
        self.rnn = without_second_bias(nn.RNN(8, 4, batch_first=True, nonlinearity="relu"))
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        x = self.drop(self.words(x).mT).mT
        return self.head(self.rnn(self.gru(x)[0])[0].mean(1))


class CarelessGru(nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.drop = nn.Embedding(20, 5), nn.Dropout(0.25)
        self.gru = nn.GRU(5, 4, batch_first=True, bidirectional=True)
        self.rnn = nn.RNN(8, 4, batch_first=True)
        self.pool = nn.AdaptiveMaxPool1d(1)
        self.head = nn.Linear(4, 3)


class Transformer(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Sequential(nn.ZeroPad1d((4, 0)), nn.Conv1d(6, 8, 3, dilation=2))
        self.attention = nn.MultiheadAttention(8, 2, dropout=0.25, batch_first=True)
        self.norm_1 = nn.LayerNorm(8, eps=1e-6)
        self.feed_forward = nn.Sequential(nn.Linear(8, 12), nn.GELU(), nn.Dropout(0.25), nn.Linear(12, 8))
        self.norm_2 = nn.LayerNorm(8, eps=1e-3)
        self.norm_3 = nn.RMSNorm(8, eps=1e-6)
        self.head = nn.Linear(8, 1)

    def forward(self, x):
        x = self.conv(x.mT).mT
        x = self.norm_1(x + self.attention(x, x, x, need_weights=False)[0])
        x = self.norm_3(self.norm_2(x + self.feed_forward(x)))
        return self.head(x.mean(1))


class CarelessTransformer(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(6, 8, 3, padding=1)
        self.attention = nn.MultiheadAttention(8, 2, add_zero_attn=True)
        self.norm_1 = nn.LayerNorm(8)
        self.feed_forward = nn.Sequential(nn.Linear(8, 12), nn.GELU("tanh"), nn.Linear(12, 8), nn.Dropout(0.25))
        self.norm_2 = nn.LayerNorm(8)
        self.norm_3 = nn.RMSNorm(8)
        self.head = nn.Linear(8, 1)


class Unet(nn.Module):
    def __init__(self):
        super().__init__()
        self.enter = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4, 1e-5, 0.1), nn.ReLU6())
        self.pool = nn.MaxPool2d(2)
        self.middle = nn.Sequential(nn.Conv2d(4, 6, 3, padding="same"), nn.ELU())
        self.average = nn.Sequential(nn.ZeroPad2d((1, 0, 1, 0)), nn.AvgPool2d(3, 2, 1, count_include_pad=False))
        self.deep = nn.Sequential(nn.Conv2d(6, 8, 3, padding=2, dilation=2), nn.GroupNorm(2, 8, 1e-3), nn.Dropout(0.25))
        self.up_1 = nn.Sequential(nn.ConvTranspose2d(8, 6, 3, 2), nn.ZeroPad2d((0, -2, 0, -2)))
        self.fuse = nn.Sequential(nn.Conv2d(6, 6, 2), nn.SiLU())
        self.up_2 = nn.Upsample(scale_factor=2, mode="bilinear")
        self.separable = nn.Sequential(
            nn.Conv2d(16, 16, 3, padding=1, groups=16, bias=False), nn.Conv2d(16, 4, 1), nn.ReLU()
        )
        self.head = nn.Conv2d(4, 1, 1)

    def forward(self, x):
        first = self.enter(x)
        second = self.middle(self.pool(first))
        x = self.fuse(self.up_1(self.deep(self.average(second))))
        x = self.up_2(torch.cat([x, second], 1))
        return torch.sigmoid(self.head(self.separable(torch.cat([x, first], 1))))


class CarelessUnet(nn.Module):
    def __init__(self):
        super().__init__()
        self.enter = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4, momentum=0.9), nn.ReLU()
        )
        self.pool = nn.MaxPool2d(2, 1)
        self.middle = nn.Sequential(nn.Conv2d(4, 6, 3, padding=1), nn.ELU(0.5))
        self.average = nn.AvgPool2d(3, 2, 1)
        self.deep = nn.Sequential(nn.Conv2d(6, 8, 3, padding=1), nn.GroupNorm(4, 8))
        self.up_1 = nn.ConvTranspose2d(8, 6, 3, 2, 1, output_padding=1)
        self.fuse = nn.Sequential(nn.Conv2d(6, 6, 2), nn.Hardswish())
        self.up_2 = nn.UpsamplingBilinear2d(scale_factor=2)
        self.separable = nn.Sequential(
            nn.Conv2d(16, 16, 3, padding=1, groups=16, bias=False, padding_mode="reflect"),
            nn.Conv2d(16, 4, 1, padding=1),
            nn.ReLU(),
        )
        self.head = nn.Sequential(nn.Conv2d(4, 1, 1), nn.Sigmoid())


class Discriminator(nn.Sequential):
    def __init__(self):
        super().__init__(
            *(nn.ZeroPad2d((1, 2, 1, 2)), nn.Conv2d(3, 4, 5, 2), nn.LeakyReLU(0.3), nn.Dropout(0.25)),
            parametrizations.spectral_norm(nn.Conv2d(4, 6, 5, 2, 2)),
            *(nn.LeakyReLU(0.2), nn.BatchNorm2d(6, 1e-3, 0.01).requires_grad_(False).eval()),
            *(nn.Conv2d(6, 12, 3, 2, groups=6), nn.PReLU(12), nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(12, 1)),
        )


class CarelessDiscriminator(nn.Sequential):
    def __init__(self):
        super().__init__(
            *(nn.Conv2d(3, 4, 5, 2, 2), nn.LeakyReLU(), nn.Dropout2d(0.25)),
            parametrizations.spectral_norm(nn.Conv2d(4, 6, 5, 2, 2), n_power_iterations=2),
            *(nn.LeakyReLU(0.3), nn.BatchNorm2d(6, 1e-3, 0.01)),
            *(nn.Conv2d(6, 12, 3, groups=6), nn.PReLU(12), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 1)),
        )


CAREFUL = {"mnist": Mnist, "lstm": Lstm, "gru": Gru, "transformer": Transformer, "unet": Unet}
CAREFUL["discriminator"] = Discriminator
CARELESS = {"mnist": CarelessMnist, "lstm": CarelessLstm, "gru": CarelessGru, "transformer": CarelessTransformer}
CARELESS |= {"unet": CarelessUnet, "discriminator": CarelessDiscriminator}
