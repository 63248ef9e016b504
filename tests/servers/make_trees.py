# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Fill a test server with trees: copies of what a Debian carries, and every name and kind that breaks copiers.

python3 make_trees.py SERVER
"""

from __future__ import annotations

import os
import shutil
import struct
import sys
from pathlib import Path

SPARSE_SIZE = 1 << 30
# Times before 1970, with odd nanoseconds, in the future, and one that a whole second would lose.
TIMES_NS = (-1, 1, 1_000_000_000_123_456_789, 4_102_444_800_999_999_999)
NAMES = (
    b"plain.awl",
    b"with space",
    b" leading and trailing ",
    b"new\nline",
    b"tab\tand\rreturn",
    b"quote'single",
    b'quote"double',
    b"back\\slash",
    b"dollar$HOME`id`$(id)",
    b"-leading-dash",
    b"--delete",
    b"star*question?bracket[a]",
    b"#hash;semicolon&ampersand|pipe",
    b"%n percent",
    b":colon::colons",
    b"~tilde",
    b"!bang",
    b".hidden",
    b"\xff\xfe not UTF-8",
    b"caf\xc3\xa9",
    b"cafe\xcc\x81",
    b"\xf0\x9f\x92\xbe",
    b"n" * 255,
)


def odd_tree(root: Path) -> None:
    """Names, kinds, owners, modes and times that a careless copy loses; `*.tmp` is what the job leaves out."""
    root.mkdir(parents=True)
    top = os.fsencode(root)
    for number, name in enumerate(NAMES):
        path = os.path.join(top, name)
        with open(path, "wb") as stream:
            stream.write(name * (number + 1))
        when = TIMES_NS[number % len(TIMES_NS)]
        os.utime(path, ns=(when, when))

    deep = root / "/".join(f"level{number}" for number in range(40)).lstrip("/")
    deep.mkdir(parents=True)
    (deep / "leaf").write_bytes(b"deep")
    (root / "empty directory").mkdir()
    (root / "empty file").touch()
    (root / "left out.tmp").write_bytes(b"excluded")

    many = root / "many"
    many.mkdir()
    for number in range(2000):
        (many / f"{number:04}").write_bytes(b"%d\n" % number)

    (root / "absolute link").symlink_to("/etc/hostname")
    (root / "relative link").symlink_to("many/0001")
    (root / "upward link").symlink_to("../../../../etc/hostname")
    (root / "dangling link").symlink_to("no such place")
    (root / "link to itself").symlink_to("link to itself")
    (root / "link to a directory").symlink_to("many", target_is_directory=True)
    os.link(root / "plain.awl", root / "hard link")
    os.link(root / "plain.awl", many / "hard link elsewhere")

    with open(root / "sparse", "wb") as stream:
        stream.truncate(SPARSE_SIZE)
        stream.seek(SPARSE_SIZE // 2)
        stream.write(b"an island")

    for name, mode in (("setuid", 0o4755), ("setgid", 0o2755), ("unreadable", 0o000), ("read only", 0o444)):
        (root / name).write_bytes(name.encode())
        (root / name).chmod(mode)
    for name, mode in (("sticky", 0o1777), ("setgid directory", 0o2775), ("closed", 0o000)):
        (root / name).mkdir()
        (root / name).chmod(mode)
    # www-data has this number on every Debian; the last one has a name on neither server.
    for name, owner in (("of www-data", 33), ("of nobody", 65534), ("of a stranger", 47110)):
        (root / name).write_bytes(name.encode())
        os.chown(root / name, owner, owner)
    os.lchown(root / "dangling link", 33, 33)
    # Changing the owner clears these bits, so the owner comes first.
    (root / "setuid of www-data").write_bytes(b"setuid")
    os.chown(root / "setuid of www-data", 33, 33)
    (root / "setuid of www-data").chmod(0o6755)
    # What setfacl -m u:33:r leaves (acl(5); linux/posix_acl_xattr.h), and a note of a user's own.
    (root / "shared").write_bytes(b"shared")
    os.setxattr(root / "shared", "user.note", b"kept \0 too")
    entries = ((1, 6, 0xFFFFFFFF), (2, 4, 33), (4, 4, 0xFFFFFFFF), (16, 4, 0xFFFFFFFF), (32, 0, 0xFFFFFFFF))
    acl = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)
    os.setxattr(root / "shared", "system.posix_acl_access", acl)
    for directory in (root / "many", root / "empty directory", root):
        os.utime(directory, ns=(1_234_567_890_123_456_789,) * 2)


def main() -> None:
    if sys.argv[1] == "siteA":
        odd_tree(Path("/srv/line1/programs"))
        shutil.copytree("/usr/share/doc", "/srv/line1/doc", symlinks=True)
        library = Path(os.__file__).parent
        shutil.copytree(library, "/srv/line1/python", symlinks=True)
        Path("/srv/line1/recipes").mkdir()
    else:
        odd_tree(Path("/srv/recipes"))
        Path("/srv/sites/siteA").mkdir(parents=True)
    Path("/srv/filled").touch()


if __name__ == "__main__":
    main()
