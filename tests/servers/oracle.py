# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tell what a tree is, down to the last bit that a synchronization has to keep.

Shares no code with the runner. Sent to a server's Python on standard input, it prints one line for each
path below ROOT, sorted; two trees are the same when the lines are:

    python3 - ROOT < oracle.py

A line is JSON: path, type, mode, uid, gid, mtime (ns), xattrs (ACLs too), link target, size, content's
hash, hard-link group.
The runner's own directory of versions at the top is no part of the tree.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import sys
from typing import Any

TYPES = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "link",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "character device",
    stat.S_IFBLK: "block device",
}


def content_hash(path: bytes) -> str:
    with open(path, "rb") as stream:
        digest = hashlib.sha256()
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def describe(root: bytes, relative: bytes, first_names: dict[tuple[int, int], str]) -> dict[str, Any]:
    path = os.path.join(root, relative) if relative else root
    info = os.lstat(path)
    shown = relative.decode("utf-8", "backslashreplace")
    line: dict[str, Any] = {
        "path": shown,
        "type": TYPES[stat.S_IFMT(info.st_mode)],
        "mode": oct(stat.S_IMODE(info.st_mode)),
        "uid": info.st_uid,
        "gid": info.st_gid,
        "mtime": info.st_mtime_ns,
    }
    attributes = os.listxattr(path, follow_symlinks=False)
    line["xattrs"] = {name: os.getxattr(path, name, follow_symlinks=False).hex() for name in sorted(attributes)}
    if line["type"] == "link":
        line["target"] = os.readlink(path).decode("utf-8", "backslashreplace")
    if line["type"] == "file":
        line["size"] = info.st_size
        line["content"] = content_hash(path)
        if info.st_nlink > 1:
            line["same as"] = first_names.setdefault((info.st_dev, info.st_ino), shown)
    return line


def paths(root: bytes) -> list[bytes]:
    found = [b""]

    def fail(error: OSError) -> None:
        raise error

    for directory, directories, files in os.walk(root, onerror=fail):
        if directory == root and b".serversync" in directories:
            directories.remove(b".serversync")
        found += [os.path.relpath(os.path.join(directory, name), root) for name in directories + files]
    return sorted(found)


def main() -> None:
    root = os.fsencode(sys.argv[1])
    first_names: dict[tuple[int, int], str] = {}
    for relative in paths(root):
        print(json.dumps(describe(root, relative, first_names), sort_keys=True))


if __name__ == "__main__":
    main()
