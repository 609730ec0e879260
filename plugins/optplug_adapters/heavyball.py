"""The optimizers of heavyball, which compiles its steps by torch.compile."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from optplug import OptimizerSpec, hookimpl
from optplug_adapters.packages import NO_EMPTY_TENSOR, Entry, entry, optimizers

_OPTIONS: dict[str, Any] = {
    "consume_grad": True,
    "fallback_to_finite_differences": True,
    "finite_differences": False,
    "hessian_approx": False,
    "hvp_interval": 1,
}
"""The arguments that the classes read from `**kwargs`, with their defaults."""

# Shapes of parameters that the preconditioners accept.
_NOT_SCALAR: dict[str, Any] = {"shapes": ((3, 4), (5,), (0,))}
_NEITHER: dict[str, Any] = {"shapes": ((3, 4), (5,))}


@hookimpl
def optplug_optimizers() -> list[OptimizerSpec]:
    return optimizers("heavyball", *_elementwise(), *_orthogonal(), *_preconditioned(), *_wrappers())


def _elementwise() -> list[Entry]:
    return [
        _entry("AdamC", "AdamW with a weight decay in proportion to the learning rate"),
        _entry("AdamW", "Adam with decoupled weight decay"),
        _entry("AdEMAMix", "Adam with a second, slower momentum"),
        _entry("ADOPT", "Adam with the second moment of the previous step"),
        _entry("HyperBallAdamW", "AdamW that keeps the norm of matrices", name="hyperball_adamw"),
        _entry("LaProp", "momentum of gradients that RMSprop has scaled"),
        _entry("MSAMLaProp", "RMSprop with sharpness-aware momentum", "modes", name="msam_laprop"),
        _entry("NAdam", "Adam with Nesterov momentum"),
        _entry("RMSprop", "step size from a running average of squared gradients"),
        _entry("SFAdamW", "schedule-free AdamW", "modes", name="sf_adamw"),
        _entry("SGD", "SGD with momentum"),
        _entry("SignLaProp", "sign of the update of LaProp", name="sign_laprop"),
        _entry("UnscaledAdamW", "AdamW without bias correction of the second moment", name="unscaled_adamw"),
    ]


def _orthogonal() -> list[Entry]:
    return [
        _entry("LaPropOrtho", "LaProp with updates orthogonal to the parameter", name="laprop_ortho"),
        _entry("Muon", "orthogonalized momentum"),
        _entry("MuonAdamW", "Muon for matrices, AdamW for vectors", name="muon_adamw"),
        _entry("MuonLaProp", "LaProp with orthogonalized updates", name="muon_laprop"),
        _entry("OrthoLaProp", "LaProp with gradients orthogonal to the parameter", name="ortho_laprop"),
        _entry("Scion", "steps of fixed norm, which is spectral for matrices"),
    ]


def _preconditioned() -> list[Entry]:
    shampoo = [
        ("KLShampoo", "Shampoo with factors from the KL divergence", "kl_shampoo"),
        ("KLSOAP", "SOAP with factors from the KL divergence", "kl_soap"),
        ("SOAP", "Adam in the eigenbasis of Shampoo", "soap"),
        ("SOAPAdEMAMix", "AdEMAMix in the eigenbasis of Shampoo", "soap_ademamix"),
        ("SOAPNAdam", "NAdam in the eigenbasis of Shampoo", "soap_nadam"),
        ("SOLP", "LaProp in the eigenbasis of Shampoo", "solp"),
    ]
    return [
        *(_entry(cls, summary, name=name, **_NOT_SCALAR) for cls, summary, name in shampoo),
        *(
            _entry(f"Heavy{cls}", f"{summary}, with sorted eigenvectors", name=f"heavy_{name}", **_NOT_SCALAR)
            for cls, summary, name in shampoo
        ),
        _entry("LATHER", "Adam in the eigenbasis of PSGD", shapes=NO_EMPTY_TENSOR),
        _entry("PSGDKron", "preconditioned SGD with Kronecker factors", name="psgd_kron", shapes=NO_EMPTY_TENSOR),
        _entry("PSGDLRA", "preconditioned SGD of low rank", name="psgd_lra", build=_with_rank, **_NEITHER),
        _entry("PSGDPRO", "PSGDKron with Procrustes updates of the factors", name="psgd_pro", shapes=NO_EMPTY_TENSOR),
        _entry("QSGD", "PSGDPRO with one factor of the preconditioner in the update", shapes=NO_EMPTY_TENSOR),
        _entry("SUDSAdamW", "AdamW with a preconditioner of rank one", name="suds_adamw", shapes=NO_EMPTY_TENSOR),
    ]


def _wrappers() -> list[Entry]:
    return [
        entry(
            "SAMWrapper",
            "sharpness-aware minimization (ASAM) around an optimizer of heavyball",
            *("closure", "modes"),
            name="sam_wrapper",
            target="optplug_adapters.heavyball_sam:SAMWrapper",
            base="wrapped_optimizer",
            cases=({"base": "unscaled_adamw"},),
        ),
        entry(
            "SplitOpt",
            "several optimizers of heavyball as one",
            name="split_opt",
            unsupported="it takes optimizer classes: give a list of optimizers in the configuration instead",
        ),
    ]


def _entry(cls: str, summary: str, *capabilities: str, **fields: Any) -> Entry:
    return entry(cls, summary, *capabilities, arguments=_OPTIONS, **fields)


def _with_rank(cls: type, params: Any, *, rank: int | None = None, **arguments: Any) -> Any:
    """Build PSGDLRA with its default rank, which the class cannot compute for parameter groups."""
    params = list(params)
    if rank is None:
        tensors = [p for item in params for p in (item["params"] if isinstance(item, Mapping) else [item])]
        rank = max(1, round(math.log2(sum(p.numel() for p in tensors))))
    return cls(params, rank=rank, **arguments)
