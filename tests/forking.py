# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs programs in Python that use Ansible, each in a process of its own, which has started before.

One process imports what takes long, and is forked for every program.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from typing import Any

PARENT = """
import io, json, os, sys
from ansible.module_utils import basic
for line in sys.stdin:
    task = json.loads(line)
    process = os.fork()
    if not process:
        break
    status = os.waitpid(process, 0)[1]
    print(-os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status), flush=True)
else:
    sys.exit()
for number, path in ((0, os.devnull), (1, task["out"]), (2, task["err"])):
    handle = os.open(path, os.O_RDWR)
    os.dup2(handle, number)
    os.close(handle)
os.environ.clear()
os.environ.update(task["environment"])
sys.stdin = io.StringIO(task["given"])
exec(compile(task["program"], "<string>", "exec"), {"__name__": "__main__"})
"""


#: The one process, once it is needed. It ends when this one does, with which its standard input is closed.
_parents: list = []


def _parent() -> Any:
    if not _parents:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}
        argv = [sys.executable, "-c", PARENT]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        _parents.append(subprocess.Popen(argv, env=environment, **pipes))
    return _parents[0]


def run(program: str, given: str, environment: Mapping[str, str]) -> subprocess.CompletedProcess:
    """As `subprocess.run([sys.executable, "-c", program], input=given, ...)`, with texts."""
    parent = _parent()
    with tempfile.NamedTemporaryFile("w+") as out, tempfile.NamedTemporaryFile("w+") as err:
        task = {"program": program, "given": given, "environment": dict(environment)}
        parent.stdin.write(json.dumps({**task, "out": out.name, "err": err.name}) + "\n")
        parent.stdin.flush()
        code = int(parent.stdout.readline())
        return subprocess.CompletedProcess([sys.executable], code, out.read(), err.read())
