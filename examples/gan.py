"""Generate handwritten digits with a GAN that has two optimizers, each with its own schedule.

    python examples/gan.py
    python examples/gan.py --trainer.max_epochs 20

The configuration is in examples/gan.yaml. The GAN uses manual optimization: the module steps its two optimizers, and
optplug steps their schedules.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytorch_lightning as pl
import torch
from digits import Digits  # the data module of examples/digits.py
from torch import Tensor, nn
from torch.nn import functional as F

from optplug.pytorch_lightning import OptplugCLI


class DigitsGAN(pl.LightningModule):
    """A generator and a discriminator, trained alternately. The module does not define `configure_optimizers`."""

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
        # The noise is the same in every validation, so that only the weights change the distance.
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
    """The squared Frechet distance between two sets of images, approximated by normal distributions of their pixels.

    The FID applies the same formula to network features. Here it is applied to the 64 pixels. The distance is zero only
    if means and covariances are equal.

    Args:
        samples: images, of shape (n, 1, 8, 8).
        images: images to compare with, of shape (m, 1, 8, 8).
    """
    (mean, cov), (other_mean, other_cov) = _moments(samples), _moments(images)
    # The trace of the square root of the product of the covariances.
    shared = torch.linalg.eigvals(cov @ other_cov).real.clamp(min=0).sqrt().sum()
    return (mean - other_mean).square().sum() + cov.trace() + other_cov.trace() - 2 * shared


def _moments(images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and covariance of the pixels."""
    pixels = images.flatten(1).double()
    return pixels.mean(0), pixels.T.cov()


def normal(images: Tensor, count: int) -> Tensor:
    """Samples from the normal distribution that fits the pixels of the images, clamped to the range of pixels.

    The samples do not look like digits, but their distance to the images is small.
    """
    mean, cov = _moments(images)
    root = torch.linalg.cholesky(cov + 1e-6 * torch.eye(len(cov)))  # constant pixels have no variance
    return (mean + torch.randn(count, len(mean), dtype=mean.dtype) @ root.T).clamp(0, 1)


def draw(panels: dict[str, Tensor], picture: Path) -> None:
    """Save a picture that shows 64 images of each panel, with the panels side by side."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(panels), figsize=(4 * len(panels), 4.3), constrained_layout=True)
    for axis, (title, images) in zip(axes, panels.items(), strict=True):
        framed = F.pad(images[:64, 0], (1, 1, 1, 1))
        axis.imshow(framed.unflatten(0, (8, 8)).permute(0, 2, 1, 3).reshape(80, 80), cmap="gray_r", vmin=0, vmax=1)
        axis.set(title=title, xticks=[], yticks=[])
    figure.savefig(picture, dpi=110)


def main() -> None:
    torch.set_num_threads(1)  # several threads would be slower for networks of this size
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
    references = {"other real digits": test, "a normal distribution of pixels": normal(train, 1024)}
    print("for comparison: " + ", ".join(f"{name} {frechet(x, val):.2f}" for name, x in references.items()))
    if not end < start / 4:
        sys.exit("the distance has not fallen to a quarter of its first value")


if __name__ == "__main__":
    main()
