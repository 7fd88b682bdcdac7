"""Hatchling's hook: a wheel carries the built web client, an editable install builds none."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

sys.path.insert(0, str(Path(__file__).resolve().parent))

import webclient


class ClientHook(BuildHookInterface):  # type: ignore[type-arg]
    def dependencies(self) -> list[str]:
        """Node, where the PATH has none and the client is still to be built."""
        root = Path(self.root)
        current = webclient.is_current(root / webclient.STATIC, root / webclient.CLIENT)
        return [] if current or webclient.node_on_path() else [webclient.NODE_PACKAGE]

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version == "editable":
            return  # the Makefile builds it into the tree, which is what runs
        root = Path(self.root)
        webclient.build(root)
        # Ignored by git, and so by hatchling, unless it is named.
        build_data["artifacts"].append(f"/{webclient.STATIC}/**")
