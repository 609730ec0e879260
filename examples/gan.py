"""Generate handwritten digits with a GAN: two optimizers, each with its own schedule, chosen by name in a YAML file.

    python examples/gan.py
    python examples/gan.py --trainer.max_epochs 20

The configuration is examples/gan.yaml. Lightning steps nothing here: the module steps its two optimizers by hand, and
optplug their schedules.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytorch_lightning as pl
import torch
from digits import Digits  # the other example: the same images, the same split
from torch import Tensor, nn
from torch.nn import functional as F

from optplug.pytorch_lightning import OptplugCLI


class DigitsGAN(pl.LightningModule):
    """A generator and a discriminator, trained in turn. It has no `configure_optimizers` and steps no schedule."""

    def __init__(self, latent: int = 32, width: int = 256) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.automatic_optimization = False
        self.generator = nn.Sequential(
            nn.Linear(latent, width),
            nn.BatchNorm1d(width),
            nn.ReLU(),
            nn.Linear(width, width),
            nn.BatchNorm1d(width),
            nn.ReLU(),
            nn.Linear(width, 64),
            nn.Sigmoid(),
            nn.Unflatten(1, (1, 8, 8)),
        )
        self.discriminator = nn.Sequential(
            nn.Flatten(),
            nn.Linear(64, width),
            nn.LeakyReLU(0.2),
            nn.Dropout(0.2),
            nn.Linear(width, width),
            nn.LeakyReLU(0.2),
            nn.Dropout(0.2),
            nn.Linear(width, 1),
        )
        # The same noise at every validation: the distance moves only with the weights.
        self.register_buffer("noise", torch.randn(1024, latent, generator=torch.Generator().manual_seed(0)))

    def forward(self, noise: Tensor) -> Tensor:
        return self.generator(noise)

    def training_step(self, batch: tuple[Tensor, Tensor]) -> None:
        images, _ = batch
        generator, discriminator = self.optimizers()  # in the order of the configuration
        fakes = self(torch.randn(len(images), self.hparams.latent, device=self.device))

        loss = F.softplus(-self.discriminator(images)).mean() + F.softplus(self.discriminator(fakes.detach())).mean()
        discriminator.zero_grad()
        self.manual_backward(loss)
        discriminator.step()

        fooled = F.softplus(-self.discriminator(fakes)).mean()
        generator.zero_grad()
        self.manual_backward(fooled)
        generator.step()
        self.log_dict({"discriminator_loss": loss, "generator_loss": fooled})

    def validation_step(self, batch: tuple[Tensor, Tensor]) -> None:
        images, _ = batch
        self.samples = self(self.noise)
        self.log("val_frechet", frechet(self.samples, images), prog_bar=True)


def frechet(samples: Tensor, images: Tensor) -> Tensor:
    """The Frechet distance (squared) between two sets of images, each taken for a normal distribution of pixels.

    The form of the FID, on the 64 pixels themselves: zero only where means and covariances are equal.
    """
    (mean, cov), (other_mean, other_cov) = _moments(samples), _moments(images)
    shared = torch.linalg.eigvals(cov @ other_cov).real.clamp(min=0).sqrt().sum()  # the trace of their product's root
    return (mean - other_mean).square().sum() + cov.trace() + other_cov.trace() - 2 * shared


def _moments(images: Tensor) -> tuple[Tensor, Tensor]:
    pixels = images.flatten(1).double()
    return pixels.mean(0), pixels.T.cov()


def normal(images: Tensor, count: int) -> Tensor:
    """Samples of the normal distribution of pixels that fits the images, cut to their range: no digits, but close."""
    mean, cov = _moments(images)
    root = torch.linalg.cholesky(cov + 1e-6 * torch.eye(len(cov)))  # pixels that are always blank have no variance
    return (mean + torch.randn(count, len(mean), dtype=mean.dtype) @ root.T).clamp(0, 1)


def draw(panels: dict[str, Tensor], picture: Path) -> None:
    """Sixty-four images each, side by side."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, places = plt.subplots(1, len(panels), figsize=(4 * len(panels), 4.3), constrained_layout=True)
    for place, (title, images) in zip(places, panels.items(), strict=True):
        framed = F.pad(images[:64, 0], (1, 1, 1, 1))
        place.imshow(framed.unflatten(0, (8, 8)).permute(0, 2, 1, 3).reshape(80, 80), cmap="gray_r", vmin=0, vmax=1)
        place.set(title=title, xticks=[], yticks=[])
    figure.savefig(picture, dpi=110)


def main() -> None:
    torch.set_num_threads(1)  # the networks are too small to share
    defaults = {"default_config_files": [str(Path(__file__).with_suffix(".yaml"))]}
    cli = OptplugCLI(DigitsGAN, Digits, run=False, parser_kwargs=defaults, save_config_kwargs={"overwrite": True})
    trainer, model, data = cli.trainer, cli.model, cli.datamodule

    (before,) = trainer.validate(model, data, verbose=False)
    untrained = model.samples
    trainer.fit(model, data)
    if trainer.fast_dev_run:
        return
    (after,) = trainer.validate(model, data, verbose=False)
    start, end = before["val_frechet"], after["val_frechet"]

    train, val, test = (split.tensors[0] for split in (data.train, data.val, data.test))
    picture = Path(trainer.log_dir) / "samples.png"
    draw({"before": untrained, "after": model.samples, "real": val}, picture)
    print(f"distance to the validation digits {start:.2f} before, {end:.2f} after; samples in {picture}")
    yardsticks = {"other real digits": test, "a normal distribution of pixels": normal(train, 1024)}
    print("for comparison: " + ", ".join(f"{name} {frechet(x, val):.2f}" for name, x in yardsticks.items()))
    if not end < start / 4:
        sys.exit("the distance has not fallen to a quarter: something is wrong")


if __name__ == "__main__":
    main()
