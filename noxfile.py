# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The gate: everything that has to be green before a change lands, but for 'make test', 'faults' and 'servers'.

nox                         all of it
nox --session sanity-2.18   one session
"""

from __future__ import annotations

import ast
import configparser
import contextlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import nox

ROOT = Path(__file__).resolve().parent
TARGET_PYTHONS = ("3.8", "3.9", "3.10", "3.11", "3.12", "3.13", "3.14")
# Each supported ansible-core with the Pythons that its controller side runs on, best first.
ANSIBLE_CORES = {
    "2.21": ("3.14", "3.13", "3.12"),
    "2.20": ("3.14", "3.13", "3.12"),
    "2.19": ("3.13", "3.12", "3.11"),
    "2.18": ("3.13", "3.12", "3.11"),
}
TYPED = ("roles/runner/files/serversync", "plugins/module_utils")

nox.needs_version = ">=2024.4.15"
nox.options.error_on_missing_interpreters = False
nox.options.reuse_venv = "yes"
# virtualenv no longer makes environments for the oldest Python of managed servers.
nox.options.default_venv_backend = "venv"
nox.options.sessions = ["lint", "units", "build", "oldest", "sanity"]


def find_pythons() -> dict[str, str]:
    """The Pythons of this machine by version: whatever is on PATH or under pyenv and really starts."""
    found = {}
    for version in TARGET_PYTHONS:
        result = subprocess.run([ROOT / "scripts/find-python", version], capture_output=True, text=True, check=False)
        if result.returncode == 0:
            found[version] = result.stdout.strip()
    return found


PYTHONS = find_pythons()


def links_to_pythons() -> str:
    """A directory with every found Python as pythonX.Y, for nox and ansible-test to find on PATH."""
    directory = ROOT / ".nox/pythons"
    directory.mkdir(parents=True, exist_ok=True)
    for version, path in PYTHONS.items():
        link = directory / f"python{version}"
        # another nox may be at work here: there is always a link
        if not link.is_symlink() or link.readlink() != Path(path):
            new = directory / f".{version}.{os.getpid()}"
            new.symlink_to(path)
            new.replace(link)
    return str(directory)


os.environ["PATH"] = links_to_pythons() + os.pathsep + os.environ["PATH"]


def tracked_files() -> list[str]:
    """What git knows of or would take up: the tree without anything that a tool has left in it."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\0")
    return sorted({name for name in names if (ROOT / name).is_symlink() or (ROOT / name).is_file()})


@contextlib.contextmanager
def collection_copy() -> Iterator[Path]:
    """The tree where Ansible's tools want it: in a directory ansible_collections/serversync/core.

    It lies outside the clone, where ansible-test would ask git and find every file ignored.
    """
    with tempfile.TemporaryDirectory(prefix="serversync-") as parent:
        copy = Path(parent, "ansible_collections/serversync/core")
        for name in tracked_files():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, copy / name, follow_symlinks=False)
        yield copy


def private_home() -> Path:
    """A home directory for ansible-test, which passes no environment on to the pip that it starts.

    The pip setup of this machine, from files and environment alike, is written down there.
    """
    home = ROOT / ".nox/home"
    settings = configparser.RawConfigParser()
    listing = subprocess.run(["pip", "config", "list"], check=True, capture_output=True, text=True).stdout
    for line in listing.splitlines():
        name, value = line.split("=", 1)
        section, key = name.rsplit(".", 1)
        section = "global" if section == ":env:" else section
        if key != "config-file":
            settings.read_dict({section: {key: ast.literal_eval(value)}})
    (home / ".config/pip").mkdir(parents=True, exist_ok=True)
    pip_conf = home / ".config/pip/pip.conf"
    pip_conf.touch(mode=0o600)
    with pip_conf.open("w", encoding="utf-8") as stream:
        settings.write(stream)
    return home


@nox.session(python=list(PYTHONS)[-1:])
def lint(session: nox.Session) -> None:
    """Formatting, types, YAML, playbooks, documentation, licences, changelog: all findings in one go."""
    session.install("--requirement", "requirements/lint.txt")
    typed = [path for path in TYPED if (ROOT / path).is_dir()]
    failed = []
    with collection_copy() as copy:
        env = {"ANSIBLE_COLLECTIONS_PATH": str(copy.parents[2]), "ANSIBLE_HOME": str(ROOT / ".nox/ansible")}
        docs = ["--plugin-docs", "--skip-rstcheck", "--validate-collection-refs=all"]
        for command in (
            ["ruff", "format", "--check", "."],
            ["ruff", "check", "."],
            ["mypy", *typed],
            ["yamllint", "--strict", "."],
            ["reuse", "lint", "--quiet"],
            ["antsibull-changelog", "lint"],
            ["antsibull-docs", "lint-collection-docs", *docs, str(copy)],
            ["ansible-lint", "--offline", "--nocolor"],
        ):
            try:
                with session.chdir(copy if command[0] == "ansible-lint" else ROOT):
                    session.run(*command, env=env)
            except nox.command.CommandFailed:
                failed.append(command[0])
    if failed:
        session.error(f"failed: {', '.join(failed)}")


def unit_pythons() -> list[str]:
    """All that were found, or in CI the oldest of modules and runner, and the newest that 'make test' does not have."""
    found = list(PYTHONS)
    newest = [] if found[-1] == "%d.%d" % sys.version_info[:2] else found[-1:]
    return [one for one in found if one in ("3.8", "3.9", *newest)] if os.environ.get("CI") else found


@nox.session(python=unit_pythons())
def units(session: nox.Session) -> None:
    """The pure cores on every Python that a managed server may have, without Ansible."""
    session.install("--requirement", "requirements/units.txt")
    paths = ["tests/unit/plugins/module_utils", "tests/unit/runner"]
    if session.python == "3.8":
        # The module side runs where Ansible manages; the runner needs 3.9.
        paths.remove("tests/unit/runner")
    session.run("python", "-m", "pytest", "--quiet", "--numprocesses", "auto", *paths, *session.posargs)


@nox.session(python=list(PYTHONS)[-1:])
def build(session: nox.Session) -> None:
    """The collection builds, installs, shows its documentation, and would be taken by Galaxy."""
    session.install("ansible-core", "galaxy-importer")
    with collection_copy() as copy:
        target = copy.parents[2] / "built"
        env = {"ANSIBLE_COLLECTIONS_PATH": str(target), "ANSIBLE_HOME": str(ROOT / ".nox/ansible")}
        session.run("ansible-galaxy", "collection", "build", "--output-path", str(target), str(copy), env=env)
        (archive,) = target.glob("serversync-core-*.tar.gz")
        install = ["--offline", "--collections-path", str(target), str(archive)]
        session.run("ansible-galaxy", "collection", "install", *install, env=env)
        session.run("ansible-doc", "--type", "module", "serversync.core.sync_job", env=env, silent=True)
        session.run("ansible-doc", "--type", "role", "serversync.core.runner", env=env, silent=True)
        with session.chdir(target):
            session.run("python", "-m", "galaxy_importer.main", str(archive), env=env)


def sanity_python(core: str) -> str | None:
    return next((version for version in ANSIBLE_CORES[core] if version in PYTHONS), None)


OLDEST = list(ANSIBLE_CORES)[-1]


@nox.session(python=sanity_python(OLDEST))
def oldest(session: nox.Session) -> None:
    """Role, modules and playbook do what the guides say by the oldest ansible-core, too."""
    session.install(f"ansible-core=={OLDEST}.*", "--requirement", "requirements/test.txt")
    tests = ["tests/integration/test_guide.py", "tests/integration/test_report.py", *session.posargs]
    session.run("python", "-m", "pytest", "--quiet", "--numprocesses", "auto", *tests)


@nox.session(python=False)
def sanity(session: nox.Session) -> None:
    """Each sanity session that a found Python allows: all, or in CI the newest and the oldest."""
    cores = [core for core in ANSIBLE_CORES if sanity_python(core)]
    if os.environ.get("CI"):
        cores = [cores[0], cores[-1]]
    for core in cores:
        session.notify(f"sanity-{core}")


def sanity_session(core: str) -> None:
    @nox.session(name=f"sanity-{core}", python=sanity_python(core))
    def run(session: nox.Session) -> None:
        session.install(f"ansible-core=={core}.*")
        home = private_home()
        source = session.run(
            "python",
            "-c",
            "import ansible_test._internal.python_requirements as m; print(open(m.__file__).read())",
            silent=True,
        )
        cache = home / ".ansible/test/cache"
        cache.mkdir(parents=True, exist_ok=True)
        for version in re.findall(r"pip='([\d.]+)'", source or ""):
            shutil.copy(ROOT / "tests/sanity/get_pip.py", cache / f"get_pip_{version.replace('.', '_')}.py")
        with collection_copy() as copy, session.chdir(copy):
            session.run("ansible-test", "sanity", "--venv", "--color", "no", *session.posargs, env={"HOME": str(home)})


for _core in ANSIBLE_CORES:
    if sanity_python(_core):
        sanity_session(_core)
