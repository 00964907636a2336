"""The nodes of launchers whose batches run on an engine that people have: joblib, submitit, Ray."""

from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore

TARGET = "hydra_plugins.mfgd_launcher.BatchLauncher"


@dataclass
class JoblibConf:
    """joblib's processes, as many as the key `workers` says."""

    _target_: str = TARGET
    engine: str = "joblib"


@dataclass
class SubmititConf:
    """Parameters of submitit, under the names that Hydra's own plug-in has for them."""

    _target_: str = TARGET
    engine: str = "local"
    submitit_folder: str = "mfgd-jobs"
    """Of scripts and logs, in the working directory."""
    name: str = "mfgd"
    timeout_min: int = 60
    """Of a batch."""
    cpus_per_task: int = 1
    gpus_per_node: int | None = None
    mem_gb: int | None = None


@dataclass
class SlurmConf(SubmititConf):
    """Parameters of submitit for SLURM."""

    engine: str = "slurm"
    slurm_partition: str | None = None
    slurm_qos: str | None = None
    slurm_account: str | None = None
    slurm_constraint: str | None = None
    slurm_gres: str | None = None
    slurm_setup: list[str] | None = None
    """Lines of the shell before the job, such as `module load python`."""
    slurm_additional_parameters: dict[str, Any] = field(default_factory=dict)
    """Options of sbatch by name."""


@dataclass
class RayConf:
    """Parameters of Ray."""

    _target_: str = TARGET
    engine: str = "ray"
    address: str | None = None
    """Of the cluster; auto: the one of this machine; null: processes of this machine."""
    num_cpus: float = 1
    """Of a task, as num_gpus."""
    num_gpus: float = 0


CONFIGS = {
    "joblib": JoblibConf,
    "submitit_local": SubmititConf,
    "submitit_slurm": SlurmConf,
    "ray": RayConf,
}
for name, node in CONFIGS.items():
    ConfigStore.instance().store(group="hydra/launcher", name=name, node=node, provider="mfgd")
