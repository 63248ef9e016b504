# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whoever is told to stop hears it, also where Python alone would wait on."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
import serversync

PACKAGE = Path(serversync.__file__).parent.parent
# A signal that another thread takes interrupts no wait of the main thread, just as one that comes right before it.
TAKEN_ELSEWHERE = """
import signal, sys, threading
sys.path.insert(0, sys.argv[1])
from serversync.failure import Stopped
from serversync.signals import heard

begun = threading.Event()

def take():
    begun.wait()
    signal.pthread_kill(threading.get_ident(), int(sys.argv[2]))

threading.Thread(target=take).start()
try:
    with heard():
        begun.set()
        threading.Event().wait()
except (Stopped, KeyboardInterrupt) as told:
    print(type(told).__name__)
"""
# The first one has been heard, by who made nothing of it.
ONCE_MORE = TAKEN_ELSEWHERE.replace(
    "        begun.set()\n",
    """        try:
            signal.raise_signal(int(sys.argv[2]))
        except Stopped:
            begun.set()
""",
)
IGNORED = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
number = signal.Signals(int(sys.argv[2]))
signal.signal(number, signal.SIG_IGN)
from serversync.signals import heard
with heard():
    os.kill(os.getpid(), number)
print("went on")
"""
PUT_BACK = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
from serversync.signals import heard
numbers = [signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGURG]
before = [signal.getsignal(number) for number in numbers]
descriptors = os.listdir("/proc/self/fd")
with heard():
    pass
assert [signal.getsignal(number) for number in numbers] == before
assert os.listdir("/proc/self/fd") == descriptors
print("as before", signal.set_wakeup_fd(-1))
"""


def said(script: str, number: signal.Signals = signal.SIGTERM) -> str:
    argv = [sys.executable, "-c", script, str(PACKAGE), str(int(number))]
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout.strip()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_that_another_thread_takes_ends_the_wait(number: signal.Signals) -> None:
    # A shell that runs the tests in the background has SIGINT ignored, nohup(1) SIGHUP, by all that come from them.
    before = signal.signal(number, signal.SIG_DFL)
    try:
        assert said(TAKEN_ELSEWHERE, number) == ("KeyboardInterrupt" if number == signal.SIGINT else "Stopped")
    finally:
        signal.signal(number, before)


def test_so_does_another_one_after_it() -> None:
    assert said(ONCE_MORE) == "Stopped"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_who_ignores_it_goes_on(number: signal.Signals) -> None:
    """As nohup(1) has it for SIGHUP, and a shell for SIGINT in what it runs in the background."""
    assert said(IGNORED, number) == "went on"


def test_all_is_put_back() -> None:
    assert said(PUT_BACK) == "as before -1"


# The main thread waits for something that does not come; a limit that is taken away in time, and one that is not.
LIMITED = """
import sys, threading
sys.path.insert(0, sys.argv[1])
from serversync.failure import Overdue
from serversync.signals import Limit, heard

with heard():
    with Limit(None), Limit(3600):
        pass
    try:
        with Limit(0.01):
            threading.Event().wait()
    except Overdue:
        print("over")
    # one that came too late
    import os, signal
    os.kill(os.getpid(), signal.SIGALRM)
print("well")
"""


def test_what_has_a_limit_is_over_when_that_is() -> None:
    done = subprocess.run([sys.executable, "-c", LIMITED, str(PACKAGE)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "over\nwell\n", "")
