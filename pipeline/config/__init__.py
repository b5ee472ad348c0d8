"""The config of a system: its schema, how it is read, and how options are bound."""

from pipeline.config.binding import OptionTypeError, bind, nearest
from pipeline.config.errors import ConfigError, Problem
from pipeline.config.reading import (
    Reading,
    difference,
    dump,
    examine,
    from_dict,
    load,
    override,
    plain,
    structure,
    to_dict,
)
from pipeline.config.schema import (
    Average,
    Change,
    Config,
    Data,
    Folds,
    Frames,
    InitFrom,
    Patch,
    Predict,
    Stop,
    Train,
    Validate,
)
from pipeline.config.shipped import find_config, first_comment, shipped_configs
from pipeline.config.strict_yaml import dump_yaml, parse_yaml, read_yaml

__all__ = [
    "Average",
    "Change",
    "Config",
    "ConfigError",
    "Data",
    "Folds",
    "Frames",
    "InitFrom",
    "OptionTypeError",
    "Patch",
    "Predict",
    "Problem",
    "Reading",
    "Stop",
    "Train",
    "Validate",
    "bind",
    "difference",
    "dump",
    "dump_yaml",
    "examine",
    "find_config",
    "first_comment",
    "from_dict",
    "load",
    "nearest",
    "override",
    "parse_yaml",
    "plain",
    "read_yaml",
    "shipped_configs",
    "structure",
    "to_dict",
]
