"""Serving: a model is loaded once, predicts images over HTTP, and keeps nothing between requests.

Data flow: workflows.predict (networks) -> serving.service (one model, many clients) ->
serving.server.
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
from pipeline.inference.options import ModelOptions
from pipeline.records import AGAIN, Case, UserError
from pipeline.serving.application import application
from pipeline.serving.server import Server, is_local, listen
from pipeline.serving.service import Limits, Service
from pipeline.stopping import StopRequested, stop
from pipeline.workflows import predict
from pipeline.workflows.predict import PredictJob

logger = logging.getLogger(__name__)

THREAD_SECONDS = 1.0
"""Seconds that the shutdown waits for an image that is being computed.

Its thread stops after the tile that it is computing.
"""


def serve(
    options: ModelOptions, limits: Limits, *, host: str = "127.0.0.1", port: int = 8000
) -> signal.Signals | None:
    """Serve until asked to stop and running requests are answered or given up.

    Args:
        options: which networks predict, and how.
        limits: what requests may cost.
        host: address to listen on; ``0.0.0.0`` is reachable from other machines.
        port: TCP port; 0: any free one.

    Returns:
        The signal that ended it. The process exits here, with code 75, where an image that is being
        computed would delay the end.

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
        web_server = server(service)
        web_server.run(sockets=[listener])
    return _shut_down(service, web_server.ended_by)


def server(service: Service) -> Server:
    """A server that ends on a signal, within a bounded time, after running requests are answered.

    Args:
        service: the model and its clients.

    Returns:
        The server, not yet running.
    """
    return Server(application(service), service.close, lambda: stop.signal)


def _shut_down(service: Service, number: int | None) -> signal.Signals | None:
    """Log how the server ended, and leave nothing behind."""
    stop.signal = number  # an image that is being computed ends after its tile
    idle = service.abandon(THREAD_SECONDS)
    if number is None:
        return None
    rejected = f", {service.turned_away} turned away" if service.turned_away else ""
    logger.info(
        f"stopped serving on request ({signal.Signals(number).name}): {service.answered} requests "
        f"answered{rejected}; the same command serves again"
    )
    if not idle:  # a thread cannot be ended, and the interpreter would wait for it
        sys.stdout.flush()
        os._exit(AGAIN)
    return signal.Signals(number)


def build(options: ModelOptions, limits: Limits) -> Service:
    """Load the model, ready to answer requests.

    Each of ``limits.concurrent`` requests gets its share of threads.

    Args:
        options: which networks predict, and how.
        limits: what requests may cost.

    Returns:
        The service, for :func:`server`.

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
        "task": config.rules,
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
    """Predict one image file.

    Args:
        job: the networks.
        image: the file.
        folder: where the prediction goes; created where it does not exist.

    Returns:
        The prediction's path.

    Raises:
        FileError: for an image that cannot be decoded.
    """
    row = predict.predict_case(
        dataclasses.replace(job, output=folder), Case(id="image", image=(image,))
    )
    return folder / row["output"]
