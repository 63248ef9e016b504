# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Writes the JSON Schema of the job document from the grammar in plugins/module_utils/_job.py."""

from __future__ import annotations

import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
SCHEMA = ROOT / "roles" / "runner" / "files" / "serversync" / "job.schema.json"


def main() -> int:
    sys.path.insert(0, str(ROOT / "plugins"))
    from module_utils._job import schema_text

    SCHEMA.parent.mkdir(parents=True, exist_ok=True)
    SCHEMA.write_text(schema_text(), encoding="utf-8")
    print("wrote %s" % SCHEMA.relative_to(ROOT))
    return 0


if __name__ == "__main__":
    sys.exit(main())
