"""The optimizers and learning-rate schedulers of pytorch_optimizer."""

from collections.abc import Iterable
from typing import Any

from optplug import OptimizerSpec, SchedulerSpec, hookimpl
from optplug.errors import ConfigError
from optplug_adapters.packages import NO_EMPTY_TENSOR, Entry, entry, optimizers, schedulers

_PLAIN_STATE = "optplug_adapters.pytorch_optimizer_state:build"
"""The function that builds an optimizer whose state has objects, so that its checkpoints are plain data."""


@hookimpl
def optplug_optimizers() -> list[OptimizerSpec]:
    return optimizers("pytorch_optimizer", *_optimizers(), *_muons(), *_wrappers(), source="optimizer/__init__.py")


def _optimizers() -> list[Entry]:
    """Return the optimizers that take parameters alone."""
    debias, adanorm = _options("adam_debias"), _options("adam_debias", "adanorm")
    cautious, stable = _options("cautious"), _options("cautious", "stable_adamw")
    return [
        entry("A2Grad", "accelerated SGD with an adaptive step size"),
        entry("ADOPT", "Adam that scales a gradient by those before it", "complex", arguments=stable),
        entry("APOLLO", "AdamW whose scale comes from a projection of low rank", "complex", build=_PLAIN_STATE),
        entry("ASGD", "SGD with a step size from estimates of the gradient's norm", "complex"),
        entry("AccSGD", "SGD with long and short steps", "complex"),
        entry("AdEMAMix", "Adam with a fast and a slow average", arguments=stable),
        entry("AdaBelief", "Adam with the gradient's deviation from its average", "complex", arguments=adanorm),
        entry("AdaBound", "Adam with bounds that become a learning rate of SGD", "complex", arguments=debias),
        entry("AdaDelta", "step size from the ratio of past updates to past gradients", "complex"),
        entry("AdaFactor", "adaptive steps with factored second moments", arguments=cautious),
        entry("AdaGC", "Adam with clipping by the average norm of each gradient"),
        entry("AdaHessian", "Adam with estimates of the Hessian's diagonal", "create_graph", arguments=debias),
        entry("AdaMax", "Adam with the infinity norm", "complex", arguments=adanorm),
        entry("AdaMod", "Adam with bounds from averages of the step size", "complex", arguments=debias),
        entry("AdaNorm", "Adam that raises small gradients to their average norm", arguments=debias),
        entry("AdaPNM", "Adam with positive and negative momentum", "complex", arguments=adanorm),
        entry(
            "AdaShift",
            "Adam whose second moment uses earlier gradients",
            target="optplug_adapters.pytorch_optimizer_classes:AdaShift",
            arguments=cautious,
            build=_PLAIN_STATE,
        ),
        entry("AdaSmooth", "step size with a window from the ratio of progress to movement", "complex"),
        entry("AdaTAM", "Adam with a momentum damped by its angle to the gradient"),
        entry("Adai", "adaptive momentum", shapes=NO_EMPTY_TENSOR, arguments=_options("use_gc")),
        entry("Adalite", "Adam with factored second moments and a trust ratio"),
        entry("AdamC", "AdamW with a corrected weight decay", arguments=_options("normalized")),
        entry("AdamG", "Adam that estimates its step size", "complex"),
        entry("AdamMini", "Adam with one learning rate for each block of parameters", "module", name="adam_mini"),
        entry(
            "AdamP",
            "Adam without the radial part of the update",
            "complex",
            arguments=cautious | adanorm | _options("use_gc"),
        ),
        entry("AdamS", "Adam with a stable weight decay", shapes=NO_EMPTY_TENSOR, arguments=adanorm),
        entry("AdamWSN", "AdamW with one second moment for each subset", name="adamw_sn", arguments=_options("sn")),
        entry(
            "Adan",
            "Nesterov momentum with the change of the gradient",
            "complex",
            arguments=_options("adanorm", "use_gc"),
        ),
        entry("AggMo", "SGD with several momentum buffers", "complex", cases=({}, {"betas": (0.0, 0.9)})),
        entry("Aida", "Adam with mutual projections of gradient and momentum", arguments=adanorm),
        entry(
            "AliG",
            "SGD with a step size from the loss",
            *("closure", "complex"),
            target="optplug_adapters.pytorch_optimizer_classes:AliG",
        ),
        entry("Alice", "Adam in a subspace of low rank"),
        entry("Amos", "Adam with a weight decay from the expected scale of the parameters"),
        entry("Ano", "sign of the momentum times the size of the gradient", "complex"),
        entry("ApolloDQN", "quasi-Newton method with a diagonal Hessian", "complex", name="apollo_dqn"),
        entry("AvaGrad", "Adam with delayed adaptation", "complex", shapes=NO_EMPTY_TENSOR, arguments=debias),
        entry("BCOS", "block-coordinate optimal step sizes"),
        entry(
            "BSAM",
            "Bayesian sharpness-aware minimization",
            "gradients_first",
            cases=({"num_data": 100},),
        ),
        entry("CAME", "confidence-guided Adafactor"),
        entry("Conda", "Adam in the column space of the momentum", build=_PLAIN_STATE),
        entry("DASH", "Shampoo with batched blocks"),
        entry("DAdaptAdaGrad", "Adagrad that estimates its step size", "sparse", name="dadapt_adagrad"),
        entry("DAdaptAdam", "Adam that estimates its step size", name="dadapt_adam"),
        entry("DAdaptAdan", "Adan that estimates its step size", name="dadapt_adan"),
        entry("DAdaptLion", "Lion that estimates its step size", name="dadapt_lion"),
        entry("DAdaptSGD", "SGD that estimates its step size", name="dadapt_sgd"),
        entry("DeMo", "decoupled momentum, which processes exchange compressed"),
        entry("DiffGrad", "Adam with a friction from the change of the gradient", "complex", arguments=adanorm),
        entry("DualAdam", "Adam with a decaying part of inverse Adam", "complex", name="dual_adam"),
        entry("EXAdam", "Adam with corrections between the moments", "complex"),
        entry("EmoFact", "Adafactor whose scale follows the loss"),
        entry("EmoLynx", "Lion whose scale follows the loss"),
        entry("EmoNavi", "Adam whose scale follows the loss"),
        entry("FAdam", "Adam as a natural gradient with the diagonal Fisher information"),
        entry("FOCUS", "Signum with an attraction to the average of the parameters", "complex"),
        entry("FTRL", "follow the regularized leader", "complex"),
        entry("Fira", "AdamW with a projection of low rank and the rest of the gradient", build=_PLAIN_STATE),
        entry("FlashAdamW", "AdamW with states of 8 bits", name="flash_adamw"),
        entry("Fromage", "steps relative to the norm of the parameters", "complex"),
        entry("GaLore", "Adam with gradients projected to low rank", build=_PLAIN_STATE),
        entry("Grams", "sign of the gradient times the size of Adam's update", "complex"),
        entry("Gravity", "velocity limited by the largest gradient", shapes=NO_EMPTY_TENSOR),
        entry("GrokFastAdamW", "AdamW that amplifies slow gradients", "complex", name="grokfast_adamw"),
        entry("Kate", "Adagrad without the square root", "complex"),
        entry("Kron", "SGD with a Kronecker-factored preconditioner", shapes=NO_EMPTY_TENSOR),
        entry("LARS", "SGD with a trust ratio for each parameter"),
        entry("LOMO", "SGD within the backward pass", "module", unsupported=_updates_in_backward("sgd")),
        entry("AdaLOMO", "Adafactor within the backward pass", "module", unsupported=_updates_in_backward("adafactor")),
        entry("LaProp", "momentum of normalized gradients", arguments=cautious),
        entry("Lamb", "Adam with a trust ratio for each parameter", "complex", arguments=adanorm),
        entry(
            "Lion",
            "sign of an interpolated momentum",
            "complex",
            arguments=cautious | _options("adanorm", "use_gc"),
        ),
        entry("LoRARite", "preconditioned steps for pairs of LoRA factors", name="lora_rite", shapes=((2, 5), (4, 2))),
        entry("MADGRAD", "dual averaging with a cube root"),
        entry("MARS", "Adam with reduced variance", "complex"),
        entry("MSVAG", "momentum with damping by the variance", "complex"),
        entry("Nero", "relative updates of each neuron"),
        entry("NovoGrad", "Adam with one second moment for each parameter", arguments=debias),
        entry("PAdam", "Adam with a power of the second moment", "complex"),
        entry("PID", "SGD with integral and derivative terms", "complex"),
        entry("PNM", "SGD with positive and negative momentum", "complex"),
        entry("Prodigy", "Adam that estimates its step size"),
        entry("QHAdam", "Adam with quasi-hyperbolic momentum", "complex"),
        entry("QHM", "SGD with quasi-hyperbolic momentum", "complex"),
        entry("RACS", "SGD with scales for rows and columns"),
        entry("RAdam", "Adam with a rectified adaptive learning rate", "complex", arguments=adanorm),
        entry("ROSE", "SGD with scales from the ranges of rows and columns", shapes=NO_EMPTY_TENSOR),
        entry("Ranger", "RAdam with Lookahead and gradient centralization", "complex", arguments=adanorm),
        entry(
            "Ranger21",
            "AdamW with Lookahead, warmup, and a decay at the end",
            length="num_iterations",
            cases=({"num_iterations": 20},),
            shapes=NO_EMPTY_TENSOR,
            arguments=debias,
        ),
        entry("SCION", "steps of a fixed norm, chosen by the shape of the parameter", build=_PLAIN_STATE),
        entry("SCIONLight", "Scion with its momentum in the gradients", name="scion_light", build=_PLAIN_STATE),
        entry("SGDP", "SGD without the radial part of the update", "complex"),
        entry("SGDSaI", "SGD with learning rates from the first gradients", name="sgd_sai"),
        entry("SGDW", "SGD with decoupled weight decay", "complex"),
        entry("SM3", "Adagrad with a state for each row and column"),
        entry("SOAP", "Adam in the eigenbases of Shampoo's preconditioner"),
        entry("SPAM", "Adam with resets of momentum and clipping of spikes"),
        entry("SPlus", "sign descent in the eigenbases of Shampoo's preconditioner", "modes"),
        entry("SRMM", "stochastic regularized majorization-minimization"),
        entry("SWATS", "Adam that becomes SGD", arguments=debias),
        entry("SaRA", "AdamW for the smallest weights"),
        entry("ScalableShampoo", "Shampoo with grafting and blocks", name="scalable_shampoo", build=_PLAIN_STATE),
        entry(
            "ScheduleFreeAdamW",
            "AdamW with averaged iterates instead of a learning rate schedule",
            *("complex", "modes"),
            name="schedule_free_adamw",
            arguments=_options("use_palm"),
        ),
        entry(
            "ScheduleFreeRAdam",
            "RAdam with averaged iterates instead of a learning rate schedule",
            *("complex", "modes"),
            name="schedule_free_radam",
            arguments=_options("use_palm"),
        ),
        entry(
            "ScheduleFreeSGD",
            "SGD with averaged iterates instead of a learning rate schedule",
            *("complex", "modes"),
            name="schedule_free_sgd",
        ),
        entry("Shampoo", "preconditioners for each dimension of a parameter", shapes=((5,), ())),
        entry("SignSGD", "sign of the momentum"),
        entry("SimplifiedAdEMAMix", "AdEMAMix with one average", name="simplified_ademamix"),
        entry("SophiaH", "momentum with estimates of the Hessian's diagonal", "create_graph", name="sophia_h"),
        entry(
            "SpectralSphere",
            "spectral steps on a sphere",
            "matrix_only",
            name="spectral_sphere",
            shapes=((3, 4),),
        ),
        entry("StableAdamW", "AdamW with clipping by the size of the update", "complex", name="stable_adamw"),
        entry("StableSPAM", "SPAM with adaptive normalization", name="stable_spam", shapes=NO_EMPTY_TENSOR),
        entry("TAM", "SGD with a momentum damped by its angle to the gradient"),
        entry("Tiger", "sign of the momentum, with a small state"),
        entry("VSGD", "SGD with a variational estimate of the gradient"),
        entry("Yogi", "Adam with additive changes of the second moment", arguments=debias),
    ]


def _muons() -> list[Entry]:
    """Return the optimizers that mark the groups of matrices with `use_muon`.

    A configuration gives them matrices only, and another optimizer the other parameters.
    """
    summaries = {
        "Muon": "orthogonalized momentum, for matrices of hidden layers",
        "AdaGO": "Muon with the step size of Adagrad",
        "AdaMuon": "Muon with second moments",
        "DistributedMuon": "Muon that divides its work among the processes",
        "MuonClip": "Muon with clipping of the weights of queries and keys",
        "NorMuon": "Muon with second moments of rows",
    }
    names = {"DistributedMuon": "distributed_muon", "MuonClip": "muon_clip"}
    of_muon: dict[str, dict[str, Any]] = {  # arguments that they pass on to Muon
        "DistributedMuon": {"ns_method": "newton_schulz", "ns_reset_steps": (2,)},
        "MuonClip": {"weight_decouple": True},
    }
    return [
        entry(
            cls,
            summary,
            "matrix_only",
            name=names.get(cls, ""),
            shapes=((3, 4), (2, 3, 3)),
            arguments=_options("cautious") | of_muon.get(cls, {}),
            build=_with_use_muon,
        )
        for cls, summary in summaries.items()
    ]


def _wrappers() -> list[Entry]:
    """Return the classes that take another optimizer."""
    return [
        entry("Lookahead", "slow weights that follow another optimizer's", "complex", "sparse", base="optimizer"),
        entry("Magma", "masked updates of another optimizer", base="optimizer"),
        entry("OrthoGrad", "gradients orthogonal to the parameters, for another optimizer", base="optimizer"),
        entry(
            "ScheduleFreeWrapper",
            "averaged iterates of another optimizer",
            *("complex", "modes"),
            name="schedule_free_wrapper",
            base="optimizer",
        ),
        entry("TRAC", "a scale of another optimizer's updates, without a parameter", base="optimizer"),
        entry("SAM", "sharpness-aware minimization", "gradients_first", base="base_optimizer"),
        entry(
            "FriendlySAM",
            "SAM with a perturbation by the noise of the gradient",
            "gradients_first",
            name="friendly_sam",
            base="base_optimizer",
        ),
        entry(
            "LookSAM",
            "SAM that reuses its perturbation",
            "gradients_first",
            name="look_sam",
            base="base_optimizer",
        ),
        entry(
            "GSAM",
            "SAM that also reduces the surrogate gap",
            *("closure", "module"),
            target="optplug_adapters.pytorch_optimizer_classes:GSAM",
            base="base_optimizer",
        ),
        entry(
            "WSAM",
            "SAM with a weight of the sharpness",
            *("closure", "module"),
            base="base_optimizer",
            build=_with_params_of_module,
        ),
        entry(
            "PCGrad",
            "projections of the gradients of several tasks",
            unsupported="it needs the loss of each task: pass them to pc_backward() in a training loop of your own",
        ),
        entry(
            "SafeFP16Optimizer",
            "float32 copies of parameters in half precision",
            name="safe_fp16",
            unsupported="it replaces backward(): use the precision of the trainer, or torch.amp.GradScaler",
        ),
    ]


def _options(*names: str) -> dict[str, Any]:
    """Return options that the classes read from `**kwargs`, by name their defaults."""
    return dict.fromkeys(names, False) | ({"adanorm_r": 0.95} if "adanorm" in names else {})


def _updates_in_backward(similar: str) -> str:
    return f"it updates the parameters in a backward pass of its own, fused_backward(loss, lr): use {similar!r}"


def _with_use_muon(cls: Any, params: Iterable[Any], **arguments: Any) -> Any:
    """Build an optimizer for matrices, whose groups must have the key `use_muon`.

    Raises:
        ConfigError: a parameter has less than two dimensions. Some of the classes would orthogonalize it nevertheless.
    """
    given = list(params)
    groups = given if given and isinstance(given[0], dict) else [{"params": given}]
    listed = [[tensors] if hasattr(tensors := group["params"], "dim") else list(tensors) for group in groups]
    if any(p.dim() < 2 for tensors in listed for p in tensors):
        raise ConfigError(f"{cls.__name__} takes parameters with two or more dimensions only")
    marked = [{**group, "params": tensors, "use_muon": True} for group, tensors in zip(groups, listed, strict=True)]
    return cls(marked, **arguments)


def _with_params_of_module(cls: Any, module: Any, **arguments: Any) -> Any:
    """Build an optimizer that takes the module and the parameters."""
    return cls(module, [p for p in module.parameters() if p.requires_grad], **arguments)


@hookimpl
def optplug_schedulers() -> list[SchedulerSpec]:
    return schedulers("pytorch_optimizer", *_classes(), *_adapted_schedulers(), source="lr_scheduler/__init__.py")


def _classes() -> list[Entry]:
    """Return the classes with the interface of torch's schedulers."""
    return [
        entry(
            "CosineAnnealingWarmupRestarts",
            "warmup and half a cosine from max_lr to min_lr, again and again",
            name="cosine_annealing_warmup_restarts",
            interval="step",
            lengths=("first_cycle_steps", "warmup_steps"),
            cases=({"first_cycle_steps": 4, "warmup_steps": 1, "max_lr": 0.1, "min_lr": 0.01},),
        ),
        entry(
            "REXScheduler",
            "a rational decay from max_lr to min_lr",
            name="rex_scheduler",
            interval="step",
            length="total_steps",
            cases=({"total_steps": 6, "max_lr": 0.1},),
        ),
    ]


def _adapted_schedulers() -> list[Entry]:
    """Return the classes without `state_dict`, and the functions, with adapter classes."""
    module = "optplug_adapters.pytorch_optimizer_schedulers"
    summaries = {
        "CosineScheduler": "warmup and half a cosine from max_lr to min_lr",
        "LinearScheduler": "warmup and a linear decay from max_lr to min_lr",
        "PolyScheduler": "warmup and a power of the number of steps",
    }
    classes = [
        entry(
            cls,
            summary,
            name=cls.lower().replace("scheduler", "_scheduler"),
            target=f"{module}:{cls}",
            interval="step",
            length="t_max",
            lengths=("warmup_steps",),
            cases=({"t_max": 6, "max_lr": 0.1, "warmup_steps": 2},),
        )
        for cls, summary in summaries.items()
    ]
    return [
        *classes,
        entry(
            "get_chebyshev_schedule",
            "the inverse roots of a Chebyshev polynomial in a fractal order",
            name="chebyshev_schedule",
            target=f"{module}:chebyshev_schedule",
            length="num_epochs",
            cases=({"num_epochs": 6},),
        ),
        entry(
            "get_wsd_schedule",
            "warmup, a constant learning rate, and a decay",
            name="wsd_schedule",
            interval="step",
            lengths=("num_warmup_steps", "num_stable_steps", "num_decay_steps"),
            final_lengths=("num_decay_steps",),
            cases=({"num_warmup_steps": 2, "num_stable_steps": 2, "num_decay_steps": 3},),
        ),
    ]
