"""Serving: a model is loaded once, answers images over HTTP, and keeps nothing between requests.

The walk: workflows.predict (networks) -> serving.service (one model, many clients)
-> serving.server.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import signal
import sys
from pathlib import Path

import torch

import pipeline
from pipeline import files
from pipeline.records import AGAIN, Case, UserError
from pipeline.serving.application import application
from pipeline.serving.server import Server, is_local, listen
from pipeline.serving.service import Limits, Service
from pipeline.stopping import StopRequested, stop
from pipeline.workflows import predict
from pipeline.workflows.predict import ModelOptions, PredictJob

logger = logging.getLogger(__name__)

THREAD_SECONDS = 1.0
"""How long the end waits for an image that is being computed, which stops after the tile that it is
at.
"""


def serve(
    options: ModelOptions, limits: Limits, *, host: str = "127.0.0.1", port: int = 8000
) -> signal.Signals | None:
    """Serve until asked to stop, and the requests that it works on are answered or given up.

    Args:
        options: which networks answer, and how.
        limits: what requests may cost.
        host: address to listen on; ``0.0.0.0`` is reachable from other machines.
        port: 0: any free one.

    Returns:
        The signal that ended it. The process ends here, with exit code 75, where an image that is
        being computed would hold it up.

    Raises:
        UserError: for a model that cannot be served, and an address that cannot be listened on.
    """
    try:
        with stop.at_once():
            service = build(options, limits)
    except StopRequested as request:
        logger.info(
            f"stopped on request ({request}) before anything was served; the same command serves"
        )
        return signal.Signals[str(request)]
    with listen(host, port) as listener:
        address, number = listener.getsockname()[:2]
        shown = f"[{address}]" if ":" in address else address
        logger.info(f"Serving {service.facts['config']} on http://{shown}:{number}/predict")
        if not is_local(address):
            logger.warning(
                "other machines can reach this address; there is neither encryption nor a password."
            )
        made = server(service)
        made.run(sockets=[listener])
    return _ended(service, made.ended_by)


def server(service: Service) -> Server:
    """A server that ends on a signal, within a bounded time, after the requests that it works on
    are answered.
    """
    return Server(application(service), service.close, lambda: stop.signal)


def _ended(service: Service, number: int | None) -> signal.Signals | None:
    """Say how the server ended, and leave nothing behind."""
    stop.signal = number  # an image that is being computed ends after its tile
    idle = service.abandon(THREAD_SECONDS)
    if number is None:
        return None
    away = f", {service.turned_away} turned away" if service.turned_away else ""
    logger.info(
        f"stopped serving on request ({signal.Signals(number).name}): {service.answered} requests "
        f"answered{away}; the same command serves again"
    )
    if not idle:  # a thread cannot be ended, and the interpreter would wait for it
        sys.stdout.flush()
        os._exit(AGAIN)
    return signal.Signals(number)


def build(options: ModelOptions, limits: Limits) -> Service:
    """The model loaded, ready to answer requests; each of ``limits.concurrent`` gets its share of
    threads.

    Raises:
        UserError: for a model of volumes, and where the options cannot be followed.
    """
    torch.set_num_threads(max(1, torch.get_num_threads() // limits.concurrent))
    predictor = predict.prepare(options)
    job = PredictJob(predictor=predictor, output=Path())
    config, first = job.config, Path(predictor.models[0])
    if config.data.dims != 2:
        raise UserError(
            f"{first} answers volumes; pipeline.serve takes models of images (data.dims: 2). Use"
            " pipeline.predict."
        )
    if predictor.trained_on.get("family") == "nifti":
        raise UserError(
            f"{first} was trained on NIfTI, whose axes lie in another order than those of pictures."
            " Use pipeline.predict."
        )
    if config.predict.norms != "tile" and limits.concurrent > 1:
        raise UserError(
            f"--concurrent {limits.concurrent} does not go with predict.norms"
            f" {config.predict.norms}, which sets the network up for one image. Use --concurrent 1."
        )
    facts = {
        "config": config.name,
        "model": files.sha256(first)[:16],
        "networks": len(predictor.models),
        "task": config.task,
        "channels": predictor.channels,
        "backend": options.backend,
        "version": pipeline.__version__,
    }
    return Service(
        predict=lambda image, folder: predict_file(job, image, folder),
        channels=predictor.channels,
        limits=limits,
        facts=facts,
    )


def predict_file(job: PredictJob, image: Path, folder: Path) -> Path:
    """Answer one image file.

    Args:
        job: the networks.
        image: the file.
        folder: where the answer goes; made where it is not there.

    Returns:
        The answer's path.

    Raises:
        FileError: for an image that cannot be decoded.
    """
    row = predict.predict_case(
        dataclasses.replace(job, output=folder), Case(id="image", image=(image,))
    )
    return folder / row["output"]
