# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Make both halves importable from a clone of any name, with or without Ansible installed.

The declaration side is imported by its full name, ansible_collections.serversync.core.*, as Ansible does
it, through a link in a directory that lives as long as the test run. The runner is imported as serversync.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path

from hypothesis import settings

ROOT = Path(__file__).resolve().parent.parent
_collections = Path(tempfile.mkdtemp(prefix="serversync-collections-"))


def pytest_configure() -> None:
    # How long an example takes is up to what else the machine does.
    settings.register_profile("untimed", deadline=None)
    settings.load_profile("untimed")
    namespace = _collections / "ansible_collections" / "serversync"
    namespace.mkdir(parents=True)
    (namespace / "core").symlink_to(ROOT, target_is_directory=True)
    sys.path[:0] = [str(_collections), str(ROOT / "roles" / "runner" / "files")]
    # ansible-playbook and ansible-doc, started by a test, find the same collection.
    os.environ["ANSIBLE_COLLECTIONS_PATH"] = str(_collections)


def pytest_unconfigure() -> None:
    shutil.rmtree(_collections)
