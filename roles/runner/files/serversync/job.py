# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Loads a job document and validates it against the job's JSON Schema before anything trusts it."""

from __future__ import annotations

import copy
import functools
import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from serversync.failure import Failure, InvalidDocument
from serversync.layout import Layout, read_plain
from serversync.machine import machine_id

NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,63}")
VERSION = 1
UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
SIZES = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


class Element:
    """One directory tree, file or log that the job keeps in sync; paths are absolute, kind is ``tree`` or ``log``.

    settings: those that hold for it; own: the names of those that are its own and not the job's.
    """

    def __init__(
        self,
        index: int,
        path: str,
        partner_path: str,
        previous_path: str | None = None,
        kind: str = "tree",
        requires: Sequence[str] = (),
        settings: Mapping[str, Any] | None = None,
        own: Iterable[str] = (),
    ) -> None:
        self.index = index
        self.path = path
        self.partner_path = partner_path
        self.previous_path = previous_path
        self.kind = kind
        self.requires = tuple(requires)
        self.settings = dict(settings or {})
        self.own = frozenset(own)

    def field(self, side: str) -> str:
        """The option that names this element's replica: side is ``this_server`` or ``partner``."""
        return f"elements[{self.index}].{'path' if side == 'this_server' else 'partner_path'}"

    def setting_field(self, name: str) -> str:
        """The option that gives this setting: the element's own, or the job's."""
        return f"elements[{self.index}].settings.{name}" if name in self.own else f"settings.{name}"


class Job:
    """A valid job document with every key; ``digest`` is the SHA-256 of the file's bytes (hex).

    written: when the file was (seconds since the epoch), which is when the job was declared or changed.
    """

    def __init__(self, document: dict[str, Any], digest: str, written: float = 0) -> None:
        self.document = document
        self.digest = digest
        self.written = written

    def __getitem__(self, option: str) -> Any:
        return self.document[option]

    @property
    def name(self) -> str:
        return str(self.document["name"])

    @property
    def local(self) -> bool:
        return bool(self.document["partner"]["connection"] == "local")

    @property
    def partner(self) -> str:
        """How texts name the partner: ``hq:22``, or the host alone where the job is local."""
        partner = self.document["partner"]
        return str(partner["host"]) if self.local else f"{partner['host']}:{partner['port']}"

    @property
    def elements(self) -> list[Element]:
        found = []
        for index, entry in enumerate(self.document["elements"]):
            own = entry.get("settings") or {}
            settings = {**self.document["settings"], **own}
            if settings.get("verify") == "checksum":
                settings["verify_every"] = None
            previous, kind, requires = entry.get("previous_path"), entry.get("kind", "tree"), entry.get("requires", ())
            found.append(Element(index, entry["path"], entry["partner_path"], previous, kind, requires, settings, own))
        return found


def select(job: Job, only: Sequence[str] | None) -> list[Element]:
    """The elements of a run, all or those that ``--element`` names by their paths."""
    if only is not None:
        # As a shell completes a directory's name.
        only = [path.rstrip("/") or path for path in only]
    chosen = [element for element in job.elements if only is None or element.path in only]
    for path in only or ():
        if path not in [element.path for element in chosen]:
            paths = ", ".join(element.path for element in job.elements)
            raise InvalidDocument("unknown_element", f"job {job.name} has no element {path!r} (elements: {paths})")
    return chosen


def with_required(job: Job, only: Sequence[str] | None) -> list[Element]:
    """The elements of a run: those that are chosen, and what they require, and so on."""
    chosen = select(job, only)
    elements = {element.path: element for element in job.elements}
    paths = {element.path for element in chosen}
    waiting = list(paths)
    while waiting:
        more = [path for path in elements[waiting.pop()].requires if path not in paths]
        paths.update(more)
        waiting += more
    return [element for path, element in elements.items() if path in paths]


def in_order(elements: Sequence[Element]) -> list[int]:
    """The elements by their numbers, each behind those that it requires, else as they stand."""
    numbers = {element.path: number for number, element in enumerate(elements)}
    order: list[int] = []
    while len(order) < len(elements):
        order.append(
            next(
                number
                for number, element in enumerate(elements)
                if number not in order and all(numbers[path] in order for path in element.requires if path in numbers)
            )
        )
    return order


def seconds(duration: str) -> int:
    """``15m`` -> 900; the document holds durations as a whole number and one of s, m, h, d."""
    return int(duration[:-1]) * UNITS[duration[-1]]


def span(count: int) -> str:
    """``900`` -> ``15m``, in the largest unit that divides it."""
    unit = next((unit for unit in reversed(UNITS) if count and count % UNITS[unit] == 0), "s")
    return f"{count // UNITS[unit]}{unit}"


def pause_after(on_error: Mapping[str, Any], number: int) -> int:
    """The seconds between the attempt of this number and the next one; numbers begin at 1."""
    delay = seconds(on_error["delay"])
    most = seconds(on_error["max_delay"]) if on_error["max_delay"] else max(UNITS["h"], delay)
    return int(min(delay * on_error["backoff"] ** (number - 1), most))


def size(text: str) -> int:
    """``20M`` -> 20971520; the document holds sizes as a whole number and one of K, M, G, T, powers of 1024."""
    return int(text[:-1]) * SIZES[text[-1]]


def amount(text: str, total: int) -> int:
    """What ``max_delete``, ``max_change`` or ``versions_max`` allow, rounded down.

    ``25%`` is a share of the total (paths or bytes), ``100`` a number of paths and ``50G`` a number of bytes.
    """
    if text.endswith("%"):
        return total * int(text[:-1]) // 100
    return int(text) if text.isdigit() else size(text)


def credential(layout: Layout, job: Job, name: str) -> str:
    """A secret of the job, which systemd has put where only its service can read it; in user scope it lies there.

    name: the path of its option, such as ``account.password``; of a list every line is an entry.
    """
    # Where systemd was not asked for one it names no directory.
    handed = Path(os.environ.get("CREDENTIALS_DIRECTORY") or "/run/credentials")
    directory = handed if layout.privileged else layout.credentials / job.name
    try:
        return (directory / name).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        said = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        message = f"the secret is not at {directory / name} ({said}); apply the job again, with {name}"
        raise Failure("no_credential", message, field=name) from None


def check_name(name: str) -> str:
    if not NAME.fullmatch(name):
        raise InvalidDocument(
            "invalid_name",
            f"{name!r} is not a job's name; use 1 to 64 of a-z 0-9 _ . - and begin with a letter or digit",
        )
    return name


def load(layout: Layout, name: str, *, remember: bool = False) -> Job:
    """The job of that name; raises InvalidDocument with the file, the field and what to do.

    Also where it was declared on another server: copied here with its server's configuration, it would run on both.
    remember: a document that is found valid is not validated again until it, or the schema, changes.
    """
    path = layout.jobs / f"{check_name(name)}.json"
    known = layout.state / "validated" / name
    try:
        job = load_file(path, known, remember=remember)
    except FileNotFoundError:
        others = ", ".join(names(layout)) or "none"
        raise InvalidDocument("unknown_job", f"there is no job {name!r} on this server (jobs: {others})") from None
    except InvalidDocument as damage:
        raise InvalidDocument(damage.code, f"{damage.message}; {REPAIR}") from damage
    if job.name != name:
        raise InvalidDocument(
            "invalid_document", f"{path}: name: is {job.name!r}, but the file is named for {name!r}; {REPAIR}"
        )
    problem = foreign(job)
    if problem:
        raise InvalidDocument("foreign_document", f"{path}: {problem}")
    return job


def names(layout: Layout) -> list[str]:
    """The jobs declared on this server, sorted; PermissionError where the caller may not list them."""
    try:
        found = sorted(entry.stem for entry in layout.jobs.iterdir() if entry.suffix == ".json")
    except FileNotFoundError:
        return []
    return [name for name in found if NAME.fullmatch(name)]


def load_file(path: Path, known: Path | None = None, *, remember: bool = False) -> Job:
    """The job in a file; ``known`` holds the seal of the document that was last found valid."""
    try:
        with path.open("rb") as stream:
            data, written = stream.read(), os.fstat(stream.fileno()).st_mtime
    except IsADirectoryError as error:
        raise InvalidDocument("invalid_document", f"{path}: is a directory where a file belongs") from error
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InvalidDocument("invalid_document", f"{path}: is not JSON ({error})") from error
    seal = hashlib.sha256(schema_text() + data).hexdigest()
    if known is None or not was_valid(known, seal):
        problem = first_problem(document)
        if problem:
            raise InvalidDocument("invalid_document", f"{path}: {problem}")
        if known is not None and remember:
            # Half written it is the seal of no document; where it cannot be kept the next run validates again.
            with suppress(OSError):
                known.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                known.write_text(seal, encoding="ascii")
    return Job(complete(document, schema()), hashlib.sha256(data).hexdigest(), written)


def load_files(path: Path) -> list[Job]:
    """The jobs in a file that no runner keeps: one document, or a list of them."""
    data = path.read_bytes()
    try:
        documents = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InvalidDocument("invalid_document", f"{path}: is not JSON ({error})") from error
    jobs = []
    for document in documents if isinstance(documents, list) else [documents]:
        problem = first_problem(document)
        if problem:
            raise InvalidDocument("invalid_document", f"{path}: {problem}")
        jobs.append(Job(complete(document, schema()), ""))
    return jobs


def was_valid(known: Path, seal: str) -> bool:
    try:
        return read_plain(known) == seal.encode("ascii")
    except OSError:
        return False


def foreign(job: Job) -> str | None:
    """That the document is not one of this server, and what to do; None where it is, or is bound to no server."""
    bound, here = job.document.get("machine_id"), machine_id()
    if bound in (None, here):
        return None
    this = "this one" if here else "this one, which has no machine id"
    remedy = "declare it here, too, or remove it with state: absent"
    return f"machine_id: the job was declared on another server than {this}; {remedy}"


REPAIR = "restore it, or remove the job with state: absent and declare it again"


@functools.lru_cache(maxsize=1)
def schema_text() -> bytes:
    return (Path(__file__).parent / "job.schema.json").read_bytes()


@functools.lru_cache(maxsize=1)
def schema() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(schema_text())
    return loaded


def complete(value: Any, part: dict[str, Any]) -> Any:
    """A valid value of a part of the schema, with the defaults of the keys that documents of earlier versions lack."""
    if isinstance(value, dict):
        parts = part["properties"]
        return {
            name: complete(value[name], one) if name in value else copy.deepcopy(one["default"])
            for name, one in parts.items()
            if name in value or "default" in one
        }
    if isinstance(value, list):
        return [complete(one, part["items"]) for one in value]
    return value


def first_problem(document: Any) -> str | None:
    """``FIELD: what is wrong`` of the first violation of the schema, or None."""
    if isinstance(document, dict) and document.get("version", VERSION) != VERSION:
        return f"version: {document['version']!r} is not {VERSION}, the only one that this runner reads"
    from jsonschema import Draft202012Validator  # a tenth of a second that --version and status need not pay

    errors = sorted(Draft202012Validator(schema()).iter_errors(document), key=lambda error: list(map(str, error.path)))
    if not errors:
        return overlap(document) or coupling(document)
    # Of alternatives ("null or an object") the innermost message says more than "matches none of them".
    error = errors[0]
    while error.context:
        error = max(error.context, key=lambda inner: len(inner.absolute_path))
    where = field_path(error.absolute_path)
    return f"{where}: {error.message}" if where else str(error.message)


def overlap(document: dict[str, Any]) -> str | None:
    """What JSON Schema cannot say: no replica of an element may be, or hold, that of another on the same server.

    Nor may an element take over the archive of another one.
    """
    local = document["partner"]["connection"] == "local"
    seen: list[tuple[str, str, str]] = []
    archives = {element["path"]: f"elements[{index}].path" for index, element in enumerate(document["elements"])}
    for index, element in enumerate(document["elements"]):
        for side in ("path", "partner_path"):
            server, where, path = "" if local else side, f"elements[{index}].{side}", element[side]
            for other_server, other_where, other in seen:
                if server == other_server and inside(path, other):
                    return f"{where}: {path!r} overlaps {other_where} {other!r}"
            seen.append((server, where, path))
        previous, where = element.get("previous_path"), f"elements[{index}].previous_path"
        if previous in archives:
            return f"{where}: {previous!r} is the same path as {archives[previous]}"
        if previous:
            archives[previous] = where
    return None


def coupling(document: dict[str, Any]) -> str | None:
    """Nor can it say that what an element requires is another one, and in the end not the element itself."""
    left = {element["path"]: element.get("requires", []) for element in document["elements"]}
    for index, element in enumerate(document["elements"]):
        for path in element.get("requires", []):
            if path not in left:
                return f"elements[{index}].requires: {path!r} is not the path of an element"
    while left:
        ready = [path for path, requires in left.items() if not any(one in left for one in requires)]
        if not ready:
            index = next(index for index, element in enumerate(document["elements"]) if element["path"] in left)
            return f"elements[{index}].requires: closes a circle of {', '.join(left)}"
        left = {path: requires for path, requires in left.items() if path not in ready}
    return None


def inside(path: str, other: str) -> bool:
    """Whether one of two paths is the other or below it."""
    return f"{path}/".startswith(f"{other}/") or f"{other}/".startswith(f"{path}/")


def field_path(parts: Iterable[Any]) -> str:
    """``["elements", 2, "path"]`` -> ``elements[2].path``."""
    text = ""
    for part in parts:
        text += f"[{part}]" if isinstance(part, int) else (f".{part}" if text else str(part))
    return text
