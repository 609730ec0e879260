"""The optimizers of torchao: Adam with a state of 4 or 8 bits, and offloading to the CPU."""

from optplug import OptimizerSpec, hookimpl
from optplug_adapters.packages import Entry, entry, optimizers


@hookimpl
def optplug_optimizers() -> list[OptimizerSpec]:
    return optimizers(
        "torchao",
        _quantized("Adam4bit", "Adam, state of 4 bits"),
        _quantized("Adam8bit", "Adam, state of 8 bits"),
        _quantized("AdamFp8", "Adam, state in float8", name="adam_fp8"),
        _quantized("AdamW4bit", "Adam with decoupled weight decay, state of 4 bits"),
        _quantized("AdamW8bit", "Adam with decoupled weight decay, state of 8 bits"),
        _quantized("AdamWFp8", "Adam with decoupled weight decay, state in float8", name="adamw_fp8"),
        entry("_AdamW", "AdamW for quantized parameters", name="adamw"),
        entry(
            "CPUOffloadOptimizer",
            "any optimizer, with its state and its steps on the CPU",
            name="cpu_offload_optimizer",
            target="optplug_adapters.torchao_offload:CPUOffloadOptimizer",
            base="optimizer_class",
        ),
        module="torchao.optim",
        source="optim/__init__.py",
    )


def _quantized(cls: str, summary: str, name: str = "") -> Entry:
    return entry(cls, summary, name=name, build="optplug_adapters.torchao_state:build")
