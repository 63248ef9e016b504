# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

from ansible_collections.serversync.core.plugins.module_utils import _apply

SCRIPT = """
import builtins, collections, json, os, sys
compiled, real = collections.Counter(), builtins.compile
def counting(source, filename, *more, **options):
    compiled[os.path.basename(str(filename))] += 1
    return real(source, filename, *more, **options)
builtins.compile = counting
sys.path.insert(0, sys.argv[1])
from ansible_collections.serversync.core.plugins.module_utils import _fromzip
from ansible_collections.serversync.core.plugins.module_utils._apply import apply
assert sys.argv[1] in apply.__code__.co_filename
print(json.dumps(compiled))
"""


def test_what_a_task_sends_is_compiled_once(tmp_path):
    """As Ansible does it: all in a zip file, with empty packages."""
    path = "ansible_collections/serversync/core/plugins/module_utils/"
    with zipfile.ZipFile(str(tmp_path / "sent.zip"), "w") as sent:
        parts = path.rstrip("/").split("/")
        for number in range(len(parts)):
            sent.writestr("/".join(parts[: number + 1]) + "/__init__.py", "")
        for source in Path(_apply.__file__).parent.glob("*.py"):
            sent.write(str(source), path + source.name)
    argv = [sys.executable, "-c", SCRIPT, str(tmp_path / "sent.zip")]
    environment = dict(
        os.environ, PYTHONPATH=os.pathsep.join(path for path in sys.path if "ansible_collections" not in path)
    )
    compiled = json.loads(subprocess.run(argv, env=environment, stdout=subprocess.PIPE, check=True).stdout)
    for name in ("_apply.py", "_job.py", "_module.py", "_schedule.py", "_settings.py", "_store.py", "_units.py"):
        assert compiled[name] == 1, name


def sent_with(module, utils):
    """What Ansible sends along: whatever is imported, be it below or for type checkers alone."""
    found, left = set(), [module]
    while left:
        for node in ast.walk(ast.parse(left.pop().read_text())):
            if isinstance(node, ast.ImportFrom):
                parts = [*(node.module or "").split("."), *(alias.name for alias in node.names)]
                names = {part for part in parts if utils.joinpath(part + ".py").is_file()} - found
                found |= names
                left += [utils / (name + ".py") for name in names]
    return found


def test_a_task_that_declares_nothing_sends_nothing_for_that():
    utils = Path(_apply.__file__).parent
    for name in ("sync_job_info", "sync_job_run", "sync_topology"):
        sent = sent_with(utils.parent / "modules" / (name + ".py"), utils)
        assert "_job" in sent and not sent & {"_apply", "_carrying", "_changing", "_steps"}, name


def test_every_module_begins_with_it():
    for path in Path(_apply.__file__).parent.parent.joinpath("modules").glob("*.py"):
        own = [line for line in path.read_text().splitlines() if line.startswith("from ansible_collections.")]
        at = path.read_text().index(own[0])
        assert path.read_text()[at:].split("(", 1)[1].split(",")[0].split()[-1] == "_fromzip", path
