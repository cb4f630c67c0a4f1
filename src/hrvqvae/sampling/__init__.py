"""New codes from priors: the cached samplers, and the plain one that they must agree with."""

from hrvqvae.sampling.draw import Draw
from hrvqvae.sampling.hierarchy import Known, Sampler, draw_labels, sample_cached, sample_codes
from hrvqvae.sampling.plain import sample_plain

__all__ = ["Draw", "Known", "Sampler", "draw_labels", "sample_cached", "sample_codes", "sample_plain"]
