"""The tree of linked codebooks as a layer for any model: it starts, follows and restarts its codewords by itself.

>>> quantize = TreeVQ(dim=256, codewords=8, levels=4)
>>> quantized, indices, loss = quantize(features)  # (B, N, 256) -> (B, N, 256), (B, N, 4), a scalar
>>> coarse = quantize.get_output_from_indices(indices[..., :2])  # (B, N, 256), of two levels

docs/layer.md has more. Shapes: D channels, L levels, m codewords a codebook; positions are all dimensions but the
channels, such as (B, N) or (B, H, W).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from hrvqvae import distributed
from hrvqvae.config import QuantizerConfig
from hrvqvae.quantize.fitting import Vectors, batches_of, fit
from hrvqvae.quantize.quantized import Quantized
from hrvqvae.quantize.residual import ResidualQuantizer
from hrvqvae.utils.errors import InputError, require

PADDING = -1  # the index of a position that the mask leaves out
_START_A_LEAF, _LEAST_START, _MOST_START = 8, 4_096, 65_536  # vectors


class TreeVQ(nn.Module):
    """Residual quantization with linked codebooks (docs/method.md) between any encoder and any decoder.

    A position becomes L indices in [0, m), coarse first. The codeword that is chosen at one level decides which
    codebook the next level searches: a position costs L * m distances, and has m^L leaves within reach.

    In training mode k-means fits the codebooks to the first batch, and once more as soon as enough vectors have come;
    after that they follow each batch, and codewords that are no longer used move to where vectors are. In evaluation
    mode nothing changes. Codebooks and their statistics stay in float32. Processes that train together
    (torch.distributed) have the same codebooks, which follow the batches of all.

    Args:
        dim: D, channels of what is quantized.
        codewords: m, of one codebook.
        levels: L. Indices take L * log2(m) bits a position.
        channel_last: input is (B, ..., D), such as (B, N, D); otherwise (B, D, ...), such as (B, D, H, W).
        beta: weight of the commitment to the sum of the codewords; a quarter of that of the `treevq` presets, whose
            other values are the defaults here: many models weigh a quantizer's loss more than ours do.
        level_betas: weight of each level's own term, coarse first, or one for all of them; none is `beta` for all.
        beam: paths that the search keeps at each level; 1 takes the nearest codeword of each level. With more the leaf
            is nearer, for about so many times the search.
        coarse_weight: weight of the coarser levels' squared residuals in what a beam minimizes; a little (0.1) keeps
            prefixes of the levels good.
        update: codewords follow moving averages of what they stand for, or the gradient of the loss.
        decay: of those moving averages, and of those of how often codewords are used.
        start_vectors: vectors that the k-means start waits for; None is eight a leaf, from 4,096 to 65,536.
        restart_every: training steps between restarts of dead codewords; 0 is none. May be set at any time.
        restart_below: a codeword is dead when its share of its codebook's vectors is below this / m.

    Raises:
        InputError: a value is out of its range.
    """

    def __init__(
        self,
        dim: int,
        codewords: int = 8,
        levels: int = 3,
        *,
        channel_last: bool = True,
        beta: float = 0.25,
        level_betas: Sequence[float] = (0.05,),
        beam: int = 4,
        coarse_weight: float = 0.1,
        update: Literal["ema", "gradient"] = "ema",
        decay: float = 0.95,
        start_vectors: int | None = None,
        restart_every: int = 100,
        restart_below: float = 0.03,
    ) -> None:
        super().__init__()
        require(update in ("ema", "gradient"), "update", update, "'ema' or 'gradient'")
        require(start_vectors is None or start_vectors >= 1, "start_vectors", start_vectors, "at least 1")
        try:
            config = QuantizerConfig(
                dim=dim, codewords=codewords, levels=levels, beta=beta, level_betas=tuple(level_betas) or (beta,),
                beam=beam, coarse_weight=coarse_weight, update=update, decay=decay, restart_every=restart_every,
                restart_below=restart_below,
            )  # fmt: skip
        except InputError as error:
            raise InputError(str(error).replace("model.quantizer.", "")) from None
        self.quantizer = ResidualQuantizer(config)
        self.channel_last, self.restart_every = channel_last, restart_every
        self.start_vectors = start_vectors or min(max(_LEAST_START, _START_A_LEAF * codewords**levels), _MOST_START)
        # Since the start; 0 until it is done. A float, so that an average of models is above 0 if one of them is.
        self.register_buffer("steps", torch.zeros((), dtype=torch.float32))
        self.steps: Tensor
        self._waiting: Tensor | None = None  # (N, D), for the start; in no state

    def forward(self, features: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Quantize features of any floating type; in training mode, let the codebooks follow.

        Args:
            features: (B, ..., D), or (B, D, ...) without `channel_last`.
            mask: bool, of the positions' shape (B, ...): False leaves a position out, of the codebooks' statistics and
                of the loss as well. Its output is zero and its indices are -1.

        Returns:
            Quantized features, as the input in shape and type, with its gradient (straight-through). Indices (B, ...,
            L) int64. The loss: commitment terms, and codebook terms where the gradient moves the codewords, each the
            mean over the values of the positions that count; a float32 scalar, to be added to the model's own.

        Raises:
            InputError: features or mask have another shape, or the features are not floating-point.
            NonFiniteError: a feature is NaN or infinite (on a CPU; on a GPU the loss is then NaN).
        """
        last = self._channels_last(features)
        if mask is not None and (mask.shape != last.shape[:-1] or mask.dtype != torch.bool):
            shape = tuple(last.shape[:-1])
            raise InputError(f"the mask is {mask.dtype} {tuple(mask.shape)}; the positions take bool {shape}")
        vectors = last.flatten(0, -2) if mask is None else last[mask]
        quantize = self.quantizer if not self.training else self._learn
        if self.training and torch.compiler.is_compiling():  # what it does depends on the step
            quantize = torch.compiler.disable(self._learn)  # type: ignore[no-untyped-call]
        found: Quantized = quantize(vectors)
        loss = torch.stack(list(found.losses.values())).sum() / max(1, vectors.numel())
        quantized, indices = found.latents.to(features.dtype), torch.stack(found.codes, -1)
        if mask is None:
            quantized, indices = quantized.reshape(last.shape), indices.reshape(*last.shape[:-1], -1)
        else:
            quantized = torch.zeros_like(last).masked_scatter(mask.unsqueeze(-1), quantized)
            padding = indices.new_full((*mask.shape, indices.shape[-1]), PADDING)
            indices = padding.masked_scatter(mask.unsqueeze(-1), indices)
        return self._as_input(quantized), indices, loss

    def fit(self, vectors: Vectors, *, passes: int = 10, batch: int = 65_536, seed: int = 0) -> TreeVQ:
        """Fit the codebooks to vectors that are there already, whatever the mode; -> itself.

        k-means on `start_vectors` of them, drawn evenly; then passes over all, each a step of Lloyd's algorithm with
        the layer's own search. Codewords that get no vector split those that get most, where there are eight vectors a
        codeword. Equal batches and seeds give equal codebooks (on a CPU). Training afterwards goes on from there.

        Args:
            vectors: array or tensor (N, D) of a floating type, which may be memory-mapped; or an iterable of such
                that can be iterated again, as each pass does.
            batch: vectors that are in memory together, beside the start's.

        Raises:
            InputError: there are no vectors, they have another shape or type, or can be iterated once only.
            NonFiniteError: a value is NaN or infinite.
        """
        require(passes >= 1, "passes", passes, "at least 1")
        require(batch >= 1, "batch", batch, "at least 1")
        if isinstance(vectors, Iterator):
            raise InputError("vectors are an iterator, which ends after one pass; give an array or a list of batches")
        batches = partial(batches_of, vectors, batch, self.quantizer.config.dim)
        fit(self.quantizer, batches, self.start_vectors, passes, seed)
        self._waiting = None
        self.steps.fill_(1)
        return self

    @torch.no_grad()
    def encode(self, vectors: Vectors, *, batch: int = 65_536) -> Tensor:
        """Vectors as `fit` takes them -> indices (N, L) int64, on the CPU; nothing is changed. Raises as `fit`."""
        device = self.quantizer.levels[0].count.device
        batches = batches_of(vectors, batch, self.quantizer.config.dim)
        found = [torch.stack(self.quantizer.encode(some.to(device)), -1).cpu() for some in batches]
        return torch.cat(found) if found else torch.empty(0, self.quantizer.config.levels, dtype=torch.long)

    def get_output_from_indices(self, indices: Tensor) -> Tensor:
        """Indices (B, ..., l) of the first l levels, 1 to L -> the sum of their codewords, placed as the input is.

        Indices are of any integer type. float32, without gradient to the indices; zero where the indices are -1.

        Raises:
            InputError: no level, more levels than there are, or an index that is neither -1 nor in [0, m).
        """
        indices = indices if indices.is_floating_point() else indices.long()
        padding = (indices == PADDING).all(-1, keepdim=True)
        found = self.quantizer.lookup(indices.masked_fill(padding, 0).unbind(-1))
        return self._as_input(found.masked_fill(padding, 0))

    def codeword_indices(self, indices: Tensor) -> Tensor:
        """Indices (B, ..., l) without padding -> numbers of the codewords among all m^l of their level, same shape."""
        return torch.stack(self.quantizer.codeword_indices(indices.unbind(-1)), -1)

    def _channels_last(self, features: Tensor) -> Tensor:
        last = features if self.channel_last or features.ndim < 2 else features.movedim(1, -1)
        dim = self.quantizer.config.dim
        if features.ndim < 2 or last.shape[-1] != dim or not features.is_floating_point():
            shape = f"(B, ..., {dim})" if self.channel_last else f"(B, {dim}, ...)"
            raise InputError(
                f"features are {features.dtype} {tuple(features.shape)}; they must be floating-point {shape} "
                f"(channel_last={not self.channel_last} is for channels elsewhere)"
            )
        return last

    def _as_input(self, last: Tensor) -> Tensor:
        return last if self.channel_last else last.movedim(-1, 1)

    def _learn(self, vectors: Tensor) -> Quantized:
        """Quantize (N, D) and let the codebooks follow; start them before and restart dead ones after it, when due."""
        if torch._C._current_graph_task_id() != -1:  # within backward: activation checkpointing, of a step taken before
            self.quantizer.eval()
            try:
                return self.quantizer(vectors)  # type: ignore[no-any-return]
            finally:
                self.quantizer.train()
        steps = math.ceil(self.steps)
        if steps == 0:
            self._start(vectors.detach().float())
        found: Quantized = self.quantizer(vectors)
        if steps and self.restart_every and steps % self.restart_every == 0:
            self.quantizer.restart_dead_codes(distributed.all_gather(vectors.detach().float()), self._generator())
            self._share_codebooks()
        self.steps += self._waiting is None
        return found

    def _start(self, vectors: Tensor) -> None:
        """Fit the codebooks to the first vectors (N, D) that come, and to all of them once there are enough."""
        batch = distributed.all_gather(vectors)
        waiting = batch[:0] if self._waiting is None else self._waiting.to(batch.device)
        known = torch.cat([waiting, batch])
        enough = len(known) >= self.start_vectors
        if (len(known) and not len(waiting)) or enough:
            some = torch.randperm(len(known), generator=self._generator())[: self.start_vectors]
            fitted = known[some.to(known.device)]
            self.quantizer.initialize(fitted, self._generator(), len(batch) / len(fitted))
            self._share_codebooks()
        self._waiting = None if enough else known

    def _share_codebooks(self) -> None:
        distributed.broadcast(one.detach() for one in self.quantizer.state_dict().values())

    def _generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(math.ceil(self.steps))

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *others: Any) -> None:
        """As torch's; take the steps from the extra state of an earlier version, too. A start that was not done begins
        anew."""
        if (earlier := state_dict.pop(f"{prefix}_extra_state", None)) is not None:
            state_dict[f"{prefix}steps"] = earlier.float() if earlier.ndim == 0 else torch.zeros_like(self.steps)
        super()._load_from_state_dict(state_dict, prefix, *others)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> TreeVQ:
        """Move to another device, but let codebooks and statistics be float32: bfloat16 can't count to 257."""

        def moved(tensor: Tensor) -> Tensor:
            found = fn(tensor)
            return found if found.dtype == tensor.dtype else tensor.to(found.device)

        super()._apply(moved, recurse)  # type: ignore[no-untyped-call]
        return self

    def extra_repr(self) -> str:
        config = self.quantizer.config
        about = f"dim={config.dim}, codewords={config.codewords}, levels={config.levels}, update={config.update!r}"
        return about if self.channel_last else f"{about}, channel_last=False"
