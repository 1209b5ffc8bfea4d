"""CudaTimer on a real GPU: its spans are the time that the GPU computed, and taking them waits for nothing."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
import torch

from launcher.measure.device import CudaTimer, timer
from launcher.measure.spans import Recorder, clock
from launcher.measure.timeline import read_timelines

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


def test_spans_are_the_gpus_time(tmp_path: Path) -> None:
    device = torch.device("cuda", 0)
    matrix = torch.randn(8192, 8192, device=device)
    matrix @ matrix
    torch.cuda.synchronize()
    path = tmp_path / "t.jsonl"
    header = {"rank": 0, "replica": 0, "host": "h", "attempt": "w0000-a0001", "clock": clock()}
    with Recorder(path, header) as recorder:
        timed = timer(recorder, device)
        assert isinstance(timed, CudaTimer)
        began = time.perf_counter()
        for step in range(20):
            with timed.span("decode", step=step):
                for _ in range(4):
                    matrix @ matrix
        queued = time.perf_counter() - began
        timed.close()
        took = time.perf_counter() - began
    (timeline,) = read_timelines([path])
    spans = timeline.spans
    assert spans["step"].tolist() == list(range(20))
    busy = float((spans["end"] - spans["start"]).sum())
    assert queued < busy
    assert 0.8 * took < busy < 1.02 * took
    assert (np.diff(spans["start"]) > 0).all()
    assert (spans["start"][1:] >= spans["end"][:-1] - 1e-5).all()
