"""The tree of linked codebooks as a layer for any model; it starts and updates its own codebooks
(docs/layer.md).

>>> quantize = TreeVQ(dim=256, codewords=8, levels=4)
>>> # features and quantized: (B, N, 256); indices: (B, N, 4); loss: a scalar
>>> quantized, indices, loss = quantize(features)
>>> coarse = quantize.get_output_from_indices(indices[..., :2])  # (B, N, 256), from two levels

Shapes: D channels, L levels, m codewords per codebook; positions are all other dimensions, such as
    (B, N) or (B, H, W).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hrvqvae import distributed
from hrvqvae.config import QuantizerConfig
from hrvqvae.quantize.codebook import split_levels
from hrvqvae.quantize.fitting import MOST_VALUES, Vectors, batches_of, fit
from hrvqvae.quantize.identifiers import number_of, unique_indices
from hrvqvae.quantize.planting import plant
from hrvqvae.quantize.quantized import Quantized, check_codes
from hrvqvae.quantize.residual import ResidualQuantizer
from hrvqvae.quantize.schedule import CodebookSchedule, restart_due, track_moves
from hrvqvae.utils.errors import InputError

PADDING = -1  # index at masked positions


class TreeVQ(nn.Module):
    """Residual quantization with linked codebooks (docs/method.md) between any encoder and any
    decoder: a tree-structured vector quantizer (Gersho and Gray 1992, chapter 12) that learns
    together with them.

    A position becomes L indices in [0, m), coarse first. The codeword of one level decides which
    codebook the next level searches, so a greedy search computes L * m distances for m^L leaves.

    In training mode each call updates the codebooks; the first calls also fit them by k-means, from
    a fixed seed. After `freeze` and in evaluation mode no call updates them; `fit` always does.
    Codebooks stay in float32, and are the same in all processes of torch.distributed.

    Args:
        dim: D, number of channels.
        codewords: m, codewords per codebook: a number, or one per level, coarse first.
        levels: L. Indices take L * log2(m) bits per position.
        linked: number of levels in a group of linked levels; 0 links all, 1 none (residual
            quantization).
        channel_last: input is (B, ..., D), such as (B, N, D); otherwise (B, D, ...), such as (B, D,
            H, W).
        beta: weight of the commitment to the sum of the codewords.
        level_beta: weight of the commitment at each level, if there are several.
        beam: candidates that the search keeps at each level; 1 is the greedy search. The time grows
            with the beam.
        coarse_weight: weight of the coarser levels' squared residuals in a candidate's cost;
            improves coarse outputs.
        decay: decay of all moving averages; 0.99 suits codewords that get only a few vectors per
            batch.
        start_vectors: vectors in the k-means start; None for eight per codeword of the largest
            level, at most 65,536 or 64 MiB, at least 4,096.
        restart_every: training steps (calls) between restarts of dead codewords; 0 for none.
        total_steps: steps (calls) of the whole training, if known; nothing restarts in the last
            tenth.

    Raises:
        InputError: A value is out of its range.
    """

    rows: Tensor  # of a planted tree: the row of each leaf, (S, leaves)
    paths: Tensor  # and the path to each row, (S, K, levels of a stage)

    def __init__(
        self,
        dim: int,
        codewords: int | Sequence[int] = 8,
        levels: int = 3,
        *,
        linked: int = 0,
        channel_last: bool = True,
        beta: float = 0.25,
        level_beta: float = 0.05,
        beam: int = 4,
        coarse_weight: float = 0.1,
        decay: float = 0.95,
        start_vectors: int | None = None,
        restart_every: int = 100,
        total_steps: int | None = None,
    ) -> None:
        super().__init__()
        config = QuantizerConfig(
            dim=dim,
            codewords=codewords if isinstance(codewords, int) else codewords[0],
            level_codewords=() if isinstance(codewords, int) else tuple(codewords),
            levels=levels,
            linked=linked,
            beam=beam,
            joint_beam=linked not in (0, levels),  # one beam through all groups
            beta=beta,
            level_beta=level_beta,
            coarse_weight=coarse_weight,
            decay=decay,
            restart_every=restart_every,
        )
        self.channel_dim = -1 if channel_last else 1
        self.quantizer = ResidualQuantizer(config)

        # without `start_vectors`: eight per codeword of the largest level, within limits
        usual = min(8 * max(config.num_codewords), 65_536, MOST_VALUES // dim)
        self.schedule = CodebookSchedule(start_vectors or max(4_096, usual))
        self.total_steps = total_steps or torch.inf

    @classmethod
    def from_codebook(
        cls, codebook: Tensor, codewords: int = 8, counts: Tensor | None = None, **options: Any
    ) -> TreeVQ:
        """Return a frozen layer, on the CPU, whose leaves are the rows of a trained flat codebook.

        If K is no power of `codewords`, the tree has further leaves, which are never chosen.

        Args:
            codebook: (K, D), or the S stages of residual quantization, (S, K, D). Each stage
                becomes a group of linked levels.
            codewords: codewords per codebook of the tree.
            counts: how often each codeword is used, (K,) or (S, K) (default: equally often).
            options: arguments of the layer (default: `beam=8, coarse_weight=0`).
        """
        *_, num_words, dim = codebook.shape
        stages = codebook.detach().float().cpu().view(-1, num_words, dim)
        depth = 1  # levels per stage
        while codewords**depth < num_words:
            depth += 1
        options = {"beam": 8, "coarse_weight": 0.0, "linked": depth} | options
        layer = cls(dim, codewords, depth * len(stages), **options)
        groups = split_levels(layer.quantizer.levels, depth)
        usage = torch.ones(codebook.shape[:-1]) if counts is None else counts.cpu()
        trees = zip(groups, stages, usage.view(-1, num_words), strict=True)
        marked = torch.stack([plant(*tree) for tree in trees])

        layer.rows = nn.Buffer(marked % num_words)

        # The leaf of each row: a repetition of a row is marked by K more, so it comes after them.
        leaves = marked.argsort()[:, :num_words]
        paths = torch.unravel_index(leaves, [codewords] * depth)
        layer.paths = nn.Buffer(torch.stack(paths, -1))
        layer.schedule.set_steps(1)
        return layer.freeze()

    def leaf_of(self, indices: Tensor) -> Tensor:
        """Return the rows (...) of the planted codebook for indices (..., L); rows (..., S) if
        there are several stages.
        """
        depth = self.paths.shape[-1]
        leaves = self.codeword_indices(indices)[..., depth - 1 :: depth]
        stages = range(len(self.rows))
        return self.rows[stages, leaves[..., stages]].squeeze(-1)

    def indices_of(self, leaf: Tensor) -> Tensor:
        """Return the indices (..., L) of rows of the planted codebook: the inverse of `leaf_of`."""
        stages = range(len(self.paths))
        rows = leaf if len(stages) > 1 else leaf.unsqueeze(-1)
        return self.paths[stages, rows].flatten(-2)

    @torch.no_grad()
    def grow(self, vectors: Tensor, codewords: int = 8) -> TreeVQ:
        """Add a level, fitted by k-means to the residuals of vectors (N, D), and change nothing
        else; return the layer, frozen.

        A single group gets another linked level, several groups a level with one codebook, unless
        the last group is short. A codeword that few vectors choose gets as many children as they
        fill; others are 0.
        """
        config = self.quantizer.config
        is_single_group = config.group_size == config.levels
        deeper = config.replace(
            levels=config.levels + 1,
            level_codewords=(*config.sizes, codewords),
            linked=0 if is_single_group else config.linked,
        )
        grown = ResidualQuantizer(deeper)
        for old, new in zip(self.quantizer.levels, grown.levels, strict=False):
            new.load_state_dict(old.state_dict())
        indices, _, residuals = self.quantizer.descend(vectors)
        level = grown.levels[-1]
        level.initialize(residuals[-1], indices[-1], torch.Generator().manual_seed(0))
        level.codewords[level.count == 0] = 0
        self.quantizer = grown
        return self.freeze()

    def forward(
        self, features: Tensor, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Quantize features; in training mode, update the codebooks.

        Args:
            features: (B, ..., D) of any floating type, or (B, D, ...) without `channel_last`.
            mask: bool (B, ...). Positions with False are left out of the codebooks and the loss.
                Their output is zero and their indices are -1.

        Returns:
            Quantized features in the shape and type of the input, with a straight-through gradient;
            indices (B, ..., L) int64; and the loss, a float32 scalar: the commitment terms, each a
            mean over all unmasked values.

        Raises:
            InputError: Wrong number of channels, on a CPU. On a GPU torch raises its own error.
            NonFiniteError: A feature is NaN or infinite. On a GPU the loss is NaN instead.
        """
        inputs = features.movedim(self.channel_dim, -1)  # (B, ..., D)
        positions = inputs.shape[:-1]
        vectors = inputs.flatten(0, -2) if mask is None else inputs[mask]
        quantize: Callable[[Tensor], Quantized] = self.quantizer
        if self.training and not self.quantizer.frozen:
            quantize = self._learn
            if torch.compiler.is_compiling():  # the update depends on the step number
                quantize = torch.compiler.disable(quantize)  # type: ignore[no-untyped-call]
        result = quantize(vectors)
        terms = torch.stack([*result.losses.values()])  # sums over all values
        loss = terms.sum() / max(1, vectors.numel())

        def restore_positions(values: Tensor, padding: int) -> Tensor:
            """Return values (N, ...) in the positions of the input, with padding where the mask is
            False.
            """
            shape = (*positions, values.shape[-1])
            if mask is None:
                return values.view(shape)
            padded = values.new_full(shape, padding)
            return padded.masked_scatter(mask.unsqueeze(-1), values)

        quantized = restore_positions(result.latents.to(features.dtype), 0)
        indices = restore_positions(torch.stack(result.codes, -1), PADDING)
        return quantized.movedim(-1, self.channel_dim), indices, loss

    def _learn(self, vectors: Tensor) -> Quantized:
        """Quantize vectors (N, D) and update the codebooks; fit them first and restart dead
        codewords last, if due.
        """
        schedule = self.schedule
        quantizer = self.quantizer
        steps = schedule.steps
        batch = vectors.detach().float()

        # the start, or one more batch for it
        if steps == 0:
            quantizer.descend(batch)  # raises what the search raises, before anything changes
            start = schedule.collect(batch)
            if start is not None:
                sample, weight = start
                with torch.device("cpu"), track_moves(quantizer):
                    quantizer.initialize(sample, torch.Generator().manual_seed(0), weight)
                if len(sample) == schedule.start_vectors:
                    # last, so that a start that is interrupted is made again
                    schedule.set_steps(1)
        result: Quantized = quantizer(vectors)

        # restarts, on a batch of all processes
        if steps:
            if restart_due(steps, quantizer.config.restart_every, steps / self.total_steps):
                gathered = distributed.all_gather(batch)
                with torch.device("cpu"), track_moves(quantizer):
                    quantizer.restart_dead_codes(gathered, torch.Generator().manual_seed(steps))
            schedule.set_steps(steps + 1)
        return result

    def freeze(self) -> TreeVQ:
        """Keep the codebooks unchanged in training mode too; return the layer."""
        self.quantizer.frozen = True
        return self

    def unfreeze(self) -> TreeVQ:
        """Undo `freeze`; return the layer."""
        self.quantizer.frozen = False
        return self

    def fit(self, vectors: Vectors, *, passes: int = 10, seed: int = 0) -> TreeVQ:
        """Fit the codebooks to an array or to batches, in any mode; return the layer.

        First, k-means fits the codebooks to `start_vectors` random vectors. Each pass over all
        vectors is then a step of Lloyd's algorithm with the layer's own search. On a CPU, equal
        batches and seeds give equal codebooks. Of several processes each fits its own layer: load
        the state of one in all.

        Args:
            vectors: array or tensor (N, D) of a floating type, which may be memory-mapped, or a
                collection of them that can be iterated several times.
            passes: number of passes over all vectors.
            seed: random seed.

        Raises:
            InputError: There are no vectors, they have a wrong shape or type, or they are an
                iterator.
            NonFiniteError: A value is NaN or infinite.
        """
        if isinstance(vectors, Iterator):
            raise InputError("vectors are an iterator, which ends after one pass; give a list")
        with torch.device("cpu"):  # whatever the default is
            fit(self.quantizer, vectors, self.schedule.start_vectors, passes, seed)
        self.schedule.set_steps(1)
        return self

    def encode(self, vectors: Vectors) -> Tensor:
        """Return the indices of vectors, (N, L) int64 on the CPU. Takes the vectors of `fit`, also
        as an iterator.
        """
        device = self.quantizer.levels[0].count.device
        indices = []
        for chunk in batches_of(vectors, self.quantizer.config.dim):
            codes = self.quantizer.encode(chunk.to(device))
            indices.append(torch.stack(codes, -1).cpu())
        return torch.cat(indices)

    def unique_indices(self, vectors: Vectors) -> Tensor:
        """Return unique indices for the vectors of items, (N, L) int64 on the CPU.

        A leaf is a choice of one codeword at every level. Items alone in their leaf keep it. The
        others get free leaves near them; the sum of all squared errors is nearly as small as
        possible. Takes the vectors of `fit`, and an empty array too. Raises as `fit` does, and
        InputError for more vectors than leaves.
        """
        with torch.device("cpu"):
            items = torch.cat([*batches_of(vectors, self.quantizer.config.dim)])
            return unique_indices(self.quantizer, items, self.encode(items))

    def valid_next(self, prefixes: Tensor, indices: Tensor) -> Tensor:
        """Return which next indices (..., m) continue prefixes (..., l) to a row of `indices`
        (..., L), as in constrained decoding: bool.
        """
        levels = prefixes.shape[-1] + 1
        *coarser, size = self.quantizer.config.sizes[:levels]
        first_child = number_of(prefixes, coarser) * size
        children = first_child.unsqueeze(-1) + torch.arange(size, device=prefixes.device)
        existing = number_of(indices[..., :levels], [*coarser, size])
        return torch.isin(children, existing.to(children.device))

    def get_output_from_indices(self, indices: Tensor) -> Tensor:
        """Return the sum of the codewords for indices (..., l) of the first l levels, float32; zero
        where all are -1.

        Indices may be on any device. Raises InputError if the number of levels is wrong, or another
        index is not in [0, m).
        """
        indices = indices.to(self.quantizer.levels[0].count.device).long()
        padding = (indices == PADDING).all(-1, keepdim=True)
        codes = indices.masked_fill(padding, 0).unbind(-1)
        check_codes(codes, self.quantizer.config.sizes)
        return self.quantizer.lookup(codes).masked_fill(padding, 0).movedim(-1, self.channel_dim)

    def codeword_indices(self, indices: Tensor) -> Tensor:
        """Return, for indices (B, ..., l), the index of each codeword among all codewords of its
        level; -1 for -1. Values are not checked.
        """
        codes = indices.long().clamp(min=0).unbind(-1)
        codewords = torch.stack(self.quantizer.codeword_indices(codes), -1)
        return codewords.masked_fill(indices == PADDING, PADDING)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> TreeVQ:
        """Move to another device, but keep all types: counts in bfloat16 would stop at 256."""

        def move(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        super()._apply(move, recurse)  # type: ignore[no-untyped-call]
        return self
