"""`transfer probe`."""

from __future__ import annotations

from pathlib import Path

import click

from storage.cli_common import (
    device_option,
    json_option,
    overwrite_option,
    print_result,
    seed_option,
    workers_option,
)
from transfer.options import FILE, Numbers, data_options


@click.command()
@click.argument("student", type=FILE)
@data_options
@click.option("--out", type=FILE, help="Folder of results and features [default: beside STUDENT].")
@click.option(
    "--compare",
    multiple=True,
    help="Another student, as FILE or NAME=FILE; or `random`: the same network untrained.",
)
@click.option(
    "--fit", type=click.Choice(["logistic", "ridge"]), default="logistic", show_default=True,
    help="Linear probe: L-BFGS, or ridge regression in closed form.",
)  # fmt: skip
@click.option("--weight-decay", "decays", type=Numbers(float), help="Swept [default: 1e-5 to 10].")
@click.option("--k", "ks", type=Numbers(int), default="10,20,50,100", show_default=True,
              help="Neighbours of k-NN.")  # fmt: skip
@click.option("--shots", type=Numbers(int), default=(), help="Images a class, such as 1,5,10.")
@click.option("--seeds", type=click.IntRange(1), default=3, show_default=True,
              help="Draws of every few-shot run.")  # fmt: skip
@click.option("--whole", is_flag=True,
              help="Resize the shorter side to the input itself, not to 8/7 of it.")  # fmt: skip
@click.option("--batch-size", type=click.IntRange(1), default=128, show_default=True)
@device_option
@workers_option
@seed_option
@overwrite_option
@json_option
def probe(
    student: Path,
    data: str,
    val: str | None,
    out: Path | None,
    compare: tuple[str, ...],
    fit: str,
    decays: tuple[float, ...] | None,
    ks: tuple[int, ...],
    shots: tuple[int, ...],
    seeds: int,
    whole: bool,
    batch_size: int,
    device: str,
    workers: int | None,
    seed: int,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Judge a student's frozen features: linear probe, k-NN, few shots."""
    from transfer.probe import DECAYS, ProbeSettings
    from transfer.probe_run import ProbeRequest, describe, run_probe

    settings = ProbeSettings(
        fit=fit, decays=decays or DECAYS, ks=ks, shots=shots, seeds=seeds, seed=seed
    )
    report = run_probe(
        ProbeRequest(
            student=student,
            data=data,
            val=val,
            out=out,
            compare=compare,
            settings=settings,
            whole=whole,
            device=device,
            batch_size=batch_size,
            workers=2 if workers is None else workers,
            overwrite=overwrite,
        )
    )
    print_result(report.values, as_json, describe(report))
