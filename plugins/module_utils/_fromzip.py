# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# PRIVATE to this collection: it may change in any release.
"""Imports of this collection from the zip file in which Ansible sends it, without compiling each module twice.

From Python 3.10 on zipimport compiles a module to learn where it is, throws that away, and compiles it again to run it
(``find_spec`` asks ``get_filename``). For a task that changes nothing that was a tenth of its time.
"""

from __future__ import annotations

import sys
import zipimport
from importlib.machinery import ModuleSpec
from typing import Any, Sequence

_PACKAGE = __name__.rpartition(".")[0]


class _Finder:
    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None = None, target: Any = None) -> ModuleSpec | None:
        if name.rpartition(".")[0] != _PACKAGE or not path:
            return None
        try:
            loader = zipimport.zipimporter(path[0])
        except zipimport.ZipImportError:
            return None
        # earlier ones find modules in another way, and compile them once
        return ModuleSpec(name, loader) if hasattr(loader, "exec_module") else None  # type: ignore[arg-type]


# behind the first one, which may be there to see all imports, and before the one that finds zip files
sys.meta_path.insert(1, _Finder)
