# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# PRIVATE to this collection: it may change in any release.
"""The way from what a job is on a server to what it shall be: the steps, and the diff.

plan() is pure but for the metrics that it looks for, and so the same in check mode and for real. A task that changes
nothing does without (_store.settled).
"""

from __future__ import annotations

import os
from typing import Mapping, Sequence

from ._job import loads, tells_secrets
from ._store import FileState, Found, Layout, Plan, Step, Units, Wanted, read_file
from ._units import service_name, timer_name


def text_of(data: bytes | None) -> str:
    return (data or b"").decode("utf-8", "replace")


def _shown(path: str, data: bytes | None) -> str:
    """A file for a diff; of a document that somebody has written a secret into, or that is none, not what is in it."""
    if data is None or not path.endswith(".json"):
        return text_of(data)
    document = loads(data)
    return text_of(data) if document and not tells_secrets(document) else "(a document that may have a secret in it)\n"


def entry_of(path: str, before: str, after: str, was: bool = True, will: bool = True) -> dict[str, str]:
    return {
        "before": before,
        "after": after,
        "before_header": path if was else "/dev/null",
        "after_header": path if will else "/dev/null",
    }


def _attributes(mode: int, uid: int, gid: int | None) -> str:
    text = "mode: '%04o'\nowner: %d\n" % (mode, uid)
    return text if gid is None else text + "group: %d\n" % gid


def _compare(path: str, found: FileState, wanted: Wanted, uid: int) -> list[dict[str, str]]:
    """The diff of one file: of its text, and of its owner and mode where these have drifted."""
    before = "(a secret)\n" if wanted.secret else _shown(path, found.data)
    if wanted.text is None:
        return [] if found.data is None else [entry_of(path, before, "", will=False)]
    text = "(another secret)\n" if wanted.secret and found.data is not None else wanted.text
    if found.data is None:
        return [entry_of(path, "", "(a secret)\n" if wanted.secret else text, was=False)]
    entries = []
    if not found.regular:
        entries.append(entry_of(path, "(not a regular file)\n", text))
    elif found.data != wanted.text.encode("utf-8"):
        entries.append(entry_of(path, before, text))
    before = _attributes(found.mode, found.uid, None if wanted.gid is None else found.gid)
    after = _attributes(wanted.mode, uid, wanted.gid)
    if found.regular and before != after:
        entries.append(entry_of(path + " (owner and mode)", before, after))
    return entries


def metrics_of(place: Layout) -> str | None:
    """The file of the job's metrics, where the runner keeps some: an alert would last longer than the job."""
    directory = loads(read_file(place.runner).data).get("metrics_dir")
    path = os.path.join(directory, "serversync-%s.prom" % place.name) if directory else ""
    return path if os.path.lexists(path) else None


def _flags(**flags: bool) -> str:
    return "".join("%s: %s\n" % (name, "true" if value else "false") for name, value in flags.items())


def plan(place: Layout, found: Found, wanted: Mapping[str, Wanted], uid: int) -> Plan:
    """The whole difference between what is and what shall be, and the steps from one to the other.

    Their order leaves after a crash the old job or the new one, and the next apply finishes either. A timer is
    stopped while its file changes and its stamp removed before it starts, so that applying never fires a run.
    """
    diffs = {path: _compare(path, found.files.get(path, FileState()), file, uid) for path, file in wanted.items()}
    diff = [entry for path in wanted for entry in diffs[path]]
    present = wanted[place.document].text is not None
    timed = wanted[place.timer].text is not None
    timer, service = timer_name(place.name), service_name(place.name)
    units = found.units or Units()
    before: list[Step] = []
    after: list[Step] = []

    def command(*words: str) -> Step:
        return Step("run", argv=tuple(place.systemctl) + words)

    if timed:
        text_changed = any(entry["before_header"] in (place.timer, "/dev/null") for entry in diffs[place.timer])
        starts = found.units is not None and (text_changed or not units.active)
        if text_changed and units.active:
            before.append(command("stop", timer))
        if (starts or text_changed) and found.stamp:
            before.append(Step("remove", place.stamp))
        if found.units is not None and not units.enabled:
            after.append(command("enable", timer))
        if starts:
            after.append(command("start", timer))
        if found.units is not None and not (units.enabled and units.active):
            shown = _flags(enabled=units.enabled, active=units.active)
            diff.append(entry_of(timer + " (systemd)", shown, _flags(enabled=True, active=True)))
    else:
        if units.active or units.enabled:
            if found.files[place.timer].data is not None:
                before.append(command("disable", "--now", timer))
            elif units.active:
                before.append(command("stop", timer))
            if before or found.wanted:
                shown = _flags(enabled=units.enabled, active=units.active)
                diff.append(entry_of(timer + " (systemd)", shown, _flags(enabled=False, active=False)))
        if found.wanted:
            before.append(Step("remove", place.wanted))
            if not units.enabled:
                diff.append(entry_of(place.wanted, "(link)\n", "", will=False))
        if found.stamp:
            before.append(Step("remove", place.stamp))
            diff.append(entry_of(place.stamp, "(time of the last trigger)\n", "", will=False))
    if not present and units.running:
        before.append(command("stop", service))
        diff.append(entry_of(service + " (systemd)", _flags(active=True), _flags(active=False)))

    if not present and found.published:
        # what ran stays in the runner's own records; a status of jobs that are no more would mislead
        before.append(Step("remove", place.published))
        diff.append(entry_of(place.published, "(records of the last runs)\n", "", will=False))
    paused = (
        present
        and diffs[place.document]
        and not loads((wanted[place.document].text or "").encode("utf-8")).get("enabled")
    )
    # of one that is paused no run says so, and its alerts would go on
    measured = metrics_of(place) if paused or not present else None
    if measured:
        before.append(Step("remove", measured))
        diff.append(entry_of(measured, "(metrics of the last run)\n", "", will=False))

    # removed in the other order: while the document is there, the job can be seen and removed again
    order = list(wanted) if present else list(reversed(list(wanted)))
    files = [
        Step("write" if wanted[path].text is not None else "remove", path, file=wanted[path])
        for path in order
        if diffs[path]
    ]
    for path in found.litter:
        files.insert(0, Step("remove", path))
        diff.append(entry_of(path, "(left by a task that was killed)\n", "", will=False))
    secrets = [path for path, file in wanted.items() if file.secret]
    if found.credentials and not any(wanted[path].text for path in secrets):
        last = 0 if present else sum(step.path == place.document for step in files)
        files.insert(len(files) - last, Step("rmdir", place.credentials))
        if not any(diffs[path] for path in secrets):
            diff.append(entry_of(place.credentials, "(directory)\n", "", will=False))
    if not present and found.directory and not found.neighbours:
        files.append(Step("rmdir", os.path.dirname(place.drop_in)))
        if not diffs[place.drop_in]:
            diff.append(entry_of(os.path.dirname(place.drop_in), "(directory)\n", "", will=False))

    reload = any(diffs[path] for path in (place.drop_in, place.timer)) or units.stale
    if found.units is not None and reload:
        after.insert(0, command("daemon-reload"))
        if units.stale and not any(diffs[path] for path in (place.drop_in, place.timer)):
            diff.append(entry_of("systemd", _flags(reloaded=False), _flags(reloaded=True)))
    if not present and (units.failed or units.running):
        # A stopped run counts as failed, or it does not and systemd has forgotten it: then only a pattern is no error.
        after.append(command("reset-failed", service[:-1] + "[%s]" % service[-1]))
        if not units.running:
            diff.append(entry_of(service + " (systemd)", _flags(failed=True), _flags(failed=False)))
    return Plan(diff, before, files, after)


def merge(plans: Sequence[Plan], systemctl: Sequence[str], reload: bool) -> Plan:
    """The plans of several jobs as one: each command once, with the units of all of them, and one reload at the most.

    `reload`: systemd still has to be told of what an earlier call has written.
    """
    diff = [entry for one in plans for entry in one.diff]
    before = _together([step for one in plans for step in one.before])
    after = _together([step for one in plans for step in one.after])
    order = ["enable", "daemon-reload", "start", "reset-failed"]
    reloads = Step("run", argv=(*systemctl, "daemon-reload"))
    if reload and reloads not in after:
        after.append(reloads)
        diff.append(entry_of("systemd", _flags(reloaded=False), _flags(reloaded=True)))
    after.sort(key=lambda step: order.index(step.argv[len(systemctl)]))
    # enabling would reload by itself, and once is enough
    quiet = (*systemctl, "enable", "--no-reload")
    after = [
        Step("run", argv=quiet + step.argv[len(quiet) - 1 :]) if "enable" in step.argv and reloads in after else step
        for step in after
    ]
    return Plan(diff, before, [step for one in plans for step in one.files], after)


def _together(steps: Sequence[Step]) -> list[Step]:
    """Commands that differ in their units only as one, before what is done to files; in the order of the first ones."""
    commands: dict[tuple[str, ...], list[str]] = {}
    for step in steps:
        if step.do == "run":
            units = [word for word in step.argv if word.startswith("serversync@")]
            commands.setdefault(step.argv[: len(step.argv) - len(units)], []).extend(units)
    return [Step("run", argv=(*words, *units)) for words, units in commands.items()] + [
        step for step in steps if step.do != "run"
    ]
