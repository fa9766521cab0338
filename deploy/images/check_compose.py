"""Checks deploy/compose.yaml without a Docker engine.

The Compose specification's own reference loader validates the file where Go could build it
(`.tool/bin/compose-go`). In any case the environment of each service is loaded with that service's
own settings, so a misspelt or missing variable is found here and not at the first start.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from ai_router.config import AiRouterSettings
from autoscaler.config import AutoscalerSettings
from gpu_metrics.config import CollectorSettings
from knowledge_base.config import KnowledgeBaseSettings
from servicekit.settings import SettingsError, describe_settings, load_settings

ROOT = Path(__file__).resolve().parents[2]
LOADER = ROOT / ".tool" / "bin" / "compose-go"
SETTINGS: dict[str, type[Any]] = {
    "gpu-metrics": CollectorSettings,
    "autoscaler": AutoscalerSettings,
    "ai-router": AiRouterSettings,
    "knowledge-base": KnowledgeBaseSettings,
}
# Read by the AWS SDK itself rather than by a service.
FOREIGN_VARIABLES = {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}
SHARED_PREFIXES = ("GAMEKEEPER_", "AWS_")


def problems_of(name: str, service: dict[str, Any]) -> list[str]:
    """Returns a line for everything wrong with one service of the suite."""
    environ = {
        key: re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", str(value))
        for key, value in service["environment"].items()
    }
    found = []
    try:
        settings = load_settings(SETTINGS[name], environ)
    except SettingsError as error:
        return [f"{name}: {problem}" for problem in error.problems]
    known = {row.variable for row in describe_settings(settings, environ)} | FOREIGN_VARIABLES
    found.extend(
        f"{name}: {variable} is no setting of this service"
        for variable in environ
        if variable not in known and not variable.startswith(SHARED_PREFIXES)
    )
    port = environ["GAMEKEEPER_LISTEN_ADDRESS"].rpartition(":")[2]
    if service["ports"] != [f"127.0.0.1:{port}:{port}"]:
        found.append(f"{name}: the published port is not the one it listens on, or not on loopback")
    module = service["build"]["args"]["SERVICE"]
    if not (ROOT / "services" / module / "src" / module / "__main__.py").is_file():
        found.append(f"{name}: there is no service {module} to build")
    return found


def main() -> int:
    """Checks the file named on the command line; returns 1 when something is wrong."""
    path = Path(sys.argv[1])
    compose = yaml.safe_load(path.read_text(encoding="utf-8"))
    found = [f"{name}: not in the file" for name in SETTINGS if name not in compose["services"]]
    for name, service in compose["services"].items():
        if name in SETTINGS:
            found.extend(problems_of(name, service))
    if LOADER.exists():
        loaded = subprocess.run(
            [str(LOADER), str(path)], capture_output=True, text=True, timeout=60, check=False
        )
        if loaded.returncode:
            found.append(loaded.stderr.strip() or loaded.stdout.strip())
    else:
        print("compose file: checked without the reference loader, which needs Go")
    for problem in found:
        print(f"{path}: {problem}", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
