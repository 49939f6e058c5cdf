"""
Names of Django, Channels and asgiref that are private or not documented.

The package uses such a name only through this module. Each has one line that says what it does,
and a test in ``test_compat.py`` that fails when a new version changes it.
"""

from __future__ import annotations

# Django

# Channels

# asgiref
