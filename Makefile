# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later

# Every target installs what it needs into .venv, and Debian packages where it may.

.DELETE_ON_ERROR:
.PHONY: help demo test alerts browser bench faults servers lint sanity docs release clean

help:
	@echo "make demo     a job declared, run, duplicated and removed, here and without root (1 minute)"
	@echo "make test     unit and integration tests; no root, no container"
	@echo "make alerts   alert rules and rulebook, tried with Prometheus' promtool and ansible-rulebook (a minute; needs Java)"
	@echo "make browser  the page of reports in a headless Chromium (a minute; installs the browser)"
	@echo "make bench    how fast it is against rsync and unison; writes docs/performance.md (an hour; BENCH='P1 P3' for some)"
	@echo "make faults   kills, lost links, full disks, damaged archives; 500 kills (an hour; FAULTS='--kills 20' for a few)"
	@echo "make servers  two Debian servers with systemd in containers, end to end (root, podman)"
	@echo "make lint     formatting, types, documentation, licences"
	@echo "make sanity   ansible-test sanity on every supported ansible-core that runs here"
	@echo "make docs     write the JSON Schemas again from the grammar, and the documentation as pages in .docs"
	@echo "make release  the archive, its bill of materials and check sums in dist (docs/releasing.md has the rest)"
	@echo "make clean    remove what these targets made"

.venv/.%: requirements/%.txt
	@scripts/setup-venv $*

.venv/.demo: requirements/runner.txt
.venv/.test: requirements/runner.txt requirements/demo.txt requirements/units.txt
.venv/.alerts: requirements/test.txt requirements/runner.txt requirements/demo.txt requirements/units.txt
.venv/.servers: requirements/runner.txt requirements/demo.txt requirements/units.txt requirements/test.txt

demo: .venv/.demo
	@scripts/need-packages rsync=rsync
	@scripts/demo

test: .venv/.test
	@scripts/need-packages rsync=rsync sshd=openssh-server ssh=openssh-client
	.venv/bin/python -m pytest --numprocesses auto --dist worksteal tests/unit tests/integration

alerts: .venv/.alerts
	@scripts/need-packages rsync=rsync java=default-jre-headless
	@scripts/need-promtool
	PATH="$$PWD/.venv/bin:$$PATH" .venv/bin/python -m pytest tests/alerts

browser: .venv/.test
	@scripts/need-packages chromium=chromium
	.venv/bin/python -m pytest tests/browser

bench: .venv/.test
	@scripts/need-packages rsync=rsync unison=unison sshd=openssh-server ssh=openssh-client setfacl=acl
	.venv/bin/python tests/bench/run.py $(BENCH)

faults: .venv/.test
	@scripts/need-packages rsync=rsync unison=unison sshd=openssh-server ssh=openssh-client strace=strace faketime=faketime setfacl=acl chattr=e2fsprogs
	$(if $(FAULTS),,.venv/bin/python tests/faults/steps.py)
	$(if $(FAULTS),,.venv/bin/python tests/faults/oracles.py)
	$(if $(FAULTS),,.venv/bin/python tests/faults/fuzz.py --cases 5000)
	.venv/bin/python tests/faults/campaign.py $(FAULTS)

servers: .venv/.servers
	@scripts/need-packages podman=podman runc=runc mmdebstrap=mmdebstrap /usr/lib/podman/netavark=netavark /usr/lib/podman/aardvark-dns=aardvark-dns iptables=iptables ssh=openssh-client
	@scripts/servers

lint: .venv/.nox
	.venv/bin/nox --session lint

sanity: .venv/.nox
	.venv/bin/nox --session sanity

docs: .venv/.docs
	.venv/bin/python tests/generate_schema.py
	@scripts/docs

release: .venv/.release
	@scripts/release

clean:
	rm -rf .bench .faults .venv .nox .demo .docs dist .servers .ansible .cache .hypothesis .mypy_cache .pytest_cache .ruff_cache
	rm -f serversync-core-*.tar.gz
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
