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
    return _leading_axes(_mean_covariance(covariances), keep).float()


def _mean_covariance(covariances: list[Tensor]) -> Tensor:
    total_HH = torch.zeros_like(covariances[0], dtype=torch.float64)
    for covariance_HH in covariances:
        total_HH += covariance_HH.double() / covariance_HH.double().trace()
    return total_HH / len(covariances)


def _leading_axes(covariance_HH: Tensor, keep: int) -> Tensor:
    _, vectors_HH = torch.linalg.eigh(covariance_HH)
    axes_HD = vectors_HH.flip(dims=[1])[:, :keep]
    # An eigenvector's sign is arbitrary and differs between linear algebra libraries: fix it by the largest entry.
    largest = axes_HD.abs().argmax(dim=0, keepdim=True)
    signed_HD: Tensor = axes_HD * axes_HD.gather(0, largest).sign()
    return signed_HD


def mean_free_axes(covariances: list[Tensor], keep: int) -> Tensor:
    """Principal axes for a stream that layer norms read, as orthonormal columns [H, D].

    A layer norm subtracts the mean over its input's dimensions, so the mean of the teacher's stream reaches no reader
    and is left out: D - 1 principal axes of the centred covariances carry all that matters. They are laid into D
    dimensions at a right angle to (1, ..., 1), so that the student's stream has no mean and its layer norm, which
    subtracts one, changes nothing. (SliceGPT, 2401.15024, turns layer norms into RMS norms instead, which is another
    model class.)
    """
    total_HH = _mean_covariance(covariances)
    # The direction of the mean must come last, also where the stream spans too few dimensions to fill the axes.
    inside_HD = _leading_axes(total_HH - 1 / len(total_HH), keep - 1)
    basis_DD = torch.eye(keep, dtype=torch.float64, device=inside_HD.device)
    basis_DD[:, 0] = 1.0
    free_DD = torch.linalg.qr(basis_DD)[0][:, 1:]  # a basis of what is at a right angle to the first column
    laid_HD: Tensor = inside_HD @ free_DD.T
    return laid_HD.float()


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


def post_norm_gain(covariance_HH: Tensor, weight_H: Tensor, axes_HD: Tensor) -> float:
    """The weight of a norm behind a writer when the norm's own weights have moved into the writer.

    The teacher gives g y / rms(y), the student z / rms(z) times this, with z = g y on the kept axes: the mean ratio of
    the two lengths, sqrt((tr C_z / D) / (tr C_y / H)), from the covariance of y.
    """
    covariance = covariance_HH.double()
    hidden, kept = axes_HD.shape
    scaled_HD = weight_H.double()[:, None] * axes_HD.double()
    inside = ((covariance @ scaled_HD) * scaled_HD).sum()
    return math.sqrt(float(inside / kept / (covariance.trace() / hidden)))


def nearest_input(matrix_OD: Tensor, wanted_O: Tensor) -> Tensor:
    """The input [D] whose product with the matrix comes nearest to `wanted_O`, by the normal equations."""
    matrix = matrix_OD.double()
    square_DD = matrix.T @ matrix
    square_DD += (
        1e-6 * square_DD.diagonal().mean() * torch.eye(len(square_DD), dtype=matrix.dtype, device=matrix.device)
    )
    solved_D: Tensor = torch.linalg.solve(square_DD, matrix.T @ wanted_O.double())
    return solved_D.float()


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
