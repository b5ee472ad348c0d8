"""Packages of the distribution; all else stands in pyproject.toml.

That can say "find them" or name a folder for one of them, but not both.
"""

import sys

from setuptools import find_packages, setup

PACKAGES = find_packages(include=["pipeline", "pipeline.*"])

if "editable_wheel" in sys.argv:
    # Configs are found in the clone. Without a mapped package setuptools writes its path into
    # a .pth file. Its finder would come too late for who stands beside a clone called pipeline, as
    # Python has then taken that folder for a namespace package.
    setup(packages=PACKAGES, package_dir={"": "."})
else:
    setup(packages=[*PACKAGES, "pipeline._configs"], package_dir={"pipeline._configs": "configs"})
