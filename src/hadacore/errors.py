"""Errors that are not about a caller's argument (those are ``ValueError`` and ``TypeError``)."""

from __future__ import annotations


class BackendUnavailableError(RuntimeError):
    """The backend a tensor needs cannot run here; the message says why and what to install."""
