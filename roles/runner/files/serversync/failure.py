# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The one exception that carries what went wrong, where, and whether trying again can help."""

from __future__ import annotations

import errno
import os
import re
from typing import Any

CODE = re.compile(r"[a-z0-9_]{1,64}")
LONGEST = 10_000


class Failure(Exception):
    """A job, an element or a connection failed.

    code: stable word for machines, e.g. ``host_key``; field: option or path that it is about, or None;
    transient: a later attempt may succeed (connection lost, no space), so ``on_error.retries`` applies.
    """

    def __init__(self, code: str, message: str, *, field: str | None = None, transient: bool = False) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.field = field
        self.transient = transient

    def __str__(self) -> str:
        return f"{self.field}: {self.message}" if self.field else self.message

    def as_dict(self) -> dict[str, Any]:
        return {"code": self.code, "field": self.field, "message": self.message, "transient": self.transient}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Failure:
        """Of what another server says no more than a person would read."""
        code, field = str(data.get("code")), data.get("field")
        return cls(
            code if CODE.fullmatch(code) else "unknown",
            str(data.get("message", ""))[:LONGEST],
            field=None if field is None else str(field)[:LONGEST],
            transient=bool(data.get("transient", False)),
        )


def of_system(error: OSError) -> Failure:
    """What the kernel refused, where nothing more is known of it; a full disk may have room at the next attempt."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    what = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, (str, bytes)) else ""
    remedy = "free some space, and it goes on from there" if full else "look into it on that server"
    return Failure("no_space" if full else "system", f"{what}{error.strerror}; {remedy}", transient=full)


class Stopped(BaseException):
    """The process was told to end (SIGTERM, SIGHUP), or nobody waits for its work any more; raised wherever it is."""


class Overdue(Stopped):
    """The attempt has taken as long as it may; raised in the main thread, wherever that is."""


class InvalidDocument(Failure):
    """A job document or a name given on the command line that cannot be used; exit code 2."""
