# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""How Sphinx makes pages of the guides and of the reference; see scripts/docs."""

project = "serversync.core"
project_copyright = "serversync.core contributors"
extensions = ["myst_parser", "sphinx_antsibull_ext"]
# Headings are link targets, as forges make them.
myst_heading_anchors = 4
html_theme = "alabaster"
html_theme_options = {"page_width": "75em", "sidebar_width": "16em", "fixed_sidebar": True}
# Links of the guides to files of the repository, which are no pages, and of the reference to Ansible's own pages.
suppress_warnings = ["myst.xref_missing", "ref.ref"]
