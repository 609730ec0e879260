"""The optimizers of dadaptation."""

from optplug import OptimizerSpec, hookimpl
from optplug_adapters.packages import NO_EMPTY_TENSOR, entry, optimizers


@hookimpl
def optplug_optimizers() -> list[OptimizerSpec]:
    package = "dadaptation"
    return [
        *optimizers(
            package,
            entry("DAdaptAdaGrad", "AdaGrad with an estimated step size", name="dadapt_adagrad"),
            entry("DAdaptAdam", "Adam with an estimated step size", "one_lr", name="dadapt_adam"),
            entry("DAdaptAdan", "Adan with an estimated step size", name="dadapt_adan"),
            entry("DAdaptLion", "Lion with an estimated step size", "one_lr", "sparse", name="dadapt_lion"),
            # It divides by the norm of the first gradients, which is 0 for empty tensors.
            entry("DAdaptSGD", "SGD with an estimated step size", "one_lr", name="dadapt_sgd", shapes=NO_EMPTY_TENSOR),
        ),
        *optimizers(
            package,
            entry(
                "DAdaptAdamPreprint",
                "DAdaptAdam as in the first versions of the paper",
                "one_lr",
                name="dadapt_adam_preprint",
            ),
            entry("DAdaptAdanIP", "DAdaptAdan with a tighter bound, and so larger steps", name="dadapt_adan_ip"),
            module="dadaptation.experimental",
            source="experimental/__init__.py",
        ),
    ]
