"""Closed-form repairs that a cut gets before any training. Each is a function of tensors alone.

Letters of shapes: H hidden, D kept hidden, C channels of a projection's input, K kept channels, V vocabulary.
"""

import math

import torch
from torch import Tensor


def refit(weight_HC: Tensor, gram_CC: Tensor, kept_K: Tensor, *, damping: float = 1e-3) -> Tensor:
    """The output projection on the kept channels that best imitates the whole one on the calibration text.

    Minimises E|W x - W' x_K|^2, whose solution is W' = W C[:,K] (C[K,K] + lambda I)^-1 with C = E[x x^T]; lambda is
    `damping` times the mean of C[K,K]'s diagonal. Returns [H, K] in float32. Keeping every channel returns W itself.
    """
    if len(kept_K) == weight_HC.shape[1]:
        return weight_HC.float()
    gram = gram_CC.double()
    inner_KK = gram[kept_K][:, kept_K]
    inner_KK += damping * inner_KK.diagonal().mean() * torch.eye(len(kept_K), dtype=gram.dtype, device=gram.device)
    cross_KH = gram[kept_K] @ weight_HC.to(gram).T
    solved_KH: Tensor = torch.linalg.solve(inner_KK, cross_KH)
    return solved_KH.T.float()


def principal_axes(covariances: list[Tensor], keep: int) -> Tensor:
    """The `keep` directions that carry most of the residual stream, as orthonormal columns [H, D].

    Each norm divides its input by its length, so each covariance counts with its trace taken out: otherwise the layers
    with the largest activations would decide alone.
    """
    total_HH = torch.zeros_like(covariances[0], dtype=torch.float64)
    for covariance_HH in covariances:
        total_HH += covariance_HH.double() / covariance_HH.double().trace()
    _, vectors_HH = torch.linalg.eigh(total_HH)
    axes_HD = vectors_HH.flip(dims=[1])[:, :keep]
    # An eigenvector's sign is arbitrary and differs between linear algebra libraries: fix it by the largest entry.
    largest = axes_HD.abs().argmax(dim=0, keepdim=True)
    signed_HD: Tensor = axes_HD * axes_HD.gather(0, largest).sign()
    return signed_HD.float()


def kept_energy(covariance_HH: Tensor, axes_HD: Tensor) -> float:
    """The share of the stream's energy inside the kept directions, 0..1."""
    covariance = covariance_HH.double()
    axes = axes_HD.double()
    return float(((covariance @ axes) * axes).sum() / covariance.trace())


def norm_gain(energy: float, hidden: int, kept: int) -> float:
    """The factor on an RMS norm's weight that makes up for the dimensions cut from its mean: sqrt(rho H / D).

    A norm over fewer dimensions divides by another length; rho is the share of energy kept. (SliceGPT, 2401.15024,
    keeps the old dimension in the mean instead, which no stock runtime can.)
    """
    return math.sqrt(energy * hidden / kept)


def retie(embedding_VD: Tensor, head_VD: Tensor) -> tuple[Tensor, Tensor]:
    """One matrix [V, D] for both ends, and the final norm's weight [D], when a rotation has made the ends differ.

    Column by column, the scale is the least-squares match of head to embedding; the shared matrix is the mean of the
    embedding and of the head divided by that scale. A column whose scale vanishes keeps the embedding's.
    """
    scale_D = (head_VD * embedding_VD).sum(dim=0) / embedding_VD.square().sum(dim=0).clamp_min(1e-12)
    usable_D = scale_D.abs() > 1e-3 * scale_D.abs().mean()
    safe_D = torch.where(usable_D, scale_D, torch.ones_like(scale_D))
    shared = torch.where(usable_D, (embedding_VD + head_VD / safe_D) / 2, embedding_VD)
    return shared, scale_D
