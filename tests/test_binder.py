"""binder/: what mybinder.org would build must be what was tested."""

import json
import os
import runpy
from pathlib import Path

from jupyter_server.services.kernels.kernelmanager import AsyncMappingKernelManager

from qviz.server import ServeOptions, app
from qviz.server.settings import voila_config

ROOT = Path(__file__).parents[1]
BINDER = ROOT / "binder"


def test_requirements_are_the_tested_versions() -> None:
    tool = runpy.run_path(str(ROOT / "tools" / "binder_requirements.py"))
    assert tool["requirements"]() == (BINDER / "requirements.txt").read_text(encoding="utf-8"), (
        "run: python tools/binder_requirements.py"
    )


def test_voila_is_as_strict_as_our_own_server() -> None:
    there = json.loads((BINDER / "voila.json").read_text())["VoilaConfiguration"]
    here = voila_config(ServeOptions(notebooks=ROOT)).VoilaConfiguration
    for name, value in there.items():
        assert here[name] == value, name


def test_kernels_that_nobody_uses_end_on_binder_as_here() -> None:
    there = json.loads((BINDER / "jupyter_server_config.json").read_text())["MappingKernelManager"]
    assert AsyncMappingKernelManager.class_traits().keys() >= there.keys()
    assert there == {
        "cull_idle_timeout": app.IDLE_KERNEL_SECONDS,
        "cull_interval": app.CULL_EVERY_SECONDS,
        "cull_connected": False,
    }
    assert "jupyter_server_config.d" in (BINDER / "postBuild").read_text()


def test_scripts_can_be_run() -> None:
    for name in ("postBuild", "start"):
        assert os.access(BINDER / name, os.X_OK), name
        assert (BINDER / name).read_text().startswith("#!/bin/bash")
    assert "set -e" in (BINDER / "postBuild").read_text()
    assert (BINDER / "runtime.txt").read_text().strip() == "python-3.11"
