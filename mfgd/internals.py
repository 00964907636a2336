"""The private interfaces of Hydra's, OmegaConf's and Python's that mfgd uses, and no others.

Each function says which public way it replaces; tests/test_internals.py compares the two ways.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing import connection, forkserver, resource_tracker
from typing import Any

from omegaconf import DictConfig, StringNode, ValueNode


def set_value(config: DictConfig, path: Sequence[str], value: Any) -> bool:
    """Sets a number or text that replaces a number or text, as `OmegaConf.update` does in ten
    times the time. Returns whether it could; if not, nothing is changed."""
    node: Any = config
    for name in path:
        content = node._content if type(node) is DictConfig else None
        node = content.get(name) if isinstance(content, dict) else None
    if not isinstance(node, ValueNode) or isinstance(value, list) or value is None:
        return False
    node._set_value(value)
    return True


def set_task_overrides(config: DictConfig, lines: Sequence[str | None]) -> None:
    """Sets hydra.overrides.task, as an assignment does in several times the time."""
    task: Any = config.hydra.overrides.task
    nodes = (StringNode(line, i, task, is_optional=False) for i, line in enumerate(lines))
    task._content[:] = nodes


def set_unparsed(config: DictConfig, key: str, text: str) -> None:
    """Sets a value to an interpolation, as an assignment does, which parses the text first."""
    config._get_node(key)._val = text  # type: ignore[union-attr]


def start_forkserver(modules: Sequence[str]) -> None:
    """Starts the process that forks workers, with modules imported, as a fork of this process: all
    that this one has imported is there. `forkserver.ensure_running` starts a new Python, which
    imports it again.

    This process must have no threads that the other one would miss.
    """
    resource_tracker.ensure_running()
    server: Any = forkserver._forkserver
    with socket.socket(socket.AF_UNIX) as listener:
        address = connection.arbitrary_address("AF_UNIX")  # type: ignore[attr-defined]
        listener.bind(address)
        os.chmod(address, 0o600)
        listener.listen()
        ended, alive = os.pipe()
        sys.stdout.flush()  # else the text would come from the workers, too
        sys.stderr.flush()
        pid = os.fork()
        if pid == 0:
            try:
                signal.signal(signal.SIGTERM, signal.SIG_DFL)
                os.close(alive)
                forkserver.main(listener.fileno(), ended, modules)
            finally:
                os._exit(0)
        os.close(ended)
    server._forkserver_address, server._forkserver_alive_fd = address, alive
    server._forkserver_pid = pid


def stop_forkserver() -> None:
    """Ends the process that forks workers, if there is one. Python offers no public way."""
    pid = getattr(forkserver._forkserver, "_forkserver_pid", None)
    if pid is not None:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
