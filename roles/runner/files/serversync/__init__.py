# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The runner: carries out the synchronization jobs that ``serversync.core.sync_job`` declares."""

__version__ = "0.1.0"

# What the two runners of a job speak over their connection; raised when the frames change meaning.
PROTOCOL = 8
