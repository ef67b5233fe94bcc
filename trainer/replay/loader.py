"""The loaders that replay stored views: FFCV (fast) and a plain DataLoader (the oracle)."""

from __future__ import annotations

from trainer.replay.epoch import ReplayBatch, ReplayLoader
from trainer.replay.ffcv_loader import FFCVReplayLoader
from trainer.replay.torch_loader import TorchReplayLoader

__all__ = ["FFCVReplayLoader", "ReplayBatch", "ReplayLoader", "TorchReplayLoader"]
