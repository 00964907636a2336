"""What mfgd needs of the private interfaces of Hydra, OmegaConf and Python still holds."""

import subprocess
import sys

import pytest
from conftest import UNMEASURED
from omegaconf import OmegaConf

from mfgd import internals
from mfgd.compose import override_dirname


def config():
    hydra = {"overrides": {"task": ["old=1"]}, "runtime": {"output_dir": "old"}}
    made = OmegaConf.create({"a": {"b": 1, "c": "x", "d": {"e": 2}}, "hydra": hydra})
    OmegaConf.set_struct(made, True)
    return made


@pytest.mark.parametrize(("key", "value"), [("a.b", 2.5), ("a.c", "y"), ("a.d.e", True)])
def test_set_value_equals_update(key, value):
    ours, theirs = config(), config()
    assert internals.set_value(ours, key.split("."), value)
    OmegaConf.update(theirs, key, value)
    assert repr(OmegaConf.to_container(ours)) == repr(OmegaConf.to_container(theirs))


@pytest.mark.parametrize(
    ("key", "value"), [("a.z", 1), ("z.b", 1), ("a", 1), ("a.b.c", 1), ("a.b", [1]), ("a.b", None)]
)
def test_set_value_changes_nothing_if_it_cannot(key, value):
    ours = config()
    assert not internals.set_value(ours, key.split("."), value)
    assert ours == config()


def test_set_task_overrides_equals_an_assignment():
    ours, theirs = config(), config()
    internals.set_task_overrides(ours, ["a.b=1", "a.c=2"])
    theirs.hydra.overrides.task = ["a.b=1", "a.c=2"]
    assert ours == theirs
    assert ours.hydra.overrides.task[1] == "a.c=2"


def test_set_unparsed_equals_an_assignment():
    ours, theirs = config(), config()
    internals.set_unparsed(ours.hydra.runtime, "output_dir", "${a.c}/1")
    theirs.hydra.runtime.output_dir = "${a.c}/1"
    assert ours == theirs
    assert ours.hydra.runtime.output_dir == "x/1"


FORKED = """
import multiprocessing, os, sys
from multiprocessing import forkserver
from mfgd import internals

def tell(connection):
    connection.send(("colorsys" in sys.modules, "wave" in sys.modules, os.getppid()))

if __name__ == "__main__":
    import wave
    START
    context = multiprocessing.get_context("forkserver")
    ours, theirs = context.Pipe()
    process = context.Process(target=tell, args=(theirs,))
    process.start()
    preloaded, inherited, parent = ours.recv()
    process.join()
    pid = forkserver._forkserver._forkserver_pid
    os.close(forkserver._forkserver._forkserver_alive_fd)
    assert os.waitpid(pid, 0)[1] == 0  # it ends with this process
    print(preloaded, inherited, parent == pid, process.exitcode)
"""
OURS = "internals.start_forkserver(['colorsys'])"
THEIRS = "forkserver.set_forkserver_preload(['colorsys']); forkserver.ensure_running()"


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not survive a fork")
@pytest.mark.parametrize(
    ("start", "said"), [(OURS, "True True True 0"), (THEIRS, "True False True 0")]
)
def test_start_forkserver_does_as_pythons_way_and_keeps_what_is_imported(tmp_path, start, said):
    program = tmp_path / "program.py"
    program.write_text(FORKED.replace("START", start))
    options = {"capture_output": True, "text": True, "timeout": 100, "env": UNMEASURED}
    ended = subprocess.run([sys.executable, program], **options)
    assert ended.stdout.strip() == said, ended.stderr


def test_stop_forkserver_ends_the_process():
    program = (
        "import os, signal\n"
        "from multiprocessing import forkserver\n"
        "from mfgd import internals\n"
        "forkserver.ensure_running()\n"
        "internals.stop_forkserver()\n"
        "assert os.WTERMSIG(os.wait()[1]) == signal.SIGTERM\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=100, env=UNMEASURED)


def test_override_dirname_equals_hydras():
    from hydra._internal.config_loader_impl import get_overrides_dirname
    from hydra.core.override_parser.overrides_parser import OverridesParser

    lines = ["b=2", "a='x y'", "c.d=[1,2]", "+e={f:3}", "~g", "seed=4"]
    given = OverridesParser.create().parse_overrides(lines)
    for separator in ("=", "-"):
        names = {"kv_sep": separator, "item_sep": ",", "exclude_keys": ["seed"]}
        assert override_dirname(given, **names) == get_overrides_dirname(given, **names)
