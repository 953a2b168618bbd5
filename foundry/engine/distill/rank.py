"""One of the processes that distil together: `torchrun ... -m foundry.engine.distill.rank WORKSPACE DTYPE`.

`launch` starts them on one machine. Several machines with one file system need the same torchrun command on each, with
its --nnodes and --rdzv-endpoint. All end with status 0 when they are done or were asked to stop.
"""

import argparse
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from foundry.engine.context import RunContext
from foundry.engine.distill.parallel import Ranks
from foundry.engine.distill.stage import learn
from foundry.engine.run import main
from foundry.engine.workspace import Workspace
from foundry.spec.job import JobSpec
from foundry.spec.lifecycle import ExitCode, RunEvent


@contextmanager
def joined(device: torch.device) -> Iterator[tuple[Ranks, torch.device]]:
    """Within this the process belongs to those that torchrun started; with this one's own device."""
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    try:
        size = dist.get_world_size()
        yield Ranks(dist.get_rank(), size, init_device_mesh(device.type, (size,))), device
    finally:
        dist.destroy_process_group()


def _work(dtype: torch.dtype, spec: JobSpec, workspace: Workspace, context: RunContext) -> None:
    with joined(context.device) as (ranks, device):
        asked = context.should_stop
        learn(
            spec, workspace,
            replace(
                context, device=device, dtype=dtype, emit=context.emit if ranks.is_first else _silent,
                should_stop=lambda: bool(ranks.first_says(float(asked()))),
            ),
            ranks,
        )  # fmt: skip


def _silent(event: RunEvent) -> None:
    """All say the same."""


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Distil a workspace, as one of the processes of torchrun.")
    parser.add_argument("workspace", type=Path, help="the job's folder")
    parser.add_argument("dtype", choices=("bfloat16", "float32"), help="what products are computed in")
    arguments = parser.parse_args()
    status = main(arguments.workspace, partial(_work, getattr(torch, arguments.dtype)))
    sys.exit(ExitCode.DONE if status == ExitCode.STOPPED else status)
