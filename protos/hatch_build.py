"""Generates the protocol code whenever this package is built or installed."""

import runpy
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class GenerateProtocolCode(BuildHookInterface[Any]):
    """Fills `gen/` before hatchling collects it."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Runs the generator, unless its output is there from `make protos`."""
        root = Path(self.root)
        if version == "editable" and (root / "gen" / "gaming").is_dir():
            return
        generator = runpy.run_path(str(root / "generate.py"))
        generator["generate"](root / "gen")
