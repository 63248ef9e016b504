# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# PRIVATE to this collection: it may change in any release.
"""The secrets of a job as they are kept on a server, by systemd-creds encrypted for it where it can."""

from __future__ import annotations

import os
from typing import Any, Mapping, Sequence

from ._job import SECRETS, Problem, secrets_in, secrets_of
from ._store import FileState, Found, Layout, Run, read_file

#: Exists where systemd-creds can encrypt for this server; the role has it made.
HOST_KEY = "/var/lib/systemd/credential.secret"


def read_credentials(place: Layout, run: Run) -> dict[str, FileState]:
    """The files of the job's secrets, encrypted or not; here with the secrets themselves, to compare them."""
    found = {}
    for name in SECRETS:
        plain, encrypted = place.credential(name), place.credential(name, encrypted=True)
        found.update({path: read_file(path) for path in (plain, encrypted)})
        there = found[encrypted]
        if there.data is not None and there.regular:
            code, out, _err = run(["systemd-creds", "decrypt", "--name=" + name, encrypted, "-"])
            found[encrypted] = there._replace(data=b"" if code else out.encode("utf-8", "surrogateescape"))
    return {path: file._replace(data=_secret(file.data)) for path, file in found.items()}


def _secret(data: bytes | None) -> bytes | None:
    """What this server cannot decrypt any more, and what is no text, is no secret."""
    try:
        return data if data is None or data.decode("utf-8") else b""
    except UnicodeDecodeError:
        return b""


def encrypts(place: Layout) -> bool:
    """Whether a secret can be encrypted here, so that the file is of no use on another server."""
    programs = ("/usr/bin/systemd-creds", "/bin/systemd-creds")
    return place.scope == "system" and os.path.exists(HOST_KEY) and any(map(os.path.exists, programs))


def kept_secret(name: str, place: Layout, found: Found) -> tuple[str | None, bool]:
    """The secret that is kept as the credential of that name, and whether it is encrypted; None where none is."""
    for encrypted in (True, False):
        data = found.files.get(place.credential(name, encrypted), FileState()).data
        if data:
            return data.decode("utf-8"), encrypted
    return None, False


def secrets_for(
    job: Mapping[str, Any], given: Mapping[str, Any], kept: Sequence[tuple[Layout, Found]]
) -> tuple[dict[str, tuple[str, bool]], list[Problem]]:
    """The secrets of a job that has some, by their names, and whether each is to be encrypted.

    One that is kept stays as it is, be it encrypted or not. `kept`: the job's place and what is there, and those of its
    former name.
    """
    new, secrets, problems = secrets_of(given), {}, []
    (place, found), former = kept[0], kept[1:]
    for name in secrets_in(job):
        there, encrypted = kept_secret(name, place, found)
        secret = new.get(name) or there or next(filter(None, (kept_secret(name, *one)[0] for one in former)), None)
        if secret is None:
            text = "is to be kept as it is, but nothing is kept on this server; give the secret itself"
            problems.append(Problem("missing", name, text))
        else:
            secrets[name] = (secret, encrypted if secret == there else encrypts(place))
    return secrets, problems
