"""An HTTP service around one model: POST an image, get its answer as a file.

It knows nothing of models but a function that answers an image file.

A client that sends or reads too slowly is given up and holds nobody up. The head of a request has
to come within 10 s (:mod:`pipeline.serving.server`), its body and its answer within 20 s and a
second more for every 32 KiB (:mod:`pipeline.serving.uploads`). A request waits for the network only
when its body is complete. Bodies and answers lie on disk: memory follows the images computed at a
time, not the number of clients.

The walk of a request: server (connection, head) -> application (request, response) -> uploads
(body) -> service (place, workspace, turn).
"""

from __future__ import annotations

import importlib

from pipeline.records import UserError

PACKAGES = ("fastapi", "uvicorn", "python_multipart")
"""What is imported here; starlette looks for python_multipart only when a form comes."""


def require_packages() -> None:
    """Raise UserError where the extra ``serve`` is not installed."""
    for name in PACKAGES:
        try:
            importlib.import_module(name)
        except ImportError:
            raise UserError(
                f'pipeline.serve needs the package {name}: pip install "pipeline[serve]".'
            ) from None
