# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# PRIVATE to this collection: it may change in any release.
"""The grammar of a job: the one place that knows its fields.

From the table JOB come the argument spec, the defaults, the normal form, the comparison and (_schema.py) the JSON
Schema. Everything here is pure: data in, data out, no disk, no clock, no Ansible.

read()     what a task or a document gives -> the same in canonical spelling, or problems
resolve()  that, laid over the job that is there -> the whole job in normal form, or problems
           (_copies.py: of several, of which one may be a copy of another)
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import json
import re
from typing import Any, Callable, Iterable, Iterator, Mapping, NamedTuple, Sequence

from . import _schedule
from ._settings import settings_of

VERSION = 1

#: Of machine-id(5).
MACHINE_ID_PATTERN = r"^[0-9a-fA-F]{32}$(?!\n)"
#: systemd's names of units leave room for more, but this is also a file name and a column in tables.
NAME_PATTERN = r"^[a-z0-9][a-z0-9_.-]{0,63}$(?!\n)"
_LABEL = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_HOST_NAME = re.compile(r"%s(?:\.%s)*\.?" % (_LABEL, _LABEL))
_USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,63}")
_MAIL_CHARS = r"A-Za-z0-9!#$%&'*+/=?^_`{|}~"
_MAIL_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
#: Also in the schema, so that nothing reaches the mail library that it cannot take.
_EMAIL_PATTERN = r"^(?=[^@]{1,64}@)[%s][%s-]*(?:\.[%s-]+)*@%s(?:\.%s)*$(?!\n)" % (
    _MAIL_CHARS,
    _MAIL_CHARS,
    _MAIL_CHARS,
    _MAIL_LABEL,
    _MAIL_LABEL,
)
_EMAIL_LONGEST = 254
_CONTROL = "[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]"
_NO_CONTROL_PATTERN = r"^[^\u0000-\u001f\u007f-\u009f\u2028\u2029]*$(?!\n)"
_KERNEL_ROOTS = ("/proc", "/sys", "/dev", "/run")
PRIVATE_ROOTS = ("/tmp", "/var/tmp")  # noqa: S108  nothing is made there
#: An rsync daemon expands these in a path that a client names, so that the path could lead elsewhere. Quoting does not
#: help: it is undone only in names that are there already and have one of the first three.
_WILD = "*?[\\"
NO_WILD_PATTERN = r"^[^*?\[\\]*$"
#: What a job has in the place of a secret, which is kept in a file of its own. It is no secret that anybody has.
KEPT = "kept as a credential"
#: Of systemd's names those of services that can be started, but for the units of jobs.
_UNIT_PATTERN = r"^(?!serversync@)(?!.*@\.service$)[A-Za-z0-9:_][A-Za-z0-9:_.@\\-]*\.service$(?!\n)"
_UNIT_LONGEST = 255
_CALENDAR_LONGEST = 1000
_TIMEZONE_LONGEST = 100
HOST_KEY_LONGEST = 8192
#: Characters of all other texts, as in a path that Linux takes.
_LONGEST = 4096
_LONGEST_MONTH = 31
#: Of an Apprise URL only this much can be told without Apprise; which services there are, it knows.
_URL = re.compile(r"([A-Za-z0-9][A-Za-z0-9+.-]*)://[^/\s?#][^\s]*")
#: What Apprise shows on the server that it runs on.
_LOCAL_SCHEMES = ("dbus", "gio", "glib", "gnome", "kde", "macosx", "qt", "syslog", "windows")
#: What of settings.preserve SFTP has no words for.
NOT_BY_SFTP = ("hardlinks", "acls", "xattrs", "sparse")
#: What of settings, and what of settings.preserve, is of use to a log.
OF_LOGS = ("direction", "preserve", "owners")
KEPT_OF_LOGS = ("permissions", "owner", "group")
_KEY_PATTERN = r"^[a-z0-9@.-]+ [A-Za-z0-9+/]+={0,2}$(?!\n)"
_PATH_PATTERN = (
    r"^(?!/(?:proc|sys|dev|run)(?:/|$))(?!.*/\.serversync(?:/|$))"
    r"(?:/(?!\.\.?(?:/|$))[^/\u0000-\u001f\u007f-\u009f\u2028\u2029]+)+$(?!\n)"
)


class Problem(NamedTuple):
    """One thing that is wrong with a declaration: for people `str()`, for machines the code and the path."""

    code: str
    path: str
    text: str

    def __str__(self) -> str:
        return "%s: %s" % (self.path, self.text)


class Wrong(Exception):
    """Raised by a check: what was wrong and what to do, and the code."""

    def __init__(self, text: str, code: str = "invalid_value") -> None:
        super().__init__(text)
        self.text = text
        self.code = code


_OMITTED: Any = object()
_INVALID: Any = object()

Check = Callable[[Any], Any]


def _own(value: Any) -> Any:
    """A copy of data such as a job is; copy.deepcopy() takes four times as long, which a thousand jobs feel."""
    if isinstance(value, dict):
        return {key: _own(one) for key, one in value.items()}
    return [_own(one) for one in value] if isinstance(value, list) else value


class Field:
    """One field of the grammar.

    kind      text, time, duration, size, amount, flag, number, factor, secret, mapping or list;
              an amount is a share, or a count or size; a number is whole, a factor need not be;
              of a secret the normal form says only that it is kept
    default   its value in a new job; None with a mapping that is `optional`: there is none
    check     canonical value from a value of the right kind; raises Wrong
    schema    what JSON Schema can say of the normal form beyond the kind
    optional  the normal form may hold null
    required  always to be given; the remedy when it is not
    option    a parameter of modules only, no part of the job
    later     documents of an earlier version lack it: there the default holds, and the schema says it
    folded    Ansible is told of no parts: what they are is documented elsewhere
    partial   of a mapping the normal form has what is given and no more, and null for nothing: the rest is another's
    """

    def __init__(
        self,
        name: str,
        kind: str,
        description: str,
        default: Any = None,
        check: Check | None = None,
        choices: Sequence[str] = (),
        limits: tuple[int, int] | None = None,
        parts: Sequence[Field] = (),
        element: Field | None = None,
        schema: Mapping[str, Any] | None = None,
        optional: bool = False,
        required: str = "",
        option: bool = False,
        commas: bool = True,
        later: bool = False,
        folded: bool = False,
        partial: bool = False,
    ) -> None:
        self.name = name
        self.kind = kind
        self.description = description
        self._default = default
        self.check = check
        self.choices = tuple(choices)
        self.limits = limits
        self.parts = tuple(parts)
        self.element = element
        self.schema = dict(schema or {})
        self.optional = optional
        self.required = required
        self.option = option
        self.commas = commas
        self.later = later
        self.folded = folded
        self.partial = partial

    def as_given(self) -> Field:
        """The same as part of a mapping that is partial: it has a value, or is not there."""
        field = copy.copy(self)
        field._default = None
        field.optional = field.later = False
        return field

    def default(self) -> Any:
        if self.kind == "mapping" and not self.optional:
            return self.defaults()
        return _own(self._default)

    def defaults(self) -> dict[str, Any]:
        """A mapping with the defaults of its parts."""
        return {part.name: part.default() for part in self.parts if not part.option}

    @property
    def secret(self) -> bool:
        """Whether it is a secret, or has one in it: then no value of it is shown."""
        inside = [*self.parts, self.element] if self.element else self.parts
        return self.kind == "secret" or any(part.secret for part in inside)


def show(value: Any) -> str:
    """A value in an error text: quoted, escaped, short."""
    text = repr(value)
    return text if len(text) <= 80 else text[:76] + "..."


def one_of(words: Iterable[str]) -> str:
    return ", ".join(words)


def _nearest(word: str, words: Iterable[str]) -> str:
    import difflib  # here and below: what most tasks have no use for costs each of them its time

    close = difflib.get_close_matches(word.lower(), list(words), 1, 0.6)
    return close[0] if close else ""


def no_control(text: str) -> None:
    # most texts are, and need no expression compiled
    match = None if text.isprintable() else re.search(_CONTROL, text)
    if match:
        raise Wrong("%s contains the control character U+%04X; remove it" % (show(text), ord(match.group())))


def no_longer(text: str, longest: int) -> None:
    """The runner refuses documents with longer texts, as the schema says."""
    if len(text) > longest:
        raise Wrong("has %d characters; use at most %d" % (len(text), longest))


# --- checks of single values -----------------------------------------------------------------------------------


def _check_name(text: str) -> str:
    if len(text) > 64:
        raise Wrong("%s has %d characters; use at most 64" % (show(text), len(text)))
    if not re.search(NAME_PATTERN, text):
        raise Wrong(
            "%s is not a job name; use a-z, 0-9, '_', '.' and '-', and begin with a letter or a digit" % show(text)
        )
    return text


def _check_comment(text: str) -> str:
    text = text.strip()
    no_control(text)
    no_longer(text, 1000)
    return text


def _check_reason(text: str) -> str:
    # once more would find no more to take away
    reason = re.sub(r"[\s.]+$", "", _check_comment(text))
    if not reason:
        raise Wrong("is empty; write why the circle is meant, or null where none is")
    return reason


def _check_host(text: str) -> str:
    remedy = "write a host name, an IPv4 address, an IPv6 address without brackets, or the name of a pairing"
    if "@" in text:
        # what is before it may have a password in it
        shown = show("..." + text[text.rindex("@") :])
        raise Wrong("%s contains '@'; write the host here and the user in account.user" % shown)
    address, percent, zone = text.partition("%")
    if ":" in address:
        import ipaddress

        try:
            ipaddress.IPv6Address(address)
        except ValueError:
            raise Wrong("%s is not a host; %s, and the port in partner.port" % (show(text), remedy)) from None
        if percent and not re.fullmatch(r"[A-Za-z0-9_.-]{1,64}", zone):
            raise Wrong("%s has no valid interface after '%%'; %s" % (show(text), remedy))
        return text
    if not _HOST_NAME.fullmatch(text) or len(text) > 253:
        raise Wrong("%s is not a host; %s" % (show(text), remedy))
    if re.fullmatch(r"[0-9.]+", text):
        import ipaddress

        try:
            ipaddress.IPv4Address(text)
        except ValueError:
            raise Wrong("%s is not an IPv4 address; %s" % (show(text), remedy)) from None
    return text


def _check_user(text: str) -> str:
    if not _USER.fullmatch(text):
        raise Wrong(
            "%s is not a user name; use letters, digits, '_', '.', '+' and '-', and no dash at the beginning"
            % show(text)
        )
    return text


def check_path(text: str) -> str:
    no_control(text)
    if not text.startswith("/"):
        raise Wrong("%s is not absolute; write the whole path from /" % show(text))
    parts = [part for part in text.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise Wrong("%s contains '..'; write the path that it leads to" % show(text))
    if not parts:
        raise Wrong("'/' is the whole file system; name a directory or a file in it")
    path = "/" + "/".join(parts)
    no_longer(path, _LONGEST)
    return path


def _check_element_path(text: str) -> str:
    path = check_path(text)
    if ".serversync" in path.split("/"):
        raise Wrong("%s is inside '.serversync', where the runner keeps its own files; name another path" % show(path))
    for root in _KERNEL_ROOTS:
        if _inside(path, root):
            raise Wrong("%s is under %s, which holds no files to keep; name another path" % (show(path), root))
    return path


def _check_password(text: str) -> str:
    if not text:
        raise Wrong("is empty; give the password, or null for a log-in by key")
    if re.search("[\x00\r\n]", text):
        raise Wrong("has more than one line; give the password alone")
    no_longer(text, 1000)
    return text


def _check_url(text: str) -> str:
    text = text.strip()
    if text == KEPT:
        return text
    match = re.search(_CONTROL, text)
    if match:
        raise Wrong("contains the control character U+%04X; remove it" % ord(match.group()))
    if re.search(r"\s", text):
        raise Wrong("contains a blank; write %20 for it, and each URL as an entry of its own")
    no_longer(text, _LONGEST)
    found = _URL.fullmatch(text)
    if not found:
        raise Wrong("is not a URL of Apprise; write SCHEME://..., e.g. mailtos://USER:PASSWORD@example.com")
    scheme = found.group(1).lower()
    if scheme in _LOCAL_SCHEMES:
        raise Wrong("is of %s://, which is shown on this server alone; name a service in the network" % scheme)
    return text


def _check_urls(urls: list[str]) -> list[str]:
    if KEPT in urls and len(set(urls)) > 1:
        raise Wrong("has new URLs beside those that are kept; give all of them, or %s alone" % show(KEPT), "conflict")
    for number, url in enumerate(urls):
        if url != KEPT and urls.index(url) < number:
            text = "has the same URL as entry %d and as entry %d; leave one of them out"
            raise Wrong(text % (urls.index(url), number), "conflict")
    return urls


def _check_unit(text: str) -> str:
    text = text.strip()
    example = "e.g. dump-db.service"
    if not text.endswith(".service"):
        raise Wrong("%s is not a service; write its whole name, %s" % (show(text), example))
    if text.startswith("serversync@"):
        remedy = "put the elements into one job, where elements[].requires couples them"
        raise Wrong("%s is the unit of a job, which does not fail where a run does; %s" % (show(text), remedy))
    if text.endswith("@.service"):
        raise Wrong("%s is a template; name an instance of it, e.g. dump-db@main.service" % show(text))
    if not re.search(_UNIT_PATTERN, text) or len(text) > _UNIT_LONGEST:
        raise Wrong("%s is not the name of a unit; write it as systemctl list-units does, %s" % (show(text), example))
    return text


def _check_key_file(text: str) -> str:
    if "PRIVATE KEY" in text:
        raise Wrong("is a private key itself; write the path of the file that holds it", "private_key")
    return check_path(text)


def _check_duration(low: int, high: int) -> Check:
    def check(text: str) -> str:
        try:
            seconds = _schedule.seconds_of(text)
        except ValueError:
            raise Wrong(
                "%s is not a duration; write a number and a unit, e.g. 90s, 15m, 2h or 7d" % show(text)
            ) from None
        if not low <= seconds <= high:
            limits = (_schedule.duration_of(low), _schedule.duration_of(high))
            raise Wrong("%s is out of range; use %s to %s" % (show(text), *limits), "out_of_range")
        return _schedule.duration_of(seconds)

    return check


def _check_every(text: str) -> str:
    every: str = _check_duration(_schedule.MINUTE, _schedule.DAY)(text)
    period = _schedule.seconds_of(every)
    if not _schedule.divides(period):
        nearest = _schedule.duration_of(_schedule.nearest_period(period))
        raise Wrong(
            "%s divides neither an hour nor a day; use %s, the nearest that does, or at" % (show(text), nearest)
        )
    return every


def _check_time(text: str) -> str:
    try:
        return _schedule.time_of(text)
    except ValueError:
        raise Wrong('%s is not a time of day; write HH:MM between 00:00 and 23:59, e.g. "02:30"' % show(text)) from None


def _check_day(text: str) -> str:
    try:
        return _schedule.day_of(text)
    except ValueError:
        raise Wrong("%s is not a day; use %s" % (show(text), one_of(_schedule.DAYS))) from None


def _check_days(days: list[str]) -> list[str]:
    return [day for day in _schedule.DAYS if day in days]


def _check_month(days: list[int]) -> list[int]:
    return sorted(set(days))


def _check_calendar(text: str) -> str:
    text = " ".join(text.split())
    no_longer(text, _CALENDAR_LONGEST)
    if not re.search(_schedule.CALENDAR_PATTERN, text):
        raise Wrong('%s is not a calendar expression; see "man systemd.time", e.g. "Mon..Fri *-*-* 02:30"' % show(text))
    return text


def _check_timezone(text: str) -> str:
    text = _schedule.zone_of(text)
    no_longer(text, _TIMEZONE_LONGEST)
    if not re.search(_schedule.TIMEZONE_PATTERN, text):
        raise Wrong("%s is not a time zone; write its name, e.g. Europe/Berlin or UTC" % show(text))
    return text


def _check_email(text: str) -> str:
    text = text.strip()
    no_control(text)
    if not re.search(_EMAIL_PATTERN, text) or len(text) > _EMAIL_LONGEST:
        raise Wrong("%s is not an e-mail address; write it as name@example.com" % show(text))
    return text


def _check_pattern(text: str) -> str:
    no_control(text)
    no_longer(text, _LONGEST)
    if not text.strip():
        raise Wrong("is empty; write a pattern or remove the entry")
    if text.startswith("#"):
        raise Wrong("%s is a comment; remove it, or write \\# for a name that begins with '#'" % show(text))
    if not text[text.startswith("!") :].strip("/ "):
        raise Wrong("%s matches no file; write * for all, or remove the entry" % show(text))
    if (len(text) - len(text.rstrip("\\"))) % 2:
        raise Wrong("%s ends with a backslash that makes nothing literal; remove or double it" % show(text))
    return text


def _check_patterns(patterns: list[str]) -> list[str]:
    """The last pattern that matches decides, so of equal ones the last one counts, and a leading exception does not."""
    if patterns and patterns[0].startswith("!"):
        text = "begins with %s, an exception from nothing; put it after the pattern that it is an exception from"
        raise Wrong(text % show(patterns[0]))
    last = list(dict.fromkeys(reversed(patterns)))[::-1]
    return list(itertools.dropwhile(lambda pattern: pattern.startswith("!"), last))


_SIZE_UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_SIZE = re.compile(r"([0-9]{1,10})\s*([kmgt])", re.IGNORECASE | re.ASCII)
_SIZE_PATTERN = r"[1-9][0-9]{0,9}[KMGT]"
_SHARE = re.compile(r"([0-9]{1,10})\s*%")
_SHARE_PATTERN = r"(?:[1-9][0-9]?|100)%"
_MOST_PATHS = 999999999


def _size_of(count: int) -> str:
    """The one spelling of a size: in the largest unit that divides it."""
    return next("%d%s" % (count // one, unit) for unit, one in reversed(_SIZE_UNITS.items()) if count % one == 0)


def _size(text: str, low: str, high: str, instead: str) -> str | None:
    """The size that a text is, in its one spelling; None when it is none."""
    match = _SIZE.fullmatch(text.strip())
    if not match:
        return None
    count = int(match.group(1)) * _SIZE_UNITS[match.group(2).upper()]
    limits = [int(one[:-1]) * _SIZE_UNITS[one[-1]] for one in (low, high)]
    if not limits[0] <= count <= limits[1]:
        raise Wrong("%s is out of range; use %s to %s%s" % (show(text), low, high, instead), "out_of_range")
    return _size_of(count)


def _share(text: str, instead: str) -> str | None:
    """The share that a text is, in its one spelling; None when it is none."""
    match = _SHARE.fullmatch(text.strip())
    if not match:
        return None
    percent = int(match.group(1))
    if not 1 <= percent <= 100:
        raise Wrong("%s is out of range; use 1%% to 100%%%s" % (show(text), instead), "out_of_range")
    return "%d%%" % percent


def _check_bandwidth(text: str) -> str:
    size = _size(text, "1K", "1T", ", or null for no limit")
    if size is None:
        raise Wrong("%s is not a size; write a whole number and a unit, e.g. 500K, 20M or 1G" % show(text))
    return size


def _check_room(text: str) -> str:
    room = _share(text, ", or a size such as 50G") or _size(text, "1M", "1024T", ", or a share such as 20%")
    if room is None:
        raise Wrong(
            "%s is neither a share nor a size; write a whole number and %%, M, G or T, e.g. 20%% or 50G" % show(text)
        )
    return room


def _check_amount(text: str) -> str:
    share = _share(text, ", or a number of paths, 0 for none")
    if share is not None:
        return share
    if not re.fullmatch(r"\s*[0-9]{1,18}\s*", text):
        raise Wrong("%s is neither a share nor a number of paths; write e.g. 25%% or 100" % show(text))
    if int(text) > _MOST_PATHS:
        raise Wrong(
            "%s is out of range; use 0 to %d, or a share such as 25%%" % (show(text), _MOST_PATHS), "out_of_range"
        )
    return "%d" % int(text)


def _in_order(words: Sequence[str]) -> Check:
    """The entries of a list in the order of the words that they are chosen from."""
    return lambda entries: [word for word in words if word in entries]


def _check_host_key(text: str) -> str:
    from ._host_key import canonical  # most tasks pin no key

    return canonical(text)


# --- the grammar -----------------------------------------------------------------------------------------------


def duration(name: str, description: str, default: str | None, low: int, high: int, **more: Any) -> Field:
    check = more.pop("check", None) or _check_duration(low, high)
    return Field(name, "duration", description, default, check, schema={"pattern": _schedule.DURATION_PATTERN}, **more)


def _plain(pattern: str = _NO_CONTROL_PATTERN, longest: int = _LONGEST) -> dict[str, Any]:
    return {"minLength": 1, "maxLength": longest, "pattern": pattern}


def _exactly(*patterns: str) -> dict[str, Any]:
    return {"pattern": r"^(?:%s)$(?!\n)" % "|".join(patterns)}


def _patterns(name: str, description: str, later: bool = False) -> Field:
    return Field(
        name,
        "list",
        description,
        default=[],
        element=Field(
            "",
            "text",
            "A pattern.",
            check=_check_pattern,
            schema=_plain(r"^(?!!?[/ ]*$)(?!(?:.*[^\\])?\\(?:\\\\)*$)[^#\u0000-\u001f][^\u0000-\u001f]*$(?!\n)"),
        ),
        check=_check_patterns,
        # an exception comes after what it is from
        schema={"allOf": [{"prefixItems": [{"pattern": "^[^!]"}]}]},
        later=later,
    )


def _units(name: str, description: str) -> Field:
    unit = Field(
        "unit",
        "text",
        "The name of a service.",
        check=_check_unit,
        schema=_plain(_UNIT_PATTERN, _UNIT_LONGEST),
        required="name a service of systemd, e.g. dump-db.service",
    )
    element = Field("", "mapping", "A unit of the administrator.", parts=(unit,))
    return Field(name, "list", description, default=[], element=element, later=True)


_PRESERVE = ("times", "permissions", "owner", "group", "links", "hardlinks", "acls", "xattrs", "sparse")

SETTINGS = (
    Field(
        "direction",
        "text",
        "Where changes go.",
        default="to_partner",
        choices=("to_partner", "from_partner", "both"),
    ),
    Field(
        "conflict",
        "text",
        "Which version stands where both replicas were changed, or differ and never agreed.",
        default="newer_wins",
        choices=("this_server_wins", "partner_wins", "newer_wins", "no_winner", "keep_both"),
        later=True,
    ),
    Field(
        "delete",
        "text",
        "What is deleted: nothing, what a replica lost since both agreed, or all that the source has not.",
        default="never",
        choices=("never", "synced", "extraneous"),
    ),
    Field(
        "max_delete",
        "amount",
        "A run that would delete more paths stops before its first change; 100% switches that off.",
        default="25%",
        check=_check_amount,
        schema=_exactly(_SHARE_PATTERN, "0", "[1-9][0-9]{0,8}"),
        later=True,
    ),
    Field(
        "max_change",
        "amount",
        "A run that would overwrite more paths stops before its first change; null: no limit.",
        default=None,
        check=_check_amount,
        schema=_exactly(_SHARE_PATTERN, "0", "[1-9][0-9]{0,8}"),
        optional=True,
        later=True,
    ),
    _patterns("include", "Patterns of gitignore; nothing but what they match takes part; empty: all.", later=True),
    _patterns("exclude", "Patterns of gitignore; what they match is left alone on both sides."),
    Field(
        "preserve",
        "list",
        "What is kept the same beside contents; null: all that the account may on both servers.",
        default=None,
        element=Field("", "text", "A property of files.", choices=_PRESERVE),
        check=_in_order(_PRESERVE),
        optional=True,
        later=True,
    ),
    Field(
        "owners",
        "text",
        "Whether owners and groups are the same by name or by number.",
        default="names",
        choices=("names", "numbers"),
        later=True,
    ),
    Field(
        "verify",
        "text",
        "Whether a changed file is known by its metadata or by its contents, which reads every file.",
        default="metadata",
        choices=("metadata", "checksum"),
        later=True,
    ),
    Field(
        "verify_every",
        "number",
        "Every how many runs contents are compared, with verify metadata; null: never.",
        default=None,
        limits=(1, 10000),
        optional=True,
        later=True,
    ),
    duration(
        "keep_versions",
        "How long overwritten and deleted files are kept; 0s: until the next run.",
        "7d",
        0,
        3650 * _schedule.DAY,
        later=True,
    ),
    Field(
        "versions_max",
        "amount",
        "How much of the file system, or how many bytes, they may take; K, M, G, T are powers of 1024.",
        default="20%",
        check=_check_room,
        schema=_exactly(_SHARE_PATTERN, _SIZE_PATTERN),
        later=True,
    ),
    Field(
        "bandwidth_limit",
        "size",
        "Bytes per second; K, M, G, T are powers of 1024; null: no limit.",
        default=None,
        check=_check_bandwidth,
        schema=_exactly(_SIZE_PATTERN),
        optional=True,
        later=True,
    ),
    Field(
        "compress",
        "text",
        "Whether data is compressed on its way; auto: as the runner chooses.",
        default="auto",
        choices=("auto", "always", "never"),
        later=True,
    ),
)


JOB = Field(
    "job",
    "mapping",
    "A synchronization job: what is kept the same on this server and its partner, when, and who is told.",
    parts=(
        Field(
            "name",
            "text",
            "The identity of the job, together with the scope.",
            check=_check_name,
            schema={"pattern": NAME_PATTERN},
            required="give the job a name",
        ),
        Field(
            "comment",
            "text",
            "What the job is for, one line.",
            default="",
            check=_check_comment,
            schema={"maxLength": 1000, "pattern": _NO_CONTROL_PATTERN},
        ),
        Field(
            "enabled",
            "flag",
            "Whether the schedule is active; a paused job can still be run by hand.",
            default=True,
        ),
        Field(
            "scope",
            "text",
            "Whose job it is: the system's, or that of the user who declares it.",
            default="system",
            choices=("system", "user"),
        ),
        Field(
            "partner",
            "mapping",
            "The other server.",
            parts=(
                Field(
                    "host",
                    "text",
                    "Host name, address or name of a pairing.",
                    check=_check_host,
                    schema=_plain(r"^[A-Za-z0-9_:][A-Za-z0-9_.:%-]*$(?!\n)", 320),
                ),
                Field(
                    "port",
                    "number",
                    "Port of the SSH server; null with connection local.",
                    default=22,
                    limits=(1, 65535),
                    optional=True,
                ),
                Field(
                    "connection",
                    "text",
                    "How the partner is reached; sftp: it has no runner; local: both replicas are on this server.",
                    default="ssh",
                    choices=("ssh", "sftp", "local"),
                ),
                Field(
                    "host_key",
                    "list",
                    "Public host keys of the partner as TYPE BASE64; empty: the pairing's pin.",
                    default=[],
                    element=Field(
                        "",
                        "text",
                        "A public key.",
                        check=_check_host_key,
                        schema=_plain(_KEY_PATTERN, HOST_KEY_LONGEST),
                    ),
                    check=sorted,
                    commas=False,
                ),
            ),
        ),
        Field(
            "account",
            "mapping",
            "How to log in on the partner; null with connection local.",
            default=None,
            optional=True,
            parts=(
                Field(
                    "user",
                    "text",
                    "The user on the partner.",
                    default="serversync",
                    check=_check_user,
                    schema=_plain(r"^[A-Za-z0-9_][A-Za-z0-9_.+-]*$(?!\n)", 64),
                ),
                Field(
                    "private_key_file",
                    "text",
                    "The private key on this server; null: the runner's own.",
                    check=_check_key_file,
                    schema=_plain(r"^/[^\u0000-\u001f\u007f-\u009f\u2028\u2029]+$(?!\n)"),
                    optional=True,
                ),
                Field(
                    "password",
                    "secret",
                    "The password to log in with, which is kept outside of the job's document; null: log in by key.",
                    check=_check_password,
                    schema={"enum": [None, KEPT]},
                    optional=True,
                    later=True,
                ),
            ),
        ),
        Field(
            "schedule",
            "mapping",
            "When the job runs by itself; null: never.",
            default=None,
            optional=True,
            parts=(
                duration(
                    "every",
                    "The period; it divides an hour or a day.",
                    None,
                    _schedule.MINUTE,
                    _schedule.DAY,
                    check=_check_every,
                    optional=True,
                ),
                Field(
                    "at",
                    "list",
                    "Times of day.",
                    default=None,
                    element=Field(
                        "",
                        "time",
                        "HH:MM or HH:MM:SS.",
                        check=_check_time,
                        schema={"pattern": _schedule.TIME_PATTERN},
                    ),
                    check=sorted,
                    schema={"minItems": 1},
                    optional=True,
                ),
                Field(
                    "days",
                    "list",
                    "The days of the week that the times are for; empty: all.",
                    default=[],
                    element=Field("", "text", "A day.", check=_check_day, schema={"enum": list(_schedule.DAYS)}),
                    check=_check_days,
                    schema={"maxItems": 6},
                ),
                Field(
                    "day_of_month",
                    "list",
                    "The days of the month that the times are for; empty: all.",
                    default=[],
                    element=Field(
                        "", "number", "A day; a month that lacks it is passed over.", limits=(1, _LONGEST_MONTH)
                    ),
                    check=_check_month,
                    schema={"maxItems": _LONGEST_MONTH - 1},
                    later=True,
                ),
                Field(
                    "calendar",
                    "text",
                    "A calendar expression of systemd, without a time zone.",
                    check=_check_calendar,
                    schema=_plain(_schedule.CALENDAR_PATTERN, _CALENDAR_LONGEST),
                    optional=True,
                ),
                Field(
                    "timezone",
                    "text",
                    "The time zone of the schedule; null: this server's own.",
                    check=_check_timezone,
                    schema=_plain(_schedule.TIMEZONE_PATTERN, _TIMEZONE_LONGEST),
                    optional=True,
                ),
                duration("jitter", "Up to how much later a run starts.", None, 0, _schedule.DAY),
                Field(
                    "catch_up",
                    "flag",
                    "Whether a run that was missed is made up for at the next boot.",
                    default=True,
                ),
            ),
        ),
        Field(
            "on_error",
            "mapping",
            "What happens when a run fails.",
            parts=(
                Field("retries", "number", "How often a failed run is tried again.", default=3, limits=(0, 100)),
                duration("delay", "How long to wait before the second try.", "5m", 0, _schedule.DAY),
                Field(
                    "backoff",
                    "factor",
                    "How many times longer each wait is than the one before it.",
                    default=2.0,
                    limits=(1, 10),
                    later=True,
                ),
                duration(
                    "max_delay",
                    "The longest wait; null: 1h, or the delay where that is longer.",
                    None,
                    0,
                    _schedule.DAY,
                    optional=True,
                    later=True,
                ),
            ),
        ),
        Field(
            "notification",
            "mapping",
            "Who is told of what.",
            parts=(
                Field(
                    "email",
                    "list",
                    "Addresses that get a mail.",
                    default=[],
                    element=Field(
                        "",
                        "text",
                        "An address.",
                        check=_check_email,
                        schema=_plain(_EMAIL_PATTERN, _EMAIL_LONGEST),
                    ),
                    check=sorted,
                ),
                Field(
                    "urls",
                    "list",
                    "URLs of services that are told through Apprise, which are kept outside of the job's document.",
                    default=[],
                    element=Field("", "secret", "A URL.", check=_check_url, schema={"const": KEPT}),
                    check=_check_urls,
                    schema={"maxItems": 1},
                    commas=False,
                    later=True,
                ),
                Field(
                    "events",
                    "list",
                    "What they are told of.",
                    default=["conflict", "failure", "recovery"],
                    element=Field(
                        "",
                        "text",
                        "An event.",
                        choices=("failure", "conflict", "recovery", "late", "success", "always"),
                    ),
                    check=sorted,
                ),
                duration(
                    "late_after",
                    "How long the job may be without a good run before it is late; null: as the schedule has it.",
                    None,
                    _schedule.MINUTE,
                    3650 * _schedule.DAY,
                    optional=True,
                    later=True,
                ),
            ),
        ),
        Field("settings", "mapping", "How the elements are synchronized.", parts=SETTINGS),
        Field(
            "elements",
            "list",
            "The directory trees, files and logs that are kept in sync.",
            default=None,
            element=Field(
                "",
                "mapping",
                "One thing kept in sync.",
                parts=(
                    Field(
                        "path",
                        "text",
                        "The path on this server.",
                        check=_check_element_path,
                        schema=_plain(_PATH_PATTERN),
                        required="write the whole path from /",
                    ),
                    Field(
                        "partner_path",
                        "text",
                        "The path on the partner, with connection ssh without * ? [ and backslash.",
                        check=_check_element_path,
                        schema=_plain(_PATH_PATTERN),
                    ),
                    Field(
                        "kind",
                        "text",
                        "A tree, which one file may be, or a log, whose new lines are appended to the target's.",
                        default="tree",
                        choices=("tree", "log"),
                        later=True,
                    ),
                    Field(
                        "previous_path",
                        "text",
                        "The path on this server that the element had before, whose archive it takes over; null: none.",
                        check=_check_element_path,
                        schema=_plain(_PATH_PATTERN),
                        optional=True,
                        later=True,
                    ),
                    Field(
                        "requires",
                        "list",
                        "The paths of elements of this job that have to be well before this one is begun.",
                        default=[],
                        element=Field("", "text", "A path.", check=_check_element_path, schema=_plain(_PATH_PATTERN)),
                        check=sorted,
                        commas=False,
                        later=True,
                    ),
                    Field(
                        "settings",
                        "mapping",
                        "What holds for this element in the place of the job's settings; null: nothing.",
                        parts=[part.as_given() for part in SETTINGS],
                        schema={"minProperties": 1},
                        optional=True,
                        later=True,
                        partial=True,
                    ),
                ),
            ),
            schema={"minItems": 1},
        ),
        _units(
            "before", "Units that are started, and waited for, before a run moves anything; one that fails, fails it."
        ),
        _units("after", "Units that are started when a run is over, whatever it came to."),
        Field(
            "limits",
            "mapping",
            "What a run may take of the servers.",
            parts=(
                Field("parallel", "number", "How many elements are synchronized at a time.", default=1, limits=(1, 8)),
                duration(
                    "timeout",
                    "How long one attempt may take before it is ended and counts as failed; null: as long as it takes.",
                    None,
                    _schedule.MINUTE,
                    30 * _schedule.DAY,
                    optional=True,
                    later=True,
                ),
                Field(
                    "nice",
                    "number",
                    "How much a run gives way to other processes of this server.",
                    default=0,
                    limits=(0, 19),
                    later=True,
                ),
            ),
            later=True,
        ),
        Field(
            "accept_circular",
            "text",
            "Why a circular connection that the job is part of is meant; null: it is an error.",
            default=None,
            check=_check_reason,
            schema=_plain(longest=1000),
            optional=True,
            later=True,
        ),
        Field(
            "omitted",
            "text",
            "What becomes of the fields that are not given: they stay as they are, or get their defaults.",
            default="keep",
            choices=("keep", "reset"),
            option=True,
        ),
        Field(
            "previous_name",
            "text",
            "The name that the job had before, which is given up; a job of it is renamed.",
            check=_check_name,
            option=True,
        ),
        Field(
            "copy_from",
            "text",
            "The job of the same scope on this server whose options are those that are not given.",
            check=_check_name,
            option=True,
        ),
        Field(
            "validate_partner",
            "flag",
            "Whether the partner and the paths of a job that changes are tried before anything is written.",
            default=True,
            option=True,
        ),
        duration(
            "stop_timeout",
            "How long a run that is on may go on when the job changes, before it is stopped.",
            "60s",
            0,
            _schedule.DAY,
            option=True,
        ),
        Field(
            "state",
            "text",
            "Whether the job exists.",
            default="present",
            choices=("present", "absent"),
            option=True,
        ),
    ),
)

#: Of its options those that a task with many jobs has for all of them.
OF_THE_TASK = ("omitted", "stop_timeout", "validate_partner")

_SPEC_TYPES = {
    "text": "str",
    "time": "str",
    "duration": "str",
    "size": "str",
    "amount": "str",
    "flag": "bool",
    "number": "int",
    "factor": "float",
    "secret": "str",
    "mapping": "dict",
    "list": "list",
}


# --- reading ---------------------------------------------------------------------------------------------------

_TRUE = ("yes", "on", "1", "true", "t", "y")
_FALSE = ("no", "off", "0", "false", "f", "n")
#: In any case.
FLAGS = _TRUE + _FALSE


def _join(path: str, name: str) -> str:
    return "%s.%s" % (path, name) if path else name


def _kind_of(value: Any) -> str:
    if isinstance(value, bool):
        return "a boolean"
    if isinstance(value, (int, float)):
        return "a number"
    if isinstance(value, str):
        return "text"
    return "a dictionary" if isinstance(value, dict) else "a list" if isinstance(value, (list, tuple)) else "nothing"


def _read_text(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise Wrong("%s is %s, not text; quote it" % (show(value), _kind_of(value)), "wrong_type")
    if any("\ud800" <= char <= "\udfff" for char in value):
        raise Wrong("%s is not valid UTF-8; only names in UTF-8 can be declared" % show(value))
    return value


def _read_time(value: Any) -> str:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        raise Wrong('%s is a number, not a time of day; quote times, e.g. "12:30"' % show(value), "wrong_type")
    return _read_text(value)


def _read_duration(value: Any) -> str:
    if isinstance(value, (int, float)) and not isinstance(value, bool) and value != 0:
        raise Wrong("%s has no unit; write e.g. 90s, 15m, 2h or 7d" % show(value), "wrong_type")
    return _read_text(value)


def _read_size(value: Any) -> str:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        raise Wrong("%s has no unit; write e.g. 500K, 20M or 1G" % show(value), "wrong_type")
    return _read_text(value)


def _read_amount(value: Any) -> str:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, (bool, float)):
        what = "a boolean" if isinstance(value, bool) else "not a whole number"
        raise Wrong("%s is %s; write a share, e.g. 25%%" % (show(value), what), "wrong_type")
    return _read_text(value)


def _read_secret(value: Any) -> str:
    if isinstance(value, (bool, float)) or not isinstance(value, (str, int)):
        raise Wrong("is %s, not text; quote it" % _kind_of(value), "wrong_type")
    try:
        return _read_text(value)
    except Wrong:
        raise Wrong("is not valid UTF-8; only secrets in UTF-8 can be declared") from None


def _read_flag(value: Any) -> bool:
    if isinstance(value, (bool, int, float)) and value in (0, 1):
        return bool(value)
    if isinstance(value, str) and value.strip().lower() in FLAGS:
        return value.strip().lower() in _TRUE
    raise Wrong("%s is not a boolean; use true or false" % show(value), "wrong_type")


def _read_number(value: Any, limits: tuple[int, int]) -> int:
    digits = isinstance(value, str) and re.fullmatch(r"\s*[+-]?[0-9]{1,18}\s*", value)
    if digits or (isinstance(value, float) and value.is_integer()):
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise Wrong("%s is not a whole number; use %d to %d" % (show(value), *limits), "wrong_type")
    if not limits[0] <= value <= limits[1]:
        raise Wrong("%d is out of range; use %d to %d" % (value, *limits), "out_of_range")
    return value


def _read_factor(value: Any, limits: tuple[int, int]) -> float:
    digits = isinstance(value, str) and re.fullmatch(r"\s*[+-]?[0-9]{1,18}(?:\.[0-9]{0,18})?\s*", value)
    # one that is not finite fits no limits
    if isinstance(value, bool) or not (digits or isinstance(value, (int, float))):
        raise Wrong("%s is not a number; use %d to %d, e.g. 1.5" % (show(value), *limits), "wrong_type")
    # a whole number may be too large for a float
    number = value if isinstance(value, int) else float(value)
    if not limits[0] <= number <= limits[1]:
        raise Wrong("%s is out of range; use %d to %d" % (show(value), *limits), "out_of_range")
    return float(number)


_READERS: dict[str, Callable[[Any], str]] = {
    "time": _read_time,
    "duration": _read_duration,
    "size": _read_size,
    "amount": _read_amount,
    "secret": _read_secret,
}


def _read_list(field: Field, value: Any, path: str, problems: list[Problem]) -> Any:
    element = field.element
    if element is None:
        return _INVALID
    if isinstance(value, str) and element.kind != "mapping":
        # as Ansible does: one text is a list, and commas part it
        value = [part.strip() for part in value.split(",")] if field.commas else [value]
        value = [] if value == [""] else value
    elif isinstance(value, (int, float)) and not isinstance(value, bool) and element.kind != "mapping":
        value = [value]
    if not isinstance(value, (list, tuple)):
        problems.append(
            Problem(
                "wrong_type",
                path,
                "%sis %s, not a list; begin each entry with a dash"
                % ("" if element.secret else show(value) + " ", _kind_of(value)),
            )
        )
        return _INVALID
    entries = []
    for number, entry in enumerate(value):
        at = "%s[%d]" % (path, number)
        if entry is None:
            problems.append(Problem("wrong_type", at, "is empty; write a value or remove the entry"))
            entries.append(_INVALID)
        else:
            entries.append(_read(element, entry, at, problems))
    if any(entry is _INVALID for entry in entries):
        return _INVALID
    if not entries and field.schema.get("minItems"):
        problems.append(Problem("missing", path, "is empty; give at least one entry"))
        return _INVALID
    try:
        entries = field.check(entries) if field.check else entries
    except Wrong as wrong:
        problems.append(Problem(wrong.code, path, wrong.text))
        return _INVALID
    # twice the same says no more than once
    return entries if element.kind == "mapping" else list(dict.fromkeys(entries))


def _home_of(name: str, place: Field, inside: bool) -> str:
    """Where in the grammar an option of this name is, for who wrote it one level too high or too low.

    `inside`: the place is within a job.
    """
    for grammar in (place, JOB) if inside else (place,):
        for field in grammar.parts:
            if field.name == name:
                return name
            parts = field.element.parts if field.element else field.parts
            if any(part.name == name for part in parts):
                return "%s%s.%s" % (field.name, "[]" if field.element else "", name)
    return ""


def _read_mapping(field: Field, value: Any, path: str, problems: list[Problem]) -> Any:
    names = [part.name for part in field.parts]
    if isinstance(value, str) and value.lstrip().startswith("{"):
        # as Ansible does: a mapping may come as JSON text, e.g. from the command line
        with contextlib.suppress(ValueError, RecursionError):
            value = json.loads(value)
    if not isinstance(value, dict):
        shown = "" if field.secret else show(value) + " "
        text = "%sis %s, not a dictionary; write it with the keys %s" % (shown, _kind_of(value), one_of(names))
        problems.append(Problem("wrong_type", path, text))
        return _INVALID
    before = len(problems)
    for key in value:
        if key in names:
            continue
        close, home = _nearest(str(key), names), _home_of(str(key), field, bool(path) or field is JOB)
        remedy = "use one of %s" % one_of(names)
        # the very name in another place is nearer than one that looks alike
        if close or home not in ("", key):
            remedy = "did you mean %s?" % (home if home not in ("", key) else close)
        elif home and path:
            remedy = "write it outside of %s" % path
        problems.append(Problem("unknown_option", _join(path, str(key)), "is not an option; " + remedy))
    given = {}
    for part in field.parts:
        if part.name in value:
            one = value[part.name]
            given[part.name] = None if one is None else _read(part, one, _join(path, part.name), problems)
        if part.required and given.get(part.name) is None:
            problems.append(Problem("missing", _join(path, part.name), "is missing; " + part.required))
    return _INVALID if len(problems) > before else given


def _read(field: Field, value: Any, path: str, problems: list[Problem]) -> Any:
    """The canonical spelling of one value; _INVALID when problems were added."""
    if field.kind == "mapping":
        return _read_mapping(field, value, path, problems)
    if field.kind == "list":
        return _read_list(field, value, path, problems)
    try:
        if field.kind == "flag":
            return _read_flag(value)
        if field.kind == "number":
            return _read_number(value, field.limits or (0, 0))
        if field.kind == "factor":
            return _read_factor(value, field.limits or (0, 0))
        if field.choices and isinstance(value, bool):
            # YAML takes yes, no, on and off for booleans too
            raise Wrong("%s is not one of %s" % (show(value), one_of(field.choices)), "not_a_choice")
        text = _READERS.get(field.kind, _read_text)(value)
        if field.choices and text not in field.choices:
            close = _nearest(text, field.choices)
            hint = "; did you mean %s?" % close if close else ""
            raise Wrong("%s is not one of %s%s" % (show(text), one_of(field.choices), hint), "not_a_choice")
        return field.check(text) if field.check else text
    except Wrong as wrong:
        problems.append(Problem(wrong.code, path, wrong.text))
        return _INVALID


def read(parameters: Mapping[str, Any], grammar: Field | None = None) -> tuple[dict[str, Any], list[Problem]]:
    """What a task gives, in canonical spelling: omitted stays omitted, null stays None. `grammar`: of which module."""
    problems: list[Problem] = []
    given = _read(grammar or JOB, dict(parameters), "", problems)
    return ({} if problems else given), problems


# --- laying over what is there ---------------------------------------------------------------------------------


def _merge(field: Field, before: Any, given: Any) -> Any:
    if given is None:
        return field.default()
    if field.kind == "mapping":
        if given is _OMITTED:
            return field.default() if before is _OMITTED else before
        if field.partial:
            return {name: one for name, one in given.items() if one is not None} or None
        base = before if isinstance(before, dict) else {}
        return {
            part.name: _merge(part, base.get(part.name, _OMITTED), given.get(part.name, _OMITTED))
            for part in field.parts
            if not part.option
        }
    if given is _OMITTED:
        return field.default() if before is _OMITTED else before
    if field.element and field.element.kind == "mapping":
        return [_merge(field.element, _OMITTED, entry) for entry in given]
    return given


def _has_value(value: Any) -> bool:
    if isinstance(value, dict):
        return any(_has_value(one) for one in value.values())
    return value is not None and value != []


def _part(given: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    part = given.get(name)
    return part if isinstance(part, dict) else {}


def _resolve_partner(job: dict[str, Any], given: Mapping[str, Any], problems: list[Problem]) -> None:
    partner = job["partner"]
    if partner["host"] is None:
        problems.append(Problem("missing", "partner.host", "is missing; name the partner server"))
    if partner["connection"] != "local":
        partner["port"] = 22 if partner["port"] is None else partner["port"]
        job["account"] = job["account"] or field_of("account").defaults()
        _resolve_password(job, _part(given, "account"), problems)
        return
    told = _part(given, "partner")
    for path, value in (
        ("partner.port", told.get("port")),
        ("partner.host_key", told.get("host_key")),
        ("account", given.get("account")),
    ):
        if _has_value(value):
            problems.append(Problem("conflict", path, "is not used with partner.connection local; leave it out"))
    partner.update(port=None, host_key=[])
    job["account"] = None


def _resolve_password(job: Mapping[str, Any], told: Mapping[str, Any], problems: list[Problem]) -> None:
    """A log-in is by password or by a key of the job's own; giving one clears the other."""
    account = job["account"]
    path = "account.password"
    if job["partner"]["connection"] != "sftp":
        if told.get("password"):
            text = (
                "goes with partner.connection sftp only, since a paired partner takes nothing but its key; leave it out"
            )
            problems.append(Problem("conflict", path, text))
        account["password"] = None
    elif told.get("password") and told.get("private_key_file"):
        problems.append(Problem("conflict", path, "does not go with account.private_key_file; give one of them"))
    elif told.get("private_key_file"):
        account["password"] = None
    elif told.get("password"):
        account["private_key_file"] = None


def _secret_fields(field: Field, path: str = "") -> Iterator[tuple[str, Field]]:
    for part in field.parts:
        where = _join(path, part.name)
        if part.kind == "secret" or (part.element and part.element.kind == "secret"):
            yield where, part
        yield from _secret_fields(part, where)


#: The secrets of a job by their paths, which are the names of the credentials that they are kept as.
SECRETS = dict(_secret_fields(JOB))


def _value_at(job: Mapping[str, Any], path: str) -> Any:
    value: Any = job
    for name in path.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return value


def _hide_secrets(job: dict[str, Any]) -> None:
    """What is secret is no part of a normal form, but that it is kept."""
    for path, field in SECRETS.items():
        holder, _dot, name = path.rpartition(".")
        if _value_at(job, path):
            _value_at(job, holder)[name] = [KEPT] if field.element else KEPT


def tells_secrets(document: Mapping[str, Any]) -> bool:
    """Whether somebody has written a secret into a document, whatever it is."""
    return any(_value_at(document, path) not in (None, [], "", KEPT, [KEPT]) for path in SECRETS)


def secrets_of(given: Mapping[str, Any]) -> dict[str, str]:
    """The secrets that a task gives, by the names of their credentials; without those that it says are kept.

    Of a list every entry is a line.
    """
    values = {path: _value_at(given, path) for path in SECRETS}
    return {
        path: "\n".join(value) if isinstance(value, list) else str(value)
        for path, value in values.items()
        if value and value not in (KEPT, [KEPT])
    }


def secrets_in(job: Mapping[str, Any]) -> list[str]:
    """The names of the credentials of a job in normal form."""
    return [path for path in SECRETS if _value_at(job, path)]


def field_of(path: str) -> Field:
    """A field of the grammar by its path, as errors name it: account.user, elements[].path."""
    field = JOB
    for name in path.replace("[]", "").split("."):
        parts = field.element.parts if field.element else field.parts
        field = next(part for part in parts if part.name == name)
    return field


_WAYS = ("every", "at", "calendar")
_DATES = ("days", "day_of_month")


def _resolve_schedule(
    job: dict[str, Any], given: Mapping[str, Any], current: Mapping[str, Any] | None, problems: list[Problem]
) -> None:
    schedule = job["schedule"]
    if schedule is None:
        return
    told = _part(given, "schedule")
    ways = [way for way in _WAYS if told.get(way)]
    if len(ways) > 1:
        problems.append(Problem("conflict", "schedule", "has %s; give one of %s" % (" and ".join(ways), one_of(_WAYS))))
        return
    if ways:
        for way in _WAYS:
            schedule[way] = schedule[way] if way in ways else None
    if not any(schedule[way] for way in _WAYS):
        text = "has none of %s; give one of them, or schedule: null for none" % one_of(_WAYS)
        problems.append(Problem("missing", "schedule", text))
        return
    if not schedule["at"]:
        for name in _DATES:
            if told.get(name):
                text = "goes with at only; give at, or leave %s out" % name
                problems.append(Problem("conflict", "schedule." + name, text))
            schedule[name] = []
    elif all(told.get(name) for name in _DATES):
        problems.append(Problem("conflict", "schedule", "has %s; give one of them" % " and ".join(_DATES)))
    else:
        for name, other in (_DATES, _DATES[::-1]):
            schedule[name] = [] if told.get(other) else schedule[name]
        for name, most in zip(_DATES, (len(_schedule.DAYS), _LONGEST_MONTH)):
            # all of them are none in the normal form, but had others give way
            schedule[name] = [] if len(schedule[name]) == most else schedule[name]
    if schedule["calendar"]:
        calendar, zone = _schedule.split_zone(schedule["calendar"])
        if zone and told.get("timezone") not in (None, zone):
            text = "%s is not %s at the end of schedule.calendar; name the time zone in one of them"
            problems.append(Problem("conflict", "schedule.timezone", text % (show(told["timezone"]), show(zone))))
        if zone and not re.search(_schedule.TIMEZONE_PATTERN, zone):
            text = "%s at its end is not a time zone; write its name, e.g. Europe/Berlin or UTC"
            problems.append(Problem("invalid_value", "schedule.calendar", text % show(zone)))
        schedule["calendar"] = calendar
        schedule["timezone"] = zone or schedule["timezone"]
    default = _schedule.default_jitter(schedule["every"], schedule["at"])
    if told.get("jitter") is None:
        before = (current or {}).get("schedule")
        # a jitter that followed from the old period follows the new one
        follows = before and before["jitter"] == _schedule.default_jitter(before["every"], before["at"])
        if "jitter" in told or not before or follows:
            schedule["jitter"] = default
    every = schedule["every"]
    if every and _schedule.seconds_of(schedule["jitter"]) >= _schedule.seconds_of(every):
        text = "%s is not shorter than the period %s; use less, or null for %s" % (
            schedule["jitter"],
            every,
            default,
        )
        problems.append(Problem("out_of_range", "schedule.jitter", text))


def _resolve_on_error(job: Mapping[str, Any], problems: list[Problem]) -> None:
    delay, longest = job["on_error"]["delay"], job["on_error"]["max_delay"]
    if longest and _schedule.seconds_of(longest) < _schedule.seconds_of(delay):
        text = "%s is shorter than on_error.delay %s; use that or more, or null" % (longest, delay)
        problems.append(Problem("out_of_range", "on_error.max_delay", text))


def _resolve_late(job: Mapping[str, Any], problems: list[Problem]) -> None:
    if any(problem.path.startswith("schedule") for problem in problems):
        # what follows from it would only mislead
        return
    schedule, after, path = job["schedule"], job["notification"]["late_after"], "notification.late_after"
    names = ("every", "at", "days", "day_of_month")
    gap = _schedule.longest_gap(**{name: schedule[name] for name in names}) if schedule else 0
    if after and _schedule.seconds_of(after) < gap:
        text = "%s is shorter than the %s that the schedule leaves between two runs; use that or more, or null for %s"
        default = _schedule.default_late_after(gap)
        problems.append(Problem("out_of_range", path, text % (after, _schedule.duration_of(gap), default)))
    if "late" in job["notification"]["events"] and not after and not gap:
        why = "without a schedule nothing says when a run is due"
        if schedule:
            why = "how much time schedule.calendar leaves between two runs only systemd knows"
        text = "is missing; %s, so give it, e.g. 2d, or leave late out of notification.events"
        problems.append(Problem("missing", path, text % why))


def _resolve_settings(job: dict[str, Any], given: Mapping[str, Any], problems: list[Problem]) -> None:
    settings, told = job["settings"], _part(given, "settings")
    if settings["verify"] == "checksum" and not told.get("verify_every"):
        settings["verify_every"] = None
    _check_settings(job, settings, None, "settings.", problems)
    for number, element in enumerate(job["elements"] or []):
        own = element["settings"]
        if not own:
            continue
        at = "elements[%d].settings." % number
        _check_settings(job, dict(settings, **own), own, at, problems)
        if job["partner"]["connection"] == "sftp" and "compress" in own:
            text = (
                "is one for all elements with partner.connection sftp, which has one connection for them; give it in "
                "settings.compress"
            )
            problems.append(Problem("conflict", at + "compress", text))
        if element["kind"] == "log":
            for name in own:
                if name not in OF_LOGS:
                    text = "has no use with kind log, whose lines are only ever appended; leave it out"
                    problems.append(Problem("conflict", at + name, text))
            lost = [name for name in own.get("preserve", ()) if name not in KEPT_OF_LOGS]
            if lost:
                text = "%s cannot be kept with kind log; use %s" % (show(lost[0]), one_of(KEPT_OF_LOGS))
                problems.append(Problem("conflict", at + "preserve", text))


def _check_settings(
    job: Mapping[str, Any],
    settings: Mapping[str, Any],
    own: Mapping[str, Any] | None,
    at: str,
    problems: list[Problem],
) -> None:
    """Whether settings go together: the job's, or those of an element, where what is only the job's is told there."""

    def concerns(*names: str) -> bool:
        return own is None or any(name in own for name in names)

    def whose(name: str) -> str:
        return "" if own is None or name in own else ", the job's,"

    def conflict(name: str, text: str) -> None:
        problems.append(Problem("conflict", at + name, text))

    if settings["direction"] == "both" and settings["delete"] == "extraneous" and concerns("direction", "delete"):
        text = "'extraneous'%s needs a source, which direction both%s does not have; %s"
        instead = "give synced or never here" if whose("delete") else "use synced or never"
        conflict("delete", text % (whose("delete"), whose("direction"), instead))
    if settings["verify"] == "checksum" and settings["verify_every"] and concerns("verify_every"):
        text = "goes with verify metadata only, because verify checksum%s reads all contents in every run; leave it out"
        conflict("verify_every", text % whose("verify"))
    target_here = job["partner"]["connection"] == "local" or settings["direction"] != "to_partner"
    preserve = settings["preserve"] or []
    if job["scope"] == "user" and target_here and "owner" in preserve and concerns("direction", "preserve"):
        text = "'owner'%s cannot be kept where the target is this server and the scope is user; %s"
        instead = "give a list without it here" if whose("preserve") else "leave it out"
        conflict("preserve", text % (whose("preserve"), instead))
    lost = [name for name in preserve if name in NOT_BY_SFTP]
    if job["partner"]["connection"] == "sftp" and lost and concerns("preserve"):
        conflict("preserve", "%s cannot be kept with partner.connection sftp; leave it out" % show(lost[0]))


def _inside(path: str, root: str) -> bool:
    return path == root or path.startswith(root.rstrip("/") + "/")


def _resolve_elements(job: dict[str, Any], problems: list[Problem]) -> None:
    elements = job["elements"]
    if not elements:
        problems.append(Problem("missing", "elements", "is missing; give at least one element with its path"))
        return
    connection = job["partner"]["connection"]
    local = connection == "local"
    replicas: list[tuple[str, str, str]] = []
    for number, element in enumerate(elements):
        at = "elements[%d]." % number
        if element["partner_path"] is None:
            element["partner_path"] = element["path"]
            if local:
                text = "is missing; with partner.connection local write the path of the other replica"
                problems.append(Problem("missing", at + "partner_path", text))
                continue
        wild = next((char for char in element["partner_path"] if char in _WILD), "")
        if wild and connection == "ssh":
            text = "%s contains %s, which rsync on the partner takes for a pattern; name a path without %s"
            problems.append(
                Problem(
                    "invalid_value",
                    at + "partner_path",
                    text % (show(element["partner_path"]), show(wild), " ".join(_WILD)),
                )
            )
        if element["kind"] == "log" and settings_of(job, element)["direction"] == "both":
            text = "'log' needs a source, which direction both does not have; give it to_partner or from_partner in %s"
            problems.append(Problem("conflict", at + "kind", text % (at + "settings.direction")))
        if element["kind"] == "log" and connection == "sftp":
            text = "'log' needs a runner on the partner, which partner.connection sftp does without; use tree"
            problems.append(Problem("conflict", at + "kind", text))
        for name in ("path", "partner_path"):
            path = element[name]
            if job["scope"] == "system" and (name == "path" or connection != "sftp"):
                for root in PRIVATE_ROOTS:
                    if _inside(path, root):
                        text = "%s is under %s, of which the job's service has its own; name another path"
                        problems.append(Problem("invalid_value", at + name, text % (show(path), root)))
            # one server: all replicas must keep apart; two servers: those of each side
            side = "" if local else name
            for other_side, other_at, other in replicas:
                if side != other_side or not (_inside(path, other) or _inside(other, path)):
                    continue
                how = "the same path as" if path == other else "inside" if _inside(path, other) else "around"
                text = "%s is %s %s; elements must not overlap, remove one or name another path"
                what = other_at if path == other else "%s %s" % (other_at, show(other))
                problems.append(Problem("overlap", at + name, text % (show(path), how, what)))
                break
            replicas.append((side, at + name, path))
    if any(element["requires"] or element["previous_path"] for element in elements):
        from ._coupled import check_previous, check_requires

        check_previous(elements, problems)
        check_requires(elements, problems)


def _resolve_units(job: Mapping[str, Any], problems: list[Problem]) -> None:
    for name in ("before", "after"):
        units = [one["unit"] for one in job[name]]
        for number, unit in enumerate(units):
            first = units.index(unit)
            if first < number:
                text = "%s is %s[%d].unit, too; leave one of them out" % (show(unit), name, first)
                problems.append(Problem("conflict", "%s[%d].unit" % (name, number), text))


def resolve(given: Mapping[str, Any], current: Mapping[str, Any] | None = None) -> tuple[dict[str, Any], list[Problem]]:
    """What read() returned, laid over the job that is there (None: a new job): the job in normal form.

    An omitted field stays as it is, null sets its default, a value replaces it. Mappings are merged,
    lists replaced whole, and an entry of a given list starts from the defaults. With `omitted: reset` an omitted
    field is its default, as in a new job.
    """
    problems: list[Problem] = []
    current = None if given.get("omitted") == "reset" else current
    base = dict(current) if current else _OMITTED
    job: dict[str, Any] = {"version": VERSION}
    job.update(_merge(JOB, base, given))
    job = _own(job)
    _resolve_partner(job, given, problems)
    _resolve_schedule(job, given, current, problems)
    _resolve_late(job, problems)
    _resolve_on_error(job, problems)
    _resolve_settings(job, given, problems)
    _resolve_elements(job, problems)
    _resolve_units(job, problems)
    _hide_secrets(job)
    return job, problems


def declare(
    parameters: Mapping[str, Any], current: Mapping[str, Any] | None = None
) -> tuple[dict[str, Any], list[Problem]]:
    """read() and resolve() in one."""
    given, problems = read(parameters)
    return ({}, problems) if problems else resolve(given, current)


def bound(job: Mapping[str, Any], machine_id: str | None) -> dict[str, Any]:
    """The job as a document of the server with this machine id; None: of any server."""
    rest = {name: value for name, value in job.items() if name not in ("version", "machine_id")}
    machine = {} if machine_id is None else {"machine_id": machine_id}
    return dict({"version": job["version"]}, **machine, **rest)


def foreign(document: Mapping[str, Any], machine_id: str | None) -> bool:
    """Whether a document was declared on another server than the one with this machine id (None: it has none)."""
    return document.get("machine_id") not in (None, machine_id)


def normalise(document: Mapping[str, Any]) -> tuple[dict[str, Any], list[Problem]]:
    """The normal form of a whole job; of a job in normal form the job itself.

    It has the machine id of the server that the document was declared on, if that is known, which is no option.
    """
    fields = dict(document)
    version = fields.pop("version", None)
    if version != VERSION or isinstance(version, bool):
        text = "%s is not %d; this version of the collection reads no other" % (show(version), VERSION)
        return {}, [Problem("invalid_value", "version", text)]
    machine_id = fields.pop("machine_id", None)
    if "machine_id" in document and not (isinstance(machine_id, str) and re.search(MACHINE_ID_PATTERN, machine_id)):
        text = "%s is not a machine id; remove it"
        return {}, [Problem("invalid_value", "machine_id", text % show(machine_id))]
    for path in SECRETS:
        if _value_at(fields, path) not in (None, [], KEPT, [KEPT]):
            text = "is a secret, which does not belong here; apply the job again with it, which keeps it elsewhere"
            return {}, [Problem("invalid_value", path, text)]
    for part in JOB.parts:
        if part.option and part.name in fields:
            return {}, [Problem("unknown_option", part.name, "is not part of a job document; remove it")]
    job, problems = declare(fields)
    return job if problems else bound(job, machine_id), problems


def document_text(job: Mapping[str, Any]) -> str:
    """The job document."""
    return json.dumps(job, indent=2, ensure_ascii=False) + "\n"


def loads(data: bytes | None) -> dict[str, Any]:
    """What a document says, as it is; nothing where there is none, or it is no JSON."""
    try:
        document = json.loads((data or b"").decode("utf-8"))
    except (ValueError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}


def parse_document(text: str) -> tuple[dict[str, Any], list[Problem]]:
    """The job that a document holds; problems without a path are those of the text as a whole."""
    try:
        document = json.loads(text)
    except RecursionError:
        return {}, [Problem("damaged_document", "", "is not JSON: nested too deeply")]
    except ValueError as error:
        return {}, [Problem("damaged_document", "", "is not JSON: %s" % error)]
    if not isinstance(document, dict):
        return {}, [Problem("damaged_document", "", "holds %s, not a job" % _kind_of(document))]
    return normalise(document)


def own_problems(job: Mapping[str, Any], directories: Mapping[str, str]) -> list[Problem]:
    """The elements that would carry the runner's own files to the partner, or overwrite them.

    `directories`: those of the runner on this server, and what each holds. The partner guards its own by its roots.
    """
    names = ("path", "partner_path") if job["partner"]["connection"] == "local" else ("path",)
    problems = []
    for number, element in enumerate(job["elements"]):
        for name in names:
            path = element[name]
            for directory, what in directories.items():
                if not (_inside(path, directory) or _inside(directory, path)):
                    continue
                around = not _inside(path, directory)
                how = "is" if path == directory else "is around" if around else "is inside"
                remedy = "name the subdirectories that are meant instead" if around else "name another path"
                text = "%s %s %s, which holds the runner's %s; %s" % (show(path), how, directory, what, remedy)
                problems.append(Problem("invalid_value", "elements[%d].%s" % (number, name), text))
                break
    return problems


def pairings_of(host: str, pairings: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The pairings that partner.host may mean: the one of that name, else those that reach that host."""
    return [one for one in pairings if one["name"] == host] or [one for one in pairings if one["host"] == host]


# --- what follows from the table -------------------------------------------------------------------------------


def _spec(field: Field) -> dict[str, Any]:
    spec: dict[str, Any] = {"type": _SPEC_TYPES[field.kind]}
    if field.required:
        spec["required"] = True
    if field.choices:
        spec["choices"] = list(field.choices)
    if field.name == "host_key":
        spec["no_log"] = False
    if field.kind == "secret":
        spec["no_log"] = True
    if field.element:
        spec["elements"] = _SPEC_TYPES[field.element.kind]
        if field.element.choices:
            spec["choices"] = list(field.element.choices)
    parts = field.element.parts if field.element else field.parts
    if parts and not field.folded:
        spec["options"] = {part.name: _spec(part) for part in parts}
    return spec


def argument_spec(grammar: Field = JOB) -> dict[str, Any]:
    """The argument spec of a module. There are no defaults in it: silence is no demand."""
    return {part.name: _spec(part) for part in grammar.parts}
