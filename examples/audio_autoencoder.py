"""TreeVQ in a small audio autoencoder, without the rest of hrvqvae. An editor can run each cell
(# %%) alone.

    python examples/audio_autoencoder.py

A plucked string of half a second is coded at 64 positions in four levels of eight codewords: 768
bits per clip, 1.5 kbit/s. Any prefix of the levels can be decoded, so a model serves four rates. It
takes about a minute on a CPU.
"""

# %% Sounds: harmonics that die away, the higher the faster. (B, 1, 4096) in [-1, 1], 8 kHz
import math

import torch
from torch import Tensor, nn

from hrvqvae import TreeVQ

RATE, LENGTH = 8_000, 4_096
STEPS, BATCH = 1_500, 16


def plucked_strings(count: int, generator: torch.Generator) -> Tensor:
    """Strings of two octaves, each plucked within the first tenth of a second."""
    pitch = 110 * 2 ** (torch.randint(24, (count, 1, 1), generator=generator) / 12)
    brightness = torch.rand(count, 1, 1, generator=generator)
    begins = torch.rand(count, 1, 1, generator=generator) * 0.1
    time = (torch.arange(LENGTH) / RATE - begins).clamp(min=0)
    harmonics = torch.arange(1, 9).view(1, 8, 1)
    decay = torch.exp(-time * (3 + 2 * harmonics * (1.5 - brightness)))
    waves = torch.sin(2 * math.pi * pitch * harmonics * time) * decay / harmonics
    return (waves.sum(1, keepdim=True) / 2).clamp(-1, 1)


# %% A model: strided convolutions down to 64 positions of width 64, the layer, and the way back
class AudioAutoencoder(nn.Module):
    """Return reconstructions (B, 1, 4096) of sounds, indices (B, 64, 4) and the layer's loss."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv1d(1, 32, 16, stride=8, padding=4),
            nn.GELU(),
            nn.Conv1d(32, 64, 16, stride=8, padding=4),
            nn.GELU(),
            nn.Conv1d(64, 64, 3, padding=1),
        )
        self.quantize = TreeVQ(dim=64, codewords=8, levels=4, channel_last=False)
        self.decoder = nn.Sequential(
            nn.Conv1d(64, 64, 3, padding=1),
            nn.GELU(),
            nn.ConvTranspose1d(64, 32, 16, stride=8, padding=4),
            nn.GELU(),
            nn.ConvTranspose1d(32, 1, 16, stride=8, padding=4),
        )

    def forward(self, sounds: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        quantized, indices, loss = self.quantize(self.encoder(sounds))
        return self.decoder(quantized), indices, loss

    def decode(self, indices: Tensor) -> Tensor:
        return self.decoder(self.quantize.get_output_from_indices(indices))


# %% Training: the layer starts, follows and restarts its codewords by itself
torch.manual_seed(0)
generator = torch.Generator().manual_seed(0)
model = AudioAutoencoder()
optimizer = torch.optim.Adam(model.parameters(), 1e-3)
for step in range(STEPS):
    sounds = plucked_strings(BATCH, generator)
    output, indices, loss = model(sounds)
    error = (output - sounds).square().mean()
    optimizer.zero_grad()
    (error + 0.1 * loss).backward()
    optimizer.step()
    if step % max(1, STEPS // 10) == 0:
        print(f"step {step}: error {float(error.detach()):.5f}")

# %% One model, four rates
model.eval()
with torch.no_grad():
    sounds = plucked_strings(64, torch.Generator().manual_seed(1))
    _, indices, _ = model(sounds)  # (64, 64, 4)
    for levels in range(1, 5):
        heard = model.decode(indices[..., :levels])
        ratio = sounds.square().sum() / (heard - sounds).square().sum()
        bits = indices.shape[1] * levels * 3 * RATE / LENGTH
        print(
            f"levels 1..{levels}: {bits:.0f} bit/s, signal to noise {10 * math.log10(ratio):.1f} dB"
        )
    leaves = model.quantize.codeword_indices(indices)[..., -1]
    print(
        f"{leaves.unique().numel():,} of {8**4:,} leaves are used by {leaves.numel():,} positions"
    )

# %% Indices are what is stored: they come back as the same sound
stored = indices.to(torch.uint8)
with torch.no_grad():
    torch.testing.assert_close(model.decode(stored.long()), model(sounds)[0])
