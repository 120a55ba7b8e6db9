"""Measurements of kernels that were made up, for tests of what is said and drawn of them."""

from qviz.kernels.ceilings import Ceilings
from qviz.kernels.results import Measurement, Point
from qviz.kernels.timing import Timing

SHAPE, FORMAT = (512, 1024), "int4-g128"
KERNEL = "torch.int4"


def point(kernel=KERNEL, median=1e-3, spread=(0.9, 1.2), weight_bytes=300_000, batch=1, **more):
    moved = weight_bytes + 2 * batch * sum(SHAPE)
    return Point(
        kernel=kernel, format=FORMAT, shape=SHAPE, batch=batch, dtype="bfloat16",
        time=Timing(median, spread[0] * median, spread[1] * median, 9), weight_bytes=weight_bytes,
        moved_bytes=moved, flops=2 * batch * SHAPE[0] * SHAPE[1], error=0.00213, total_error=0.0341,
        copies=3, launch=None, arithmetic="bfloat16", **more,
    )  # fmt: skip


def measurement(points_=(), complete=True, **machine) -> Measurement:
    about = {"device": "CPU", "processor": "Test 9000", "cores": "8", "threads": "4",
             "torch": "2.13", "date": "2026-01-31T00:00:00+00:00", **machine}  # fmt: skip
    ceilings = Ceilings(2e10, 3e10, {"bfloat16": 2e11}, 1 << 20)
    return Measurement(about, ceilings, tuple(points_), {}, complete)
