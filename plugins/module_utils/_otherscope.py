# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# PRIVATE to this collection: it may change in any release.
"""The jobs of the other scope of this server, as far as who asks may read them: of users for root, or of the system.

What a user has written is read as what anybody may have put there: no link is followed, no pipe waited for, and no path
that it names is touched.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import re
import stat
from typing import Any, Iterator, NamedTuple

from ._job import NAME_PATTERN, foreign, loads, parse_document
from ._store import Layout

#: The users whose systemd manager runs, by their numbers, and those whose runs without a log-in, by their names: of no
#: other a timer is on, and their homes may not even be mounted.
MANAGERS = "/run/user"
LINGER = "/var/lib/systemd/linger"
SYSTEM = "/etc"
#: Bytes of a document, of all of a scope, and how many there may be: a user is not to keep root waiting.
_LARGEST = 1 << 16
_ROOM = 1 << 20
_MOST = 1000


class Scope(NamedTuple):
    """Where one scope keeps its jobs. `whose`: after the name of a job; `owner`: of its files."""

    whose: str
    home: str
    way: tuple[str, ...]
    owner: int


def _names(directory: str) -> list[str]:
    try:
        return sorted(os.listdir(directory))
    except OSError:
        return []


def other_scopes(scope: str) -> list[Scope]:
    if scope == "user":
        return [Scope("scope system", SYSTEM, ("serversync",), 0)]
    users = {}
    for name in _names(LINGER):
        with contextlib.suppress(KeyError):
            users[pwd.getpwnam(name).pw_uid] = pwd.getpwnam(name)
    for number in filter(str.isdigit, _names(MANAGERS)):
        with contextlib.suppress(KeyError):
            users[int(number)] = pwd.getpwuid(int(number))
    return [
        Scope("user " + one.pw_name, one.pw_dir, (".config", "serversync"), uid) for uid, one in sorted(users.items())
    ]


def _files(scope: Scope, directory: str) -> Iterator[tuple[str, bytes]]:
    """The files of a directory of a scope by their names without .json; none where it cannot be read."""
    with contextlib.ExitStack() as held, contextlib.suppress(OSError):
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
        handle = os.open(scope.home, flags)
        held.callback(os.close, handle)
        for name in (*scope.way, directory):
            handle = os.open(name, flags | os.O_NOFOLLOW, dir_fd=handle)
            held.callback(os.close, handle)
        # names that no job has could say anything to whoever reads of them
        names = [name[: -len(".json")] for name in sorted(os.listdir(handle)) if name.endswith(".json")]
        room = _ROOM
        for name in [one for one in names if re.search(NAME_PATTERN, one)][:_MOST]:
            with contextlib.suppress(OSError):
                file = os.open(
                    name + ".json", os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=handle
                )
                with os.fdopen(file, "rb") as stream:
                    info = os.fstat(file)
                    own = stat.S_ISREG(info.st_mode) and info.st_uid == scope.owner
                    if scope.owner:
                        room -= info.st_size
                    if own and info.st_size <= _LARGEST and room >= 0:
                        yield name, stream.read(_LARGEST)


def read_others(place: Layout, machine_id: str | None) -> list[dict[str, Any]]:
    """The jobs of the other scope, each named with whose it is, and with its partner's host for the pairing's name."""
    jobs = []
    for scope in other_scopes(place.scope):
        pairings = [loads(data) for _name, data in _files(scope, "pairings")]
        texts = [(one.get("name"), one.get("host")) for one in pairings]
        hosts = {name: host for name, host in texts if isinstance(name, str) and isinstance(host, str)}
        for name, data in _files(scope, "jobs"):
            job, problems = parse_document(data.decode("utf-8", "replace"))
            if problems or foreign(job, machine_id) or job["scope"] == place.scope:
                continue
            partner = dict(job["partner"], host=hosts.get(job["partner"]["host"]) or job["partner"]["host"])
            jobs.append(dict(job, name="%s of %s" % (name, scope.whose), partner=partner))
    return jobs
