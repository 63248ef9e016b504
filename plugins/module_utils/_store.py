# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# PRIVATE to this collection: it may change in any release.
"""What a job is on a server, its files and its timer, and what they shall be."""

from __future__ import annotations

import grp
import json
import os
import re
import stat
from typing import Any, Callable, Mapping, NamedTuple, Sequence

from ._job import MACHINE_ID_PATTERN, NAME_PATTERN, SECRETS, parse_document
from ._units import drop_in_text, service_name, timer_name, timer_text

ZONES = "/usr/share/zoneinfo"
MACHINE_ID = "/etc/machine-id"
GROUP = "serversync"
#: Bytes of a file of the runner's.
LARGEST = 256 << 20

#: Runs a program: argv -> exit code, standard output, standard error.
Run = Callable[[Sequence[str]], "tuple[int, str, str]"]


class StoreError(Exception):
    """Something on this server stands in the way."""

    def __init__(self, code: str, path: str, text: str, **details: Any) -> None:
        super().__init__("%s: %s" % (path, text))
        self.code = code
        self.path = path
        self.details = details


# --- where things are ------------------------------------------------------------------------------------------


class Layout(NamedTuple):
    """The paths of one job."""

    scope: str
    name: str
    config: str
    units: str
    stamps: str
    state: str
    home: str
    launcher: str

    @property
    def document(self) -> str:
        return os.path.join(self.config, "jobs", self.name + ".json")

    @property
    def timer(self) -> str:
        return os.path.join(self.units, timer_name(self.name))

    @property
    def drop_in(self) -> str:
        return os.path.join(self.units, service_name(self.name) + ".d", "job.conf")

    @property
    def wanted(self) -> str:
        """The link by which the timer is enabled."""
        return os.path.join(self.units, "timers.target.wants", timer_name(self.name))

    @property
    def stamp(self) -> str:
        """Where systemd notes when the timer last triggered."""
        return os.path.join(self.stamps, "stamp-" + timer_name(self.name))

    @property
    def published(self) -> str:
        """The records that the runner publishes of this job."""
        return os.path.join(self.state, "public", self.name + ".json")

    @property
    def credentials(self) -> str:
        """The directory of what the job has to keep secret."""
        return os.path.join(self.config, "credentials", self.name)

    def credential(self, name: str, encrypted: bool = False) -> str:
        """The file of a secret; where systemd-creds has encrypted it for this server, the service gets it decrypted."""
        return os.path.join(self.credentials, name + (".cred" if encrypted else ""))

    @property
    def lock(self) -> str:
        """What a run of this job holds."""
        runtime = "/run/serversync" if self.scope == "system" else self.state
        return os.path.join(runtime, "locks", self.name + ".lock")

    @property
    def runner(self) -> str:
        """Exists where the runner is deployed."""
        return os.path.join(self.config, "runner.json")

    @property
    def pending(self) -> str:
        """Exists while systemd has not been told of units that were written."""
        return os.path.join(self.config, "jobs", ".reload")

    @property
    def renaming(self) -> str:
        """Exists while the job is not all that is left of the one whose name it holds."""
        return os.path.join(self.config, "jobs", ".%s.renaming" % self.name)

    @property
    def pairings(self) -> str:
        return os.path.join(self.config, "pairings")

    @property
    def own(self) -> dict[str, str]:
        """The runner's directories and what each holds; where a link leads to one, also the directory itself."""
        named = (
            (self.config, "settings, jobs and private key"),
            (self.state, "records"),
            (self.home, "program"),
        )
        directories = {os.path.normpath(path): what for path, what in named}
        directories.update({os.path.realpath(path): what for path, what in named})
        return directories

    @property
    def systemctl(self) -> list[str]:
        return ["systemctl"] if self.scope == "system" else ["systemctl", "--user"]


def layout(scope: str, name: str, environ: Mapping[str, str]) -> Layout:
    home = environ.get("HOME") or os.path.expanduser("~")
    if scope == "system":
        units, stamps = "/etc/systemd/system", "/var/lib/systemd/timers"
        home, launcher = "/usr/lib/serversync", "/usr/bin/serversync"
        return Layout(scope, name, "/etc/serversync", units, stamps, "/var/lib/serversync", home, launcher)

    def xdg(variable: str, default: str) -> str:
        value = environ.get(variable, "")
        # the specification has relative values ignored
        return value if value.startswith("/") else os.path.join(home, default)

    config = xdg("XDG_CONFIG_HOME", ".config")
    return Layout(
        scope,
        name,
        os.path.join(config, "serversync"),
        os.path.join(config, "systemd", "user"),
        os.path.join(xdg("XDG_DATA_HOME", ".local/share"), "systemd", "timers"),
        os.path.join(xdg("XDG_STATE_HOME", ".local/state"), "serversync"),
        os.path.join(xdg("XDG_DATA_HOME", ".local/share"), "serversync"),
        os.path.join(home, ".local", "bin", "serversync"),
    )


def manager_environment(scope: str, environ: Mapping[str, str], uid: int) -> dict[str, str]:
    """What `systemctl --user` needs to find its manager also where no session has set it."""
    if scope == "system" or environ.get("XDG_RUNTIME_DIR"):
        return {}
    return {"XDG_RUNTIME_DIR": "/run/user/%d" % uid}


def systemd_runs(scope: str, environ: Mapping[str, str], uid: int) -> bool:
    """Whether the manager that the job's timer belongs to is there."""
    if scope == "system":
        return os.path.isdir("/run/systemd/system")
    runtime = environ.get("XDG_RUNTIME_DIR") or "/run/user/%d" % uid
    return os.path.exists(os.path.join(runtime, "systemd", "private"))


# --- what is there ---------------------------------------------------------------------------------------------


class FileState(NamedTuple):
    """A file as it is; `data` is None where there is none."""

    data: bytes | None = None
    mode: int = 0
    uid: int = 0
    gid: int = 0
    regular: bool = True


def read_file(path: str) -> FileState:
    try:
        info = os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return FileState()
    except OSError as error:
        raise _unreadable(path, error) from error
    if stat.S_ISDIR(info.st_mode):
        raise StoreError("unreadable", path, "is a directory where a file belongs; remove it")
    data = b""
    if stat.S_ISREG(info.st_mode):
        try:
            # The runner's account may have put anything in its place since.
            handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                info = os.fstat(handle)
                if stat.S_ISREG(info.st_mode):
                    with os.fdopen(handle, "rb", closefd=False) as stream:
                        data = stream.read(LARGEST + 1)
            finally:
                os.close(handle)
        except OSError as error:
            raise _unreadable(path, error) from error
        if len(data) > LARGEST:
            raise StoreError("unreadable", path, "is larger than 256 MiB, which none of these files is; remove it")
    return FileState(data, stat.S_IMODE(info.st_mode), info.st_uid, info.st_gid, stat.S_ISREG(info.st_mode))


def read_machine_id() -> str | None:
    """machine-id(5) of this server; None where there is none, or none yet (an image, a container being built)."""
    try:
        with open(MACHINE_ID, encoding="ascii", errors="replace") as stream:
            text = stream.read().strip()
    except (FileNotFoundError, IsADirectoryError):
        return None
    except OSError as error:
        raise _unreadable(MACHINE_ID, error) from error
    return text if re.search(MACHINE_ID_PATTERN, text) else None


def read_document(place: Layout) -> tuple[dict[str, Any] | None, str | None]:
    """The job that is there, or what is damaged in its document; neither where there is none."""
    data = read_file(place.document).data
    if data is None:
        return None, None
    try:
        job, problems = parse_document(data.decode("utf-8"))
    except UnicodeDecodeError:
        return None, "is not UTF-8"
    return (None, str(problems[0]).lstrip(": ")) if problems else (job, None)


def _unreadable(path: str, error: OSError) -> StoreError:
    return StoreError(
        "unreadable", path, "cannot be read (%s); give the user of this task access to it" % error.strerror
    )


class Units(NamedTuple):
    """The job's units as systemd sees them."""

    enabled: bool = False
    active: bool = False
    running: bool = False
    failed: bool = False
    stale: bool = False


_SHOWN = "Id,LoadState,ActiveState,UnitFileState,NeedDaemonReload"


def read_units(place: Layout, run: Run) -> Units:
    """One call; it reads only."""
    argv = [*place.systemctl, "show", "--property=" + _SHOWN, timer_name(place.name), service_name(place.name)]
    code, out, err = run(argv)
    if code:
        raise command_error(argv, code, out, err)
    units: dict[str, dict[str, str]] = {}
    for block in out.strip().split("\n\n"):
        values = dict(line.split("=", 1) for line in block.splitlines() if "=" in line)
        units[values.get("Id", "")] = values
    timer = units.get(timer_name(place.name), {})
    service = units.get(service_name(place.name), {})
    return Units(
        enabled=timer.get("UnitFileState") == "enabled",
        active=timer.get("ActiveState") in ("active", "activating", "reloading"),
        running=service.get("ActiveState") in ("active", "activating", "reloading", "deactivating"),
        failed=service.get("ActiveState") == "failed",
        stale="yes" in (timer.get("NeedDaemonReload"), service.get("NeedDaemonReload")),
    )


def read_fleet(place: Layout, run: Run) -> Callable[[Layout], Units]:
    """The units of all jobs of a scope, by one call that takes no longer for many of them.

    It does not tell which unit is newer on disk than in systemd; for that there is `Layout.pending`.
    """
    argv = [*place.systemctl, "list-units", "--all", "--plain", "--full", "--no-legend", "serversync@*"]
    code, out, err = run(argv)
    if code:
        raise command_error(argv, code, out, err)
    states = {words[0]: words[2] for words in map(str.split, out.splitlines()) if len(words) > 2}

    def units(one: Layout) -> Units:
        timer, service = states.get(timer_name(one.name), ""), states.get(service_name(one.name), "")
        return Units(
            enabled=os.path.lexists(one.wanted),
            active=timer in ("active", "activating", "reloading"),
            running=service in ("active", "activating", "reloading", "deactivating"),
            failed=service == "failed",
        )

    return units


def command_error(
    argv: Sequence[str], code: int, out: str, err: str, remedy: str = "repair that and apply the job again"
) -> StoreError:
    said = (err or out).strip() or "no output"
    text = "failed with exit code %d: %s; %s" % (code, said, remedy)
    return StoreError("command_failed", " ".join(argv), text, command=list(argv), rc=code, stderr=err.strip())


def start_error(argv: Sequence[str], error: OSError) -> StoreError:
    """Of what could not even be started; a program that is named by its path is the runner's."""
    remedy = "apply the role serversync.core.runner again" if os.path.isabs(argv[0]) else "repair that"
    return StoreError("command_failed", argv[0], "cannot be started (%s); %s" % (error.strerror, remedy))


class Found(NamedTuple):
    """Everything of a job that is on a server."""

    files: dict[str, FileState]
    units: Units | None
    stamp: bool
    published: bool
    wanted: bool
    directory: bool
    neighbours: tuple[str, ...]
    # whether there is a directory for secrets, with nothing in it but those of the job
    credentials: bool = False
    # what a kill has left beside the files that were being moved there from another file system
    litter: tuple[str, ...] = ()


#: How atomic_move() calls what it copies from another file system, until it is whole; and so is a secret called until
#: it is where it belongs, so that nobody has to look elsewhere for one that a kill has left.
LITTER = ".ansible_tmp"


def find(place: Layout, units: Units | None, run: Run) -> Found:
    """`units`: None where no systemd runs."""
    files = {path: read_file(path) for path in (place.document, place.drop_in, place.timer)}
    credentials = os.path.lexists(place.credentials)
    litter: list[str] = []
    if credentials:
        from ._credentials import read_credentials

        secrets = read_credentials(place, run)
        files.update(secrets)
        names = os.listdir(place.credentials)
        litter += [os.path.join(place.credentials, name) for name in names if name.startswith(LITTER)]
        known = {*map(os.path.basename, secrets), *map(os.path.basename, litter)}
        credentials = known.issuperset(names)
    directory = os.path.dirname(place.drop_in)
    try:
        names = os.listdir(directory)
        litter += [os.path.join(directory, name) for name in names if name.startswith(LITTER)]
        others = tuple(sorted({*names} - {os.path.basename(place.drop_in), *map(os.path.basename, litter)}))
        exists = True
    except (FileNotFoundError, NotADirectoryError):
        others, exists = (), False
    stamp, published, wanted = map(os.path.lexists, (place.stamp, place.published, place.wanted))
    return Found(files, units, stamp, published, wanted, exists, others, credentials, tuple(sorted(litter)))


def _names_in(directory: str, ending: str) -> list[str]:
    """The job names among the names in a directory, without their ending; sorted."""
    try:
        files = os.listdir(directory)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise _unreadable(directory, error) from error
    names = [file[: len(file) - len(ending)] for file in files if file.endswith(ending)]
    return sorted(name for name in names if re.search(NAME_PATTERN, name))


def declared_names(place: Layout) -> list[str]:
    """The jobs of a scope that are on this server."""
    return _names_in(os.path.dirname(place.document), ".json")


def names_of_secrets(place: Layout) -> list[str]:
    """The jobs of a scope that have, or had, secrets on this server."""
    return _names_in(os.path.dirname(place.credentials), "")


def read_pairings(place: Layout) -> list[dict[str, Any]]:
    """The pairings of this server as name, host and keys."""
    try:
        names = sorted(os.listdir(place.pairings))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise _unreadable(place.pairings, error) from error
    pairings = []
    for name in names:
        if not name.endswith(".json"):
            continue
        path = os.path.join(place.pairings, name)
        try:
            pairing = json.loads((read_file(path).data or b"").decode("utf-8"))
            pairing = {"name": pairing["name"], "host": pairing["host"]}
        except (ValueError, KeyError, TypeError):
            text = "is damaged; apply the role serversync.core.runner again"
            raise StoreError("damaged_pairing", path, text) from None
        hosts = read_file(path[: -len(".json")] + ".known_hosts").data or b""
        lines = [line.split() for line in hosts.decode("utf-8", "replace").splitlines()]
        pairing["keys"] = [" ".join(words[1:3]) for words in lines if len(words) > 2 and words[0][0] not in "#@"]
        pairings.append(pairing)
    return pairings


def zone_text(zone: str, directory: str = ZONES) -> str | None:
    """What is wrong with a time zone, where this server can tell; None when nothing is."""
    # UTC is known to systemd itself
    if zone == "UTC" or not os.path.isdir(directory) or is_zone(os.path.join(directory, zone)):
        return None
    from ._zones import unknown  # here and below: what most tasks have no use for costs each of them its time

    return unknown(zone, directory)


def is_zone(path: str) -> bool:
    try:
        with open(path, "rb") as stream:
            return stream.read(4) == b"TZif"
    except OSError:
        return False


# --- what shall be ---------------------------------------------------------------------------------------------


class Wanted(NamedTuple):
    """A file as it shall be; `text` is None where there shall be none. What is secret is in no diff.

    `encrypted`: the name of the credential that it is to be encrypted as; empty: it is written as it is.
    """

    text: str | None
    mode: int = 0o644
    gid: int | None = None
    secret: bool = False
    encrypted: str = ""


class Step(NamedTuple):
    """One thing to do: run (a command), write (a file), remove (a file or link), rmdir (if it is empty)."""

    do: str
    path: str = ""
    argv: tuple[str, ...] = ()
    file: Wanted = Wanted(None)


class Plan(NamedTuple):
    """What changes, and the way there: `before` and `after` are what is done before and after the job's files."""

    diff: list[dict[str, str]]
    before: list[Step]
    files: list[Step]
    after: list[Step]

    @property
    def steps(self) -> list[Step]:
        return self.before + self.files + self.after

    @property
    def changed(self) -> bool:
        return bool(self.steps)

    @property
    def commands(self) -> list[list[str]]:
        return [list(step.argv) for step in self.steps if step.do == "run"]


def owner_of(scope: str) -> tuple[int, int | None]:
    """Whose the files are: in system scope root's, readable for the runner's group where it exists."""
    if scope != "system":
        return os.geteuid(), None
    try:
        return 0, grp.getgrnam(GROUP).gr_gid
    except KeyError:
        return 0, 0


def wanted_files(
    place: Layout,
    job: Mapping[str, Any] | None,
    text: str,
    gid: int | None,
    given: Mapping[str, tuple[str, bool]] | None = None,
) -> dict[str, Wanted]:
    """The files of a job; `text` is its document. In the order in which they are written.

    `given`: by the names of their credentials the secrets, and whether they are to be encrypted.

    The document is first: it is what the next apply starts from, should this one not come to its end. Before it come
    only the secrets that it says are kept.
    """
    secrets = {place.credential(name, one): Wanted(None, secret=True) for name in SECRETS for one in (False, True)}
    if job is None:
        return {place.document: Wanted(None), **secrets, place.drop_in: Wanted(None), place.timer: Wanted(None)}
    credentials = {}
    for name, (secret, encrypted) in (given or {}).items():
        path = place.credential(name, encrypted)
        owner = 0 if place.scope == "system" else None
        secrets[path] = Wanted(secret, 0o600, owner, secret=True, encrypted=name if encrypted else "")
        credentials[name] = (path, encrypted)
    job = dict(job)
    replicas = [element[side] for element in job["elements"] for side in ("path", "partner_path")]
    regular = [path for path in replicas if os.path.isfile(path)]
    root = None if gid is None else 0
    return {
        **{path: file for path, file in secrets.items() if file.text is not None},
        place.document: Wanted(text, 0o640 if place.scope == "system" else 0o600, gid),
        place.drop_in: Wanted(drop_in_text(job, regular, credentials), 0o644, root),
        place.timer: Wanted(timer_text(job), 0o644, root),
        # the service must not ask for what is gone
        **{path: file for path, file in secrets.items() if file.text is None},
    }


def _stands(found: FileState, wanted: Wanted, uid: int) -> bool:
    """Whether a file is as it shall be."""
    if wanted.text is None or found.data is None:
        return wanted.text is None and found.data is None
    owned = found.uid == uid and wanted.gid in (None, found.gid)
    return found.regular and owned and found.mode == wanted.mode and found.data == wanted.text.encode("utf-8")


def settled(place: Layout, found: Found, wanted: Mapping[str, Wanted], uid: int) -> bool:
    """Whether a job that there shall be is on the server as it shall be, so that the way there has no steps.

    It is what plan() would find out as well, which a task that changes nothing need not load.
    """
    if not all(_stands(found.files.get(path, FileState()), file, uid) for path, file in wanted.items()):
        return False
    secret = any(file.secret and file.text for file in wanted.values())
    if found.litter or (found.credentials and not secret):
        return False
    units = found.units or Units()
    if wanted[place.timer].text is None:
        # that it is enabled without a file of its own is none of this job's doing
        rest = units.active or found.wanted or found.stamp
    else:
        rest = found.units is not None and not (units.enabled and units.active)
    return wanted[place.document].text is not None and not (rest or units.stale)
