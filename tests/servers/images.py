# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Build the container images of the test servers: plain Debian with systemd as PID 1 and sshd.

An image holds what a plain server has and nothing that the collection installs itself. It is tagged
with a hash of everything that goes into it, so that an unchanged image is built once per machine.

    python images.py            build what is missing, print one line per image: SUITE IMAGE
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
SUITES = ("bookworm", "trixie")
PACKAGES = (
    "ca-certificates",
    "dbus",
    "iproute2",
    "openssh-server",
    "python3",
    "python3-apt",
    "sudo",
    "systemd",
    "systemd-sysv",
    "tzdata",
)
# What is installed on the running servers, by the role or for the test: downloaded once, into apt's cache.
CACHED_PACKAGES = (
    "rsync",
    "python3-jsonschema",
    "python3-paramiko",
    "python3-rich",
    "python3-aiosmtpd",
    "python3-venv",
)

UNITS = {
    # LoadCredential= leaves its directory empty in a container until mounts propagate as they do on a machine.
    "shared-mounts.service": """\
[Unit]
Description=Let mounts propagate as on a machine
DefaultDependencies=no
Before=sysinit.target

[Service]
Type=oneshot
ExecStart=/bin/mount --make-rshared /

[Install]
WantedBy=sysinit.target
""",
    # Every server has host keys of its own, as if it had been installed.
    "host-keys.service": """\
[Unit]
Description=Make the host keys of sshd
Before=ssh.service

[Service]
Type=oneshot
ExecStart=/usr/bin/ssh-keygen -A

[Install]
WantedBy=multi-user.target
""",
}
APT_SETTINGS = """\
APT::Install-Recommends "false";
APT::Keep-Downloaded-Packages "true";
Acquire::Languages "none";
"""


def output(*argv: str) -> str:
    """What a command prints, without the last line break."""
    return subprocess.run(argv, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


def apt_settings() -> str:
    """How apt on this machine reaches its mirrors, as far as another apt needs to know."""
    wanted = ("Acquire::http::Proxy", "Acquire::https::Proxy", "Acquire::Check-Valid-Until", "Acquire::Check-Date")
    lines = output("apt-config", "dump").splitlines()
    return APT_SETTINGS + "".join(f"{line}\n" for line in lines if line.split(" ")[0] in wanted)


def apt_sources(suite: str) -> list[str]:
    """The package sources of `suite` on the Debian mirrors that this machine itself uses."""
    targets = output("apt-get", "indextargets", "--format", "$(ORIGIN) $(RELEASE) $(REPO_URI)", "Created-By: Packages")
    mirrors: dict[str, str] = {}
    for line in targets.splitlines():
        origin, release, uri = line.split(" ", 2)
        if origin == "Debian":
            kind = "security" if release.endswith("-security") else "main"
            mirrors.setdefault(kind, uri.rstrip("/"))
    if "main" not in mirrors:
        sys.exit(
            "images: apt knows no Debian mirror on this machine; run 'apt-get update' first, or build on Debian 12+"
        )
    sources = [
        f"deb {mirrors['main']} {suite} main",
        f"deb {mirrors['main']} {suite}-updates main",
    ]
    if "security" in mirrors:
        sources.append(f"deb {mirrors['security']} {suite}-security main")
    return sources


def podman(*argv: str) -> list[str]:
    return ["podman", *argv]


def exists(image: str) -> bool:
    return subprocess.run(podman("image", "exists", image), check=False).returncode == 0


def customise(root_text: str) -> list[str]:
    """The shell hooks of mmdebstrap that turn a bare system into a server; `$1` is its root."""
    return [
        f'cp -a {root_text}/. "$1"',
        f'chroot "$1" systemctl --quiet enable {" ".join(UNITS)} ssh.service',
        # Keys and ids are made when a server starts: no two servers share them.
        'rm -f "$1"/etc/ssh/ssh_host_* && : > "$1"/etc/machine-id && rm -f "$1"/var/lib/dbus/machine-id',
        'chroot "$1" apt-get -o APT::Sandbox::User=root -qq install --yes --download-only ' + " ".join(CACHED_PACKAGES),
    ]


def recipe(suite: str) -> dict[str, object]:
    return {
        "suite": suite,
        "sources": apt_sources(suite),
        "apt": apt_settings(),
        "packages": PACKAGES,
        "cached": CACHED_PACKAGES,
        "units": UNITS,
        "hooks": customise("ROOT"),
    }


def image_name(suite: str) -> str:
    digest = hashlib.sha256(json.dumps(recipe(suite), sort_keys=True).encode()).hexdigest()
    return f"localhost/serversync-{suite}:{digest[:16]}"


def build(suite: str, image: str) -> None:
    with tempfile.TemporaryDirectory(prefix="serversync-image-") as scratch:
        root = Path(scratch, "root")
        files = {f"etc/systemd/system/{name}": text for name, text in UNITS.items()}
        files["etc/apt/apt.conf.d/80serversync-test"] = apt_settings()
        for path, text in files.items():
            root.joinpath(path).parent.mkdir(parents=True, exist_ok=True)
            root.joinpath(path).write_text(text, encoding="utf-8")
        archive = Path(scratch, "image.tar")
        settings = [line.rstrip(";") for line in apt_settings().splitlines()]
        argv = [
            "mmdebstrap",
            "--quiet",
            "--variant=minbase",
            f"--include={','.join(PACKAGES)}",
            "--skip=cleanup/apt",
            *(f"--aptopt={line}" for line in settings),
            *(f"--customize-hook={hook}" for hook in customise(str(root))),
            suite,
            str(archive),
            *apt_sources(suite),
        ]
        subprocess.run(argv, check=True, stdout=sys.stderr)
        subprocess.run(
            podman("import", "--quiet", "--change", 'CMD ["/sbin/init"]', str(archive), image),
            check=True,
            stdout=sys.stderr,
        )


def main() -> None:
    os.environ["CONTAINERS_CONF"] = str(HERE / "containers.conf")
    for suite in SUITES:
        image = image_name(suite)
        if not exists(image):
            print(f"building {image} ...", file=sys.stderr, flush=True)
            build(suite, image)
        print(suite, image)


if __name__ == "__main__":
    main()
