"""Packages of the distribution; all else stands in pyproject.toml.

That can say "find them" or name a folder for one of them, but not both.
"""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["pipeline", "pipeline.*"]), "pipeline._configs"],
    package_dir={"pipeline._configs": "configs"},
    # A path in a .pth file. The usual finder of editable installations comes too late for who
    # stands beside a clone called pipeline: Python then takes that folder for a namespace package.
    options={"editable_wheel": {"mode": "compat"}},
)
