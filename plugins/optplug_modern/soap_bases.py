"""The factors of SOAP's preconditioner, their eigenvectors, and rotations to and from these.

All functions take stacks: the first dimension of each tensor is the batch of parameters. A factor without elements
stands for the identity.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from optplug.ops import matrix


def left_shape(shape: Sequence[int], options: Mapping[str, Any]) -> tuple[int, ...]:
    """Return the shape of the left factor: one square matrix with the rows of each matrix of the parameter."""
    rows = shape[0] if options["flatten"] else shape[-2]
    return _square(shape, rows, options)


def right_shape(shape: Sequence[int], options: Mapping[str, Any]) -> tuple[int, ...]:
    """Return the shape of the right factor: one square matrix with the columns of each matrix of the parameter."""
    columns = torch.Size(shape[1:]).numel() if options["flatten"] else shape[-1]
    return _square(shape, columns, options)


def _square(shape: Sequence[int], size: int, options: Mapping[str, Any]) -> tuple[int, ...]:
    size = size if size <= options["max_precondition_dim"] else 0
    return (*(() if options["flatten"] else shape[:-2]), size, size)


def _as_matrices(x: Tensor, *, flatten: bool) -> Tensor:
    return x.flatten(2) if flatten else x


def _multiply(x: Tensor, left: Tensor, right: Tensor) -> Tensor:
    x = left @ x if left.numel() else x
    return x @ right if right.numel() else x


@matrix
def rotate(x: Tensor, left_basis: Tensor, right_basis: Tensor, *, flatten: bool) -> Tensor:
    """Return the coordinates of matrices in the bases."""
    return _multiply(_as_matrices(x, flatten=flatten), left_basis.mT, right_basis).reshape(x.shape)


@matrix
def rotate_back(x: Tensor, left_basis: Tensor, right_basis: Tensor, *, flatten: bool) -> Tensor:
    """Return the matrices with these coordinates in the bases."""
    return _multiply(_as_matrices(x, flatten=flatten), left_basis, right_basis.mT).reshape(x.shape)


@matrix
def update_factor(factor: Tensor, g: Tensor, weight: float, *, flatten: bool, side: str) -> Tensor:
    """Return the running average of gg' (`side="left"`) or g'g (`"right"`)."""
    g = _as_matrices(g, flatten=flatten)
    product = g @ g.mT if side == "left" else g.mT @ g
    return torch.lerp(factor, product.to(factor.dtype), weight) if factor.numel() else factor


@matrix
def new_basis(basis: Tensor, factor: Tensor, step: float, frequency: float) -> Tensor:
    """Return the eigenvectors of a factor.

    The first step computes them. Later they are updated, in every `frequency`-th step, by one step of power iteration,
    in the order from the largest eigenvalue to the smallest.
    """
    if not factor.numel() or (step and step % frequency):
        return basis
    if not step:
        return _eigenvectors(factor)
    power = torch.take_along_dim(factor @ basis, _order(factor, basis).unsqueeze(-2), -1)
    basis, _ = torch.linalg.qr(_at_least_float32(power))
    return basis


@matrix
def reorder(
    exp_avg_sq: Tensor,
    left: Tensor,
    left_basis: Tensor,
    right: Tensor,
    right_basis: Tensor,
    step: float,
    frequency: float,
    *,
    flatten: bool,
) -> Tensor:
    """Move the second moments with the eigenvectors to which they belong, where `new_basis` sorts these anew."""
    if not step or step % frequency:
        return exp_avg_sq
    moments = _as_matrices(exp_avg_sq, flatten=flatten)
    if left.numel():
        moments = torch.take_along_dim(moments, _order(left, left_basis).unsqueeze(-1), -2)
    if right.numel():
        moments = torch.take_along_dim(moments, _order(right, right_basis).unsqueeze(-2), -1)
    return moments.reshape(exp_avg_sq.shape)


def _order(factor: Tensor, basis: Tensor) -> Tensor:
    """Return the order of the basis vectors from the largest estimated eigenvalue to the smallest."""
    return torch.argsort((basis * (factor @ basis)).sum(-2), dim=-1, descending=True)


def _eigenvectors(factor: Tensor) -> Tensor:
    """Return the eigenvectors of symmetric matrices in the columns; NaN for matrices that are not finite."""
    wide = _at_least_float32(factor)
    is_finite = wide.isfinite().all(-1).all(-1)[..., None, None]
    identity = torch.eye(wide.shape[-1], dtype=wide.dtype, device=wide.device)
    vectors = torch.linalg.eigh(torch.where(is_finite, wide, identity)).eigenvectors
    return torch.where(is_finite, vectors, torch.nan)


def _at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
