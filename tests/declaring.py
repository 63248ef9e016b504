# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A server for the modules: a home with a runner deployed, and a systemd that keeps its state in files.

The modules run on it as they really do, each in a process of its own.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from tests import crashing, forking

PROGRAM = """
import contextlib, json, runpy, sys
from ansible.module_utils import basic
from ansible.module_utils.common.parameters import PASS_VARS
arguments = json.load(sys.stdin)
if "inject_invocation" in PASS_VARS:  # which ansible-core 2.19 and before do unasked
    arguments["_ansible_inject_invocation"] = True
try:
    from ansible.module_utils.testing import patch_module_args
    context = patch_module_args(arguments)
except ImportError:  # ansible-core 2.18
    basic._ANSIBLE_ARGS = json.dumps({"ANSIBLE_MODULE_ARGS": arguments}).encode()
    context = contextlib.nullcontext()
with context:
    runpy.run_module("ansible_collections.serversync.core.plugins.modules.MODULE", run_name="__main__")
"""

# Put before PROGRAM: the module is killed before the step of this number, or it records which steps there are.
KILL = """
from tests import crashing
crashing.kill_before(%d, %r)
"""
RECORD = """
from tests import crashing
crashing.record(%r, %r, %r, %r)
"""

# Put before PROGRAM: whose machine id this server has.
MACHINE = """
from ansible_collections.serversync.core.plugins.module_utils import _store
_store.MACHINE_ID = %r
"""

# A user's systemd manager, as far as a job needs one: what it has loaded, what runs, and every call.
SYSTEMCTL = """\
#!%(python)s -IS
import json, os, sys
root, units, stamps = %(root)r, %(units)r, %(stamps)r
memory = json.load(open(root + "/memory.json"))
words = sys.argv[1:]
with open(root + "/calls", "a") as calls:
    calls.write(json.dumps(["systemctl"] + words) + "\\n")
def fail(text):
    sys.stderr.write(text + "\\n")
    sys.exit(1)
def files(unit):
    found = {}
    for path in (units + "/" + unit, units + "/" + unit + ".d/job.conf"):
        if os.path.isfile(path):
            found[path] = open(path).read()
    return found
if os.environ.get("LC_ALL") != "C":
    fail("not in the C locale")
if words.pop(0) != "--user":
    fail("the system's manager has no business in these tests")
if os.path.exists(root + "/broken-" + words[0]):
    fail("Failed to " + words[0] + " unit: Connection timed out")
verb, names = words[0], [word for word in words[1:] if not word.startswith("--")]
wants = units + "/timers.target.wants/"
if verb == "show":
    blocks = []
    for unit in names:
        loaded = memory["loaded"].get(unit)
        on = unit.endswith(".timer") and os.path.lexists(wants + unit)
        blocks.append("Id=%%s\\nLoadState=%%s\\nActiveState=%%s\\nUnitFileState=%%s\\nNeedDaemonReload=%%s\\n" %% (
            unit, "loaded" if files(unit) else "not-found", memory["active"].get(unit, "inactive"),
            "enabled" if on else "disabled" if files(unit) else "",
            "yes" if loaded is not None and loaded != files(unit) else "no"))
    print("\\n".join(blocks), end="")
elif verb == "list-units":
    known = sorted(set(memory["active"]) | set(memory["loaded"]))
    for unit in known:
        print("%%s loaded %%s dead A job" %% (unit, memory["active"].get(unit, "inactive")))
elif verb == "list-timers":
    rows = [{"unit": unit, "next": 1790000000000000} for unit in sorted(memory["active"]) if unit.endswith(".timer")]
    print(json.dumps(rows + [{"unit": "serversync@running.timer", "next": None}]))
elif verb == "daemon-reload":
    names = [name[:-2] if name.endswith(".d") else name for name in os.listdir(units)]
    memory["loaded"] = {name: files(name) for name in names if "@" in name}
elif verb == "enable":
    for unit in names:
        if not files(unit):
            fail("Unit file %%s does not exist." %% unit)
        os.makedirs(wants, exist_ok=True)
        os.symlink(units + "/" + unit, wants + unit)
elif verb == "start":
    for unit in names:
        if memory["loaded"].get(unit) != files(unit) or not files(unit):
            fail("the unit file on disk is not the one loaded")
        stamp = stamps + "/stamp-" + unit
        if os.path.exists(stamp):
            fail("a run would be made up for")
        os.makedirs(stamps, exist_ok=True)
        open(stamp, "w").close()
        memory["active"][unit] = "active"
elif verb in ("stop", "disable"):
    for unit in names:
        if verb == "disable":
            if not files(unit):
                fail("Unit file %%s does not exist." %% unit)
            if os.path.lexists(wants + unit):
                os.unlink(wants + unit)
        if verb == "stop" or "--now" in words:
            state = memory["active"].pop(unit, None)
            if unit.endswith(".service") and state:
                memory["active"][unit] = "failed"
elif verb == "reset-failed":
    for name in names:
        unit = name.replace("[", "").replace("]", "")
        if memory["active"].get(unit) != "failed" and unit == name:
            fail("Unit %%s not loaded." %% unit)
        memory["active"].pop(unit, None)
else:
    fail("unknown verb " + verb)
json.dump(memory, open(root + "/memory.json", "w"))
"""

ANALYZE = """\
#!%(python)s -IS
import json, sys
with open(%(root)r + "/calls", "a") as calls:
    calls.write(json.dumps(["systemd-analyze"] + sys.argv[1:2]) + "\\n")
for word in sys.argv[2:]:
    if sys.argv[1] == "calendar":
        if "nonsense" in word:
            sys.stderr.write("Failed to parse calendar specification '%%s': Invalid argument\\n" %% word)
            sys.exit(1)
        print("    Next elapse: " + ("never" if "2001" in word else "Mon 2031-11-23 01:30:00 UTC"))
    else:
        lines = open(word).read().splitlines()
        sys.stderr.write("/lib/systemd/system/other.service:1: not ours\\n")
        sys.stderr.write(word + ":6: Unknown key 'FixedRandomDelay' in section [Timer], ignoring.\\n")
        if "RandomizedDelaySec=777s" in lines:
            sys.stderr.write(word + ":7: Failed to parse RandomizedDelaySec= value, ignoring: 777s\\n")
"""

# What each module returns on every path.
RESULTS = {
    "sync_job": {"job", "diff", "commands"},
    "sync_jobs": {"jobs", "changes", "diff", "commands"},
    "sync_job_info": {"jobs", "status"},
    "sync_job_run": {"run", "plan", "diff"},
}
MUTATING = ("daemon-reload", "enable", "disable", "start", "stop", "reset-failed")


def assert_on_disk(diff: list) -> None:
    """An oracle: what the diff of a declaration says is there."""
    for entry in diff:
        path = Path(entry["after_header"])
        if path.is_absolute() and path != Path("/dev/null") and " (" not in str(path):
            hidden = entry["after"] in ("(a secret)\n", "(another secret)\n")
            assert hidden or path.read_text() == entry["after"]
        elif path == Path("/dev/null"):
            assert not os.path.lexists(entry["before_header"])


def remove(path: str) -> None:
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
    else:
        os.unlink(path)


def put_back(saved: str, path: str) -> None:
    """Makes a directory what a copy of it is; what is the same stays, as the runner knows things by their inodes."""
    for name in {*os.listdir(path)} - {*os.listdir(saved)}:
        remove(os.path.join(path, name))
    for name in os.listdir(saved):
        copy, there = os.path.join(saved, name), os.path.join(path, name)
        if os.path.isdir(copy) and not os.path.islink(copy):
            if not os.path.isdir(there):
                os.mkdir(there)
            put_back(copy, there)
        elif not os.path.lexists(there) or crashing.what_is(copy) != crashing.what_is(there):
            if os.path.lexists(there):
                remove(there)
            shutil.copy2(copy, there, follow_symlinks=False)
    shutil.copystat(saved, path)


class Server:
    """A home directory with a runner deployed, and systemd where asked for."""

    def __init__(self, path: Path, systemd: bool = True) -> None:
        self.program = PROGRAM
        self.name = "sync_job"
        self.options = {"name": "demo", "scope": "user"}
        self.root = path / "systemd-of-the-test"
        self.home = path / "home"
        self.config = self.home / "config"
        self.units = self.config / "systemd" / "user"
        self.stamps = self.home / "data" / "systemd" / "timers"
        self.document = self.config / "serversync" / "jobs" / "demo.json"
        self.timer = self.units / "serversync@demo.timer"
        self.drop_in = self.units / "serversync@demo.service.d" / "job.conf"
        self.stamp = self.stamps / "stamp-serversync@demo.timer"
        self.published = self.home / "state" / "serversync" / "public" / "demo.json"
        self.here = self.home / "here"
        self.launcher = self.home / ".local" / "bin" / "serversync"
        for directory in (self.root / "bin", self.units, self.here, self.config / "serversync", path / "tmp"):
            directory.mkdir(parents=True)
        (self.config / "serversync" / "runner.json").write_text("{}")
        (self.root / "memory.json").write_text('{"loaded": {}, "active": {}}')
        (self.root / "calls").touch()
        names = {
            "python": sys.executable,
            "root": str(self.root),
            "units": str(self.units),
            "stamps": str(self.stamps),
        }
        for name, text in (("systemctl", SYSTEMCTL), ("systemd-analyze", ANALYZE)):
            program = self.root / "bin" / name
            program.write_text(text % names)
            program.chmod(0o755)
        if systemd:
            (self.root / "systemd").mkdir()
            (self.root / "systemd" / "private").touch()
        self.tmp = path / "tmp"
        self.environment = {
            "PATH": "%s:%s" % (self.root / "bin", os.environ["PATH"]),
            "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry),
            "HOME": str(self.home),
            "XDG_CONFIG_HOME": str(self.config),
            "XDG_DATA_HOME": str(self.home / "data"),
            "XDG_STATE_HOME": str(self.home / "state"),
            "XDG_RUNTIME_DIR": str(self.root),
        }

    def start(self, check: bool, parameters: dict) -> subprocess.CompletedProcess:
        arguments = dict(self.options, **parameters)
        if self.name in ("sync_job", "sync_jobs"):
            # most have a partner that is no server
            arguments.setdefault("validate_partner", False)
        arguments.update(
            _ansible_check_mode=check, _ansible_diff=True, _ansible_remote_tmp=str(self.tmp), _ansible_no_log=False
        )
        return self.process(self.program.replace("modules.MODULE", "modules." + self.name), json.dumps(arguments))

    def process(self, program: str, given: str) -> subprocess.CompletedProcess:
        """The module's process; Python and Ansible have started before."""
        return forking.run(program, given, self.environment)

    def module(self, check: bool, parameters: dict) -> dict:
        done = self.start(check, parameters)
        assert not done.stderr, done.stderr
        result = json.loads(done.stdout)
        assert "exception" not in result or result["exception"].startswith("(traceback unavailable)"), result
        assert {"changed", "failure"} | RESULTS[self.name] <= set(result)
        assert done.returncode == (1 if result.get("failed") else 0)
        assert list(self.tmp.iterdir()) == []
        if "warnings" in result:  # text, or from ansible-core 2.19 on an event
            texts = [one if isinstance(one, str) else one["event"]["msg"] for one in result["warnings"]]
            result["warnings"] = texts
        return result

    def crashes(self, **parameters) -> Iterator[bytes]:
        """Kills what is armed before each of its steps, each time anew from what is there now; then the test goes on.

        It is told what is in the module's temporary files, which nobody comes back for.
        Of steps before which there is the same on the server it is one, and not those that leave all as it is.
        """
        path = str(self.root.parent)
        log, before = Path(path + ".steps"), Path(path + ".before")
        shutil.copytree(path, str(before), symlinks=True)
        disarm = self.arm(RECORD % (str(log), path, str(self.home), str(self.root / "memory.json")))
        assert self.start(False, parameters).returncode == 0
        disarm()
        first, *steps = map(int, log.read_text().split())
        assert first == 0
        for step in steps:
            self.restore(before)
            disarm = self.arm(KILL % (step, path))
            assert self.start(False, parameters).returncode == self.dies
            disarm()
            left = b"".join(path.read_bytes() for path in self.tmp.rglob("*") if path.is_file())
            for directory in self.tmp.iterdir():
                shutil.rmtree(directory)
            yield left
        self.restore(before)
        shutil.rmtree(before)
        log.unlink()

    #: What the module exits with when what is armed is killed.
    dies = -signal.SIGKILL

    def arm(self, program: str) -> Callable[[], None]:
        """From now on the module runs this first; what is returned ends that."""
        whole, self.program = self.program, program + self.program

        def disarm() -> None:
            self.program = whole

        return disarm

    def restore(self, saved: Path) -> None:
        """Makes the server what a copy of it is."""
        put_back(str(saved), str(self.root.parent))

    def turn(self, module: str, **options: object) -> Server:
        """From now on this module is run, with these options beside those of a call."""
        self.name, self.options = module, {"scope": "user", **options}
        return self

    def become(self, machine_id: str) -> None:
        """From now on the modules find this in the file of the machine id, by default what is in that of the tests."""
        path = self.root / "machine-id"
        path.write_text(machine_id + "\n")
        self.program = MACHINE % str(path) + PROGRAM

    def check(self, **parameters) -> dict:
        return self.module(True, parameters)

    def apply(self, **parameters) -> dict:
        return self.module(False, parameters)

    def calls(self, start: int = 0) -> list:
        return [json.loads(line) for line in (self.root / "calls").read_text().splitlines()[start:]]

    def mutating(self, start: int) -> list:
        """The calls that changed something, without those before `start`."""
        return [call for call in self.calls(start) if set(call) & set(MUTATING)]

    def memory(self) -> dict:
        return json.loads((self.root / "memory.json").read_text())

    def tell(self, **active: str) -> None:
        memory = self.memory()
        memory["active"].update({"serversync@demo." + unit: state for unit, state in active.items()})
        (self.root / "memory.json").write_text(json.dumps(memory))

    def snapshot(self) -> dict:
        """Everything below the home: type, mode, content, identity, time of the last write."""
        found = {}
        for path in sorted(self.home.rglob("*")):
            info = path.lstat()
            content = os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else None
            found[str(path.relative_to(self.home))] = (info.st_mode, info.st_ino, info.st_mtime_ns, content)
        return found

    def state(self) -> tuple:
        """What people see: the files' texts and modes, and the timer."""
        files = {name: (mode, content) for name, (mode, _ino, _time, content) in self.snapshot().items()}
        return files, self.memory()["active"]


class ColdServer(Server):
    """One where every module starts Python and Ansible, as it really does: for measuring."""

    def process(self, program: str, given: str) -> subprocess.CompletedProcess:
        argv = [sys.executable, "-c", program]
        return subprocess.run(argv, input=given, env=self.environment, capture_output=True, text=True, check=False)
