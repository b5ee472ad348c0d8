"""HTTP service around one model: POST an image, receive its prediction as a file.

It knows nothing about models but a function that predicts an image file. A client that sends or
reads too slowly is disconnected and delays nobody. The head of a request has to arrive within 10 s
(:mod:`pipeline.serving.server`), its body and its response within 20 s and one more second for
every 32 KiB (:mod:`pipeline.serving.uploads`). A request waits for the network only when its body
is complete. Bodies and responses lie on disk: memory follows the number of concurrent predictions,
not the number of clients.

A request passes through: server (connection, head) -> application (request, response) -> uploads
(body) -> service (queue, workspace, threads).
"""

from __future__ import annotations

import importlib

from pipeline.records import UserError

PACKAGES = ("fastapi", "uvicorn", "python_multipart")
"""Packages of the extra; starlette needs python_multipart only for a form."""


def require_packages() -> None:
    """Check that the extra ``serve`` is installed.

    Raises:
        UserError: where one of PACKAGES is missing.
    """
    for name in PACKAGES:
        try:
            importlib.import_module(name)
        except ImportError:
            raise UserError(
                f'pipeline.serve needs the package {name}. In a clone: pip install -e ".[serve]".'
            ) from None
