"""What a person writes without mfgd: a notebook's loop as a Hydra task, logged to MLflow."""

import hydra
import mlflow
import numpy as np
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from benchmarks import core
from mfgd import config


@hydra.main(version_base="1.3", config_path=str(config.CONF), config_name="config")
def main(job: DictConfig) -> float:
    """Solves one run, tracks it and returns its loss."""
    D = core.target(instantiate(job.problem))
    generator = torch.Generator().manual_seed(job.seed)
    draw = torch.rand if job.init._target_.endswith("uniform") else torch.randn
    C = draw((3, job.rank), generator=generator, dtype=torch.float64).requires_grad_()
    F = draw((job.rank, 4), generator=generator, dtype=torch.float64).requires_grad_()
    of = instantiate(job.loss)
    losses = []
    for _ in range(job.steps):
        total = core.loss_values(of, C @ F, D).sum()
        losses.append(total.item())
        total.backward()
        with torch.no_grad():
            C -= job.lr * C.grad
            F -= job.lr * F.grad
        C.grad.zero_()
        F.grad.zero_()
    mlflow.set_tracking_uri("sqlite:///mlflow.db")
    mlflow.set_experiment("fluent")
    with mlflow.start_run():
        mlflow.log_params(core.flat_params(OmegaConf.to_container(job, resolve=True)))
        for step in np.unique(np.geomspace(1, job.steps, 20).astype(int)):
            mlflow.log_metric("loss", losses[step - 1], step=int(step))
        mlflow.log_metric("final_loss", losses[-1])
        np.savez("matrices.npz", C=C.detach().numpy(), F=F.detach().numpy())
        mlflow.log_artifact("matrices.npz")
    return losses[-1]


if __name__ == "__main__":
    main()
