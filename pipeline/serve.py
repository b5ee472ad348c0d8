r"""Serve one model over HTTP.

POST an image, get the very file that ``pipeline.predict`` would write for it::

    python -m pipeline.serve --checkpoint runs/deblur
    curl --data-binary @blurred.jpg -H 'Content-Type: image/jpeg' -o sharp.jpg \
        http://127.0.0.1:8000/predict

The model is loaded once and nothing is kept between requests. There is neither encryption nor a
password: beyond this machine (``--host``) it belongs behind a proxy that has both.

A client that sends or reads too slowly is disconnected and blocks no other. The head of a request
has to arrive within 10 s, its body and its response within 20 s and a second more for every 32 KiB.
A request waits for the network only when its body is complete. Bodies and responses lie on disk:
memory follows ``--concurrent``, not the number of clients.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any

from pipeline import cli, model_options
from pipeline.records import AGAIN, DONE


def parser() -> argparse.ArgumentParser:
    """Make the parser of ``python -m pipeline.serve``.

    Returns:
        A parser whose options are the arguments of :func:`serve`.
    """
    p = cli.parser(
        "serve",
        "Serve a model of images over HTTP: POST an image to /predict, get the answer; GET"
        " /health.",
    )
    model_options.add_model_options(p)
    p.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen on; 0.0.0.0 is reachable from other machines",
    )
    p.add_argument(
        "--port", type=_whole(0), default=8000, help="port to listen on; 0: any free one"
    )
    p.add_argument(
        "--max-bytes", type=_whole(1), default=64 * 2**20, help="largest request body in bytes"
    )
    p.add_argument(
        "--max-pixels",
        type=_whole(1),
        default=16 * 2**20,
        help="largest image in pixels, width times height",
    )
    p.add_argument(
        "--concurrent",
        type=_whole(1),
        default=1,
        help="images computed at a time; they share the processor's threads",
    )
    p.add_argument(
        "--waiting",
        type=_whole(0),
        default=8,
        help="further requests that may wait; more are told to come back (503)",
    )
    return p


def _whole(least: int) -> Callable[[str], int]:
    """Type of an option that takes whole numbers from ``least``."""

    def number(text: str) -> int:
        if int(text) < least:
            raise argparse.ArgumentTypeError(f"{text} is less than {least}")
        return int(text)

    return number


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: words of the command line; None: ``sys.argv``.

    Returns:
        Exit code.
    """
    return cli.run(parser(), serve, argv)


def serve(
    *,
    host: str,
    port: int,
    max_bytes: int,
    max_pixels: int,
    concurrent: int,
    waiting: int,
    **model: Any,
) -> int:
    """Serve until a signal asks to stop.

    Args:
        host: address to listen on.
        port: number of the port; 0: any free one.
        max_bytes: largest request body in bytes.
        max_pixels: largest image in pixels, width times height.
        concurrent: images computed at a time.
        waiting: further requests that may wait.
        **model: fields of :class:`pipeline.inference.options.ModelOptions`.

    Returns:
        Exit code.
    """
    from pipeline import serving

    serving.require_packages()

    from pipeline.serving.service import Limits
    from pipeline.workflows import serve as workflow
    from pipeline.workflows.predict import ModelOptions

    limits = Limits(bytes=max_bytes, pixels=max_pixels, concurrent=concurrent, waiting=waiting)
    ended_by = workflow.serve(ModelOptions(**model), limits, host=host, port=port)
    return DONE if ended_by is None else AGAIN


if __name__ == "__main__":
    raise SystemExit(main())
