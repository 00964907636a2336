"""The launcher gives each job what Hydra's own gives it."""

import json
import subprocess
import sys

import pytest
from conftest import UNMEASURED

PROGRAM = """
import json, os, sys
import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

def say(event, **facts):
    print(json.dumps({"event": event} | facts))

def seen(config):
    node = config.hydra
    keys = [str(key) for key in config if key != "hydra"]
    return {
        "config": OmegaConf.to_container(OmegaConf.masked_copy(config, keys), resolve=True),
        "job": [node.job.num, node.job.id, node.job.override_dirname, list(node.overrides.task)],
        "folder": os.path.relpath(node.runtime.output_dir, node.sweep.dir),
        "launcher": node.runtime.choices["problem"],
    }

class Listener(Callback):
    def on_multirun_start(self, config, **_):
        say("multirun start")

    def on_job_start(self, config, **_):
        say("start", **seen(config))

    def on_job_end(self, config, job_return):
        cfg = OmegaConf.to_container(job_return.cfg, resolve=True)
        say("end", **seen(config), value=job_return.return_value, cfg=cfg,
            overrides=list(job_return.overrides), returned=seen(job_return.hydra_cfg),
            status=job_return.status.name, task=job_return.task_name, where=job_return.working_dir)

    def on_multirun_end(self, config, **_):
        say("multirun end")

def task(given):
    jobs = [(given, HydraConfig.get())] if isinstance(given, DictConfig) else given
    # What a ${hydra:...} means is asked while the job is the current one.
    values = []
    for config, hydra in jobs:
        values.append([hydra.job.num, config.lr * config.rank, HydraConfig.get().job.id])
    return values[0] if isinstance(given, DictConfig) else values

if __name__ == "__main__":
    sys.argv.append("+hydra.callbacks.listener._target_=program.Listener")
    from mfgd import config
    hydra.main(version_base="1.3", config_path=str(config.CONF), config_name="config")(task)()
"""
LINE = [
    "--multirun",
    "rank=1,2",
    "lr=0.5,${init.scale}",
    "loss=huber,squared",
    "+note=a",
    "hydra.sweep.subdir=${rank}/${hydra.job.num}",
]


@pytest.fixture(scope="module")
def events(tmp_path_factory):
    folder = tmp_path_factory.mktemp("launcher")
    (folder / "program.py").write_text(PROGRAM)

    def heard(*options: str) -> dict[str, list]:
        command = [sys.executable, "program.py", *LINE, *options]
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, env=UNMEASURED, timeout=100
        )
        assert done.returncode == 0, done.stderr
        lines = [json.loads(line) for line in done.stdout.splitlines()]
        return {
            name: [line for line in lines if line["event"] == name]
            for name in dict.fromkeys(x["event"] for x in lines)
        }

    return {
        "basic": heard("hydra/launcher=basic"),
        "batch": heard("hydra/launcher=batch"),
        "lots": heard("hydra/launcher=batch", "hydra.sweeper.max_batch_size=3"),
    }


@pytest.mark.parametrize("way", ["batch", "lots"])
def test_job_numbers_overrides_returns_and_callbacks_are_those_of_the_basic_launcher(events, way):
    assert len(events["basic"]["end"]) == 8
    assert events[way] == events["basic"]
    assert [event["value"][0] for event in events[way]["end"]] == list(range(8))
