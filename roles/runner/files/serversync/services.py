# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Services that are told through Apprise, by URLs that nobody sees: a text has their places in the list and schemes."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, suppress
from importlib.util import find_spec
from io import StringIO
from typing import Any

from serversync.failure import Failure
from serversync.job import Job, credential
from serversync.layout import Layout

URLS = "notification.urls"
INSTALL = "set runner_apprise: true of the role"
MISSING = f"{URLS}: Apprise is not installed for the runner; {INSTALL}"
SCHEME = re.compile(r"[A-Za-z0-9][A-Za-z0-9+.-]*(?=://)")


def has_apprise() -> bool:
    return find_spec("apprise") is not None


def urls_of(layout: Layout, job: Job) -> tuple[dict[str, str], str | None]:
    """The job's URLs by how texts name them, and why none of them can be used, if that is so."""
    if not job["notification"]["urls"]:
        return {}, None
    try:
        urls = credential(layout, job, URLS).split("\n")
    except Failure as failure:
        return {URLS: ""}, str(failure)
    schemes = [found[0] if found else "no scheme" for found in map(SCHEME.match, urls)]
    named = {f"{URLS}[{number}] ({scheme})": url for number, (scheme, url) in enumerate(zip(schemes, urls))}
    return named, None if has_apprise() else MISSING


class Hush(logging.Handler):
    """Takes what Apprise and its libraries log, which may have the URL in it; of that only HTTP's status is kept."""

    status = ""

    def emit(self, record: logging.LogRecord) -> None:
        # What cannot be formatted has none.
        with suppress(TypeError, ValueError):
            found = re.search(r"\berror=([1-5]\d\d)\b", record.getMessage())
            self.status = found[1] if found else self.status


@contextmanager
def hushed() -> Iterator[Hush]:
    """Nothing reaches the journal that is logged or warned of inside, nor the traceback of a thread."""
    root, hush = logging.getLogger(), Hush()
    root.addHandler(hush)
    try:
        with warnings.catch_warnings(), redirect_stderr(StringIO()):
            warnings.simplefilter("ignore")
            yield hush
    finally:
        root.removeHandler(hush)


def service_of(url: str) -> Any:
    """What Apprise makes of a URL; ValueError where it knows no such service, or the URL lacks something.

    With nothing from the disk: no plug-ins beside its own, no store and no keys made.
    """
    # Most runs have nothing to tell.
    import apprise

    asset = apprise.AppriseAsset(async_mode=False)
    # Earlier versions have none of these.
    asset.pgp_autogen = asset.pem_autogen = False
    service = apprise.Apprise.instantiate(url, asset=asset)
    if service is None:
        raise ValueError
    if service.overflow_mode == apprise.OverflowMode.UPSTREAM:
        # Services refuse what is too long for them, and the beginning says it all.
        service.overflow_mode = apprise.OverflowMode.TRUNCATE
    return service


def deliver(service: Any, subject: str, body: str, this: str) -> bool:
    """Hands a message to a service; whether it was taken."""
    from apprise import Apprise, NotifyFormat, NotifyType

    kinds = {
        "failure": NotifyType.FAILURE,
        "late": NotifyType.FAILURE,
        "conflict": NotifyType.WARNING,
        "always": NotifyType.INFO,
    }
    messenger = Apprise(asset=service.asset)
    messenger.add(service)
    kind = kinds.get(this, NotifyType.SUCCESS)
    return bool(messenger.notify(body=body, title=subject, notify_type=kind, body_format=NotifyFormat.TEXT))


def with_apprise(url: str, use: Callable[[Any], bool]) -> str | None:
    """Uses the service of a URL; what went wrong, without anything of the URL."""
    with hushed() as hush:
        try:
            service = service_of(url)
        except ImportError as error:
            return f"Apprise cannot be used for the lack of {error.name}; {INSTALL}"
        except Exception as error:  # whatever it is, the run stands as it is; its text may have the URL in it
            said = "" if isinstance(error, ValueError) else f" ({type(error).__name__})"
            return f"Apprise knows no such service, or the URL lacks something{said}; see what Apprise asks of it"
        try:
            used = use(service)
            said = f" (status {hush.status} of HTTP)" if hush.status else ""
        except Exception as error:
            used, said = False, f" ({type(error).__name__})"
    remedy = "check the URL, and whether this server reaches the service"
    return None if used else f"the service was not reached or did not take it{said}; {remedy}"
