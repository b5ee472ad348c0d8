"""Training and prediction for volumes and images: segmentation and image restoration.

Cross-validated training, tiled prediction, ensembling, topology repair, scoring and submission. The
public names are listed in ``__all__`` and are loaded when first used; nothing is printed unless a
caller wants it::

    import pipeline as pl

    run = pl.train_folds("surface", data="DIR", folds=[0])
    labels = pl.Predictor.load(run).predict(volume)
    scores = pl.score(labels, truth, ["dice", "surface_dice"])

For research: no medical device.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.config import Config as Config
    from pipeline.data.augment import AugmentationEntry as AugmentationEntry
    from pipeline.data.normalise import NormalisationEntry as NormalisationEntry
    from pipeline.inference.inferer import SlidingWindowInferer as SlidingWindowInferer
    from pipeline.inference.options import ModelOptions as ModelOptions
    from pipeline.inference.predictor import Predictor as Predictor
    from pipeline.losses.entry import LossEntry as LossEntry
    from pipeline.losses.module import Loss as Loss
    from pipeline.metrics.entry import MetricEntry as MetricEntry
    from pipeline.metrics.module import Metric as Metric
    from pipeline.networks import HeadedNet as HeadedNet
    from pipeline.networks import NetworkEntry as NetworkEntry
    from pipeline.plugins import load_plugins as load_plugins
    from pipeline.plugins import register as register
    from pipeline.postprocess.table import PostprocessStep as PostprocessStep
    from pipeline.postprocess.table import SearchSetting as SearchSetting
    from pipeline.postprocess.table import StepSearch as StepSearch
    from pipeline.records import UserError as UserError
    from pipeline.runs import RunFolder as RunFolder
    from pipeline.runs import load_config as load_config
    from pipeline.scoring.arrays import score as score
    from pipeline.training.optim import OptimizerEntry as OptimizerEntry
    from pipeline.training.optim import ScheduleEntry as ScheduleEntry
    from pipeline.workflows.ensemble import fuse_predictions as fuse_predictions
    from pipeline.workflows.evaluate import score_folder as score_folder
    from pipeline.workflows.plan import plan_dataset as plan_dataset
    from pipeline.workflows.plan import write_plan as write_plan
    from pipeline.workflows.predict import predict_files as predict_files
    from pipeline.workflows.report import write_report as write_report
    from pipeline.workflows.submit import write_submission as write_submission
    from pipeline.workflows.train import FoldError as FoldError
    from pipeline.workflows.train import train_folds as train_folds
    from pipeline.workflows.tune import tune_postprocessing as tune_postprocessing

__version__ = "0.2.0.dev0"

_HOMES = {
    "AugmentationEntry": "data.augment",
    "Config": "config",
    "FoldError": "workflows.train",
    "HeadedNet": "networks",
    "Loss": "losses.module",
    "LossEntry": "losses.entry",
    "Metric": "metrics.module",
    "ModelOptions": "inference.options",
    "MetricEntry": "metrics.entry",
    "NetworkEntry": "networks",
    "NormalisationEntry": "data.normalise",
    "OptimizerEntry": "training.optim",
    "PostprocessStep": "postprocess.table",
    "Predictor": "inference.predictor",
    "RunFolder": "runs",
    "ScheduleEntry": "training.optim",
    "SearchSetting": "postprocess.table",
    "SlidingWindowInferer": "inference.inferer",
    "StepSearch": "postprocess.table",
    "UserError": "records",
    "fuse_predictions": "workflows.ensemble",
    "load_config": "runs",
    "load_plugins": "plugins",
    "plan_dataset": "workflows.plan",
    "predict_files": "workflows.predict",
    "register": "plugins",
    "score": "scoring.arrays",
    "score_folder": "workflows.evaluate",
    "train_folds": "workflows.train",
    "tune_postprocessing": "workflows.tune",
    "write_plan": "workflows.plan",
    "write_report": "workflows.report",
    "write_submission": "workflows.submit",
}
"""Public names and the modules that they live in."""

__all__ = [
    "AugmentationEntry",
    "Config",
    "FoldError",
    "HeadedNet",
    "Loss",
    "LossEntry",
    "Metric",
    "MetricEntry",
    "ModelOptions",
    "NetworkEntry",
    "NormalisationEntry",
    "OptimizerEntry",
    "PostprocessStep",
    "Predictor",
    "RunFolder",
    "ScheduleEntry",
    "SearchSetting",
    "SlidingWindowInferer",
    "StepSearch",
    "UserError",
    "fuse_predictions",
    "load_config",
    "load_plugins",
    "plan_dataset",
    "predict_files",
    "register",
    "score",
    "score_folder",
    "train_folds",
    "tune_postprocessing",
    "write_plan",
    "write_report",
    "write_submission",
]


def _load(name: str) -> Any:
    """Import a public name when it is first used."""
    if name not in _HOMES:
        raise AttributeError(
            f"module {__name__!r} has no attribute {name!r}; it offers {', '.join(__all__)}"
        )
    found = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = found  # later uses do not come here
    return found


if not TYPE_CHECKING:  # type checkers have the imports above
    __getattr__ = _load


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
