"""Closed-form repairs that a cut gets before any training. Each is a function of tensors alone.

Letters of shapes: H hidden, D kept hidden, C channels of a projection's input, K kept channels, V vocabulary.
"""

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from foundry.engine.prune.symmetric import Symmetric

_ROWS = 512
"""Of a matrix that are worked on at a time."""


def refit(weight_HC: Tensor, gram: Symmetric, kept_K: Sequence[int], *, damping: float = 1e-3) -> Tensor:
    """The output projection on the kept channels that best imitates the whole one on the calibration text.

    Minimises E|W x - W' x_K|^2 + lambda |W' - W[:,K]|^2, so that what the text says nothing about stays as it was:
    W' = W[:,K] + W[:,R] C[R,K] (C[K,K] + lambda I)^-1 with C = E[x x^T], the `gram` [C, C], and R the channels that go;
    lambda is `damping` times the mean of C[K,K]'s diagonal. `kept_K` ascends. Returns [H, K] in float32. Keeping every
    channel returns W itself.
    """
    device = weight_HC.device
    kept_HK = weight_HC[:, torch.tensor(kept_K, device=device)].float()
    if len(kept_K) == weight_HC.shape[1]:
        return kept_HK
    gone_R = sorted(set(range(weight_HC.shape[1])).difference(kept_K))
    # Of a large layer each of these matrices takes gigabytes, so none is made twice, and what is solved is overwritten.
    inner_KK, cross_KR = gram.parts(kept_K, gone_R)
    ridge = damping * float(inner_KK.diagonal().mean())
    if not ridge:  # channels that the text never used, as of an expert that no token reached
        return kept_HK
    right_HK = weight_HC[:, torch.tensor(gone_R, device=device)].float() @ cross_KR.T
    del cross_KR
    change_KH = _solved(inner_KK, ridge, right_HK.mT)
    if change_KH is None:  # sums of very unequal channels may have left it not positive definite
        del inner_KK
        inner_KK = gram.parts(kept_K, [])[0].double()
        inner_KK.diagonal().add_(ridge)
        change_KH = torch.linalg.solve(_mirrored(inner_KK), right_HK.mT.double()).float()
    return kept_HK.add_(change_KH.mT)


def _solved(inner_KK: Tensor, ridge: float, right_KH: Tensor) -> Tensor | None:
    """(C[K,K] + ridge I)^-1 right by Cholesky in place: both are overwritten. None where there is no factor.

    In float32, as the sums in C are: the ridge keeps the condition number under K / damping.
    """
    inner_KK.diagonal().add_(ridge)
    lower_KK = inner_KK.mT  # what is above the diagonal, as LAPACK lays out what is below it
    failed = torch.empty((), dtype=torch.int32, device=lower_KK.device)
    torch.linalg.cholesky_ex(lower_KK, out=(lower_KK, failed))
    if failed:
        return None
    torch.linalg.solve_triangular(lower_KK, right_KH, upper=False, out=right_KH)
    torch.linalg.solve_triangular(lower_KK.mT, right_KH, upper=True, out=right_KH)
    return right_KH


def _mirrored(upper_KK: Tensor) -> Tensor:
    """What is above the diagonal, below it too, in place."""
    for start in range(0, len(upper_KK), _ROWS):
        stop = start + _ROWS
        block_PP = upper_KK[start:stop, start:stop]
        block_PP.copy_(block_PP.triu() + block_PP.triu(1).mT)
        upper_KK[stop:, start:stop] = upper_KK[start:stop, stop:].mT
    return upper_KK


def ordered_axes(covariances: Iterable[Tensor], *, centred: bool) -> Tensor:
    """Orthonormal columns [H, H] in float64, those first that carry most of the residual stream.

    Each norm divides its input by its length, so each covariance counts with its trace taken out: otherwise the layers
    with the largest activations would decide alone. `centred` covariances leave out the stream's mean over its
    dimensions; its direction comes last, also where the stream spans too few dimensions to fill the axes.
    """
    total_HH, count = None, 0
    for covariance_HH in covariances:  # one at a time: together they may be larger than memory
        total_HH = torch.zeros_like(covariance_HH, dtype=torch.float64) if total_HH is None else total_HH
        total_HH.add_(covariance_HH.double().div_(covariance_HH.diagonal().sum(dtype=torch.float64)))
        count += 1
    assert total_HH is not None
    mean_HH = total_HH.div_(count)
    _, vectors_HH = torch.linalg.eigh(mean_HH - 1 / len(mean_HH) if centred else mean_HH)
    axes_HH = vectors_HH.flip(dims=[1])
    # An eigenvector's sign is arbitrary and differs between linear algebra libraries: fix it by the largest entry.
    largest = axes_HH.abs().argmax(dim=0, keepdim=True)
    signed_HH: Tensor = axes_HH * axes_HH.gather(0, largest).sign()
    return signed_HH


def principal_axes(axes_HH: Tensor, keep: int) -> Tensor:
    """The `keep` directions that carry most of the residual stream, as orthonormal columns [H, D]."""
    return axes_HH[:, :keep].float()


def mean_free_axes(axes_HH: Tensor, keep: int) -> Tensor:
    """Principal axes for a stream that layer norms read, as orthonormal columns [H, D].

    A layer norm subtracts the mean over its input's dimensions, so the mean of the teacher's stream reaches no reader
    and is left out: D - 1 principal axes of the centred covariances carry all that matters. They are laid into D
    dimensions at a right angle to (1, ..., 1), so that the student's stream has no mean and its layer norm, which
    subtracts one, changes nothing. (SliceGPT, 2401.15024, turns layer norms into RMS norms instead, which is another
    model class.)
    """
    inside_HD = axes_HH[:, : keep - 1]
    basis_DD = torch.eye(keep, dtype=torch.float64, device=inside_HD.device)
    basis_DD[:, 0] = 1.0
    free_DD = torch.linalg.qr(basis_DD)[0][:, 1:]  # a basis of what is at a right angle to the first column
    laid_HD: Tensor = inside_HD @ free_DD.T
    return laid_HD.float()


def kept_energy(covariance: Symmetric, axes_HD: Tensor) -> float:
    """The share of the stream's energy inside the kept directions, 0..1."""
    inside, whole = covariance.inside(axes_HD)
    return float(inside / whole)


def norm_gain(energy: float, hidden: int, kept: int) -> float:
    """The factor on an RMS norm's weight that makes up for the dimensions cut from its mean: sqrt(rho H / D).

    A norm over fewer dimensions divides by another length; rho is the share of energy kept. (SliceGPT, 2401.15024,
    keeps the old dimension in the mean instead, which no stock runtime can.)
    """
    return math.sqrt(energy * hidden / kept)


def post_norm_gain(covariance: Symmetric, weight_H: Tensor, axes_HD: Tensor) -> float:
    """The weight of a norm behind a writer when the norm's own weights have moved into the writer.

    The teacher gives g y / rms(y), the student z / rms(z) times this, with z = g y on the kept axes: the mean ratio of
    the two lengths, sqrt((tr C_z / D) / (tr C_y / H)), from the covariance of y.
    """
    hidden, kept = axes_HD.shape
    inside, whole = covariance.inside(weight_H[:, None] * axes_HD)
    return math.sqrt(float(inside / kept / (whole / hidden)))


def nearest_input(matrix_OD: Tensor, wanted_O: Tensor) -> Tensor:
    """The input [D] whose product with the matrix comes nearest to `wanted_O`, by the normal equations."""
    matrix = matrix_OD.double()
    square_DD = matrix.T @ matrix
    square_DD += (
        1e-6 * square_DD.diagonal().mean() * torch.eye(len(square_DD), dtype=matrix.dtype, device=matrix.device)
    )
    solved_D: Tensor = torch.linalg.solve(square_DD, matrix.T @ wanted_O.double())
    return solved_D.float()


class TiedEnds:
    """One matrix for both ends, and the final norm's weight, when a rotation has made the ends differ.

    Column by column, the scale is the least-squares match of head to embedding; the shared matrix is the mean of the
    embedding and of the head divided by that scale. A column whose scale vanishes keeps the embedding's. The ends come
    a few rows of the vocabulary at a time, for the scale and again for the matrix.
    """

    def __init__(self, ends: Iterable[tuple[Tensor, Tensor]]) -> None:
        """`ends` are pieces of both matrices, each [rows, D]."""
        products_D, squares_D = torch.zeros(1), torch.zeros(1)
        for embedding_VD, head_VD in ends:
            products_D = (head_VD * embedding_VD).double().sum(dim=0) + products_D.to(head_VD.device)
            squares_D = embedding_VD.double().square().sum(dim=0) + squares_D.to(head_VD.device)
        self.scale_D: Tensor = (products_D / squares_D.clamp_min(1e-12)).float()
        self._usable_D: Tensor = self.scale_D.abs() > 1e-3 * self.scale_D.abs().mean()

    def shared(self, embedding_VD: Tensor, head_VD: Tensor) -> Tensor:
        """These rows of the shared matrix."""
        safe_D = torch.where(self._usable_D, self.scale_D, torch.ones_like(self.scale_D))
        return torch.where(self._usable_D, (embedding_VD + head_VD / safe_D) / 2, embedding_VD)
