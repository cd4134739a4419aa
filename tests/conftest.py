"""Shared by all tests: no network, quiet libraries, small real pipelines with random weights on disk."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests import pipelines as tiny

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def pipelines(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a tiny pipeline of a real class, made when first asked for by a `save_<family>` of tests.pipelines."""
    root = tmp_path_factory.mktemp("pipelines")

    def folder(family: str) -> Path:
        path = root / family
        if not path.exists():
            getattr(tiny, f"save_{family}")(path)
        return path

    return folder
