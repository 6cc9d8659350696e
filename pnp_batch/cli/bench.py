"""`bench`: what translation costs on this machine, measured."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import click

from pnp_batch.cli.options import answer, common, configured, options, preset

SHAPING = (
    *("model", "revision", "method", "steps", "inversion_steps", "guidance_scale"),
    *("pnp_f_t", "pnp_attn_t", "deep_every", "resolution", "device", "dtype", "batch_size"),
    *("memory_format", "attention", "compile"),
)


@click.command()
@options(SHAPING)
@preset
@click.option(
    "--prompts", type=click.IntRange(1), default=1, show_default=True, help="Of each image."
)
@click.option(
    "--repeats", type=click.IntRange(1), default=3, show_default=True, help="Batches timed."
)
@click.option(
    "--threads", type=click.IntRange(1), default=1, show_default=True, help="On a CPU, of a worker."
)
@click.option("--run", "rows", type=click.IntRange(2), metavar="ROWS", help="Also a whole run.")
@click.option(
    "--workers", type=click.IntRange(1), default=1, show_default=True, help="Of the whole run."
)
@common
def bench(
    prompts: int,
    repeats: int,
    threads: int,
    rows: int | None,
    workers: int,
    as_json: bool,
    **given: Any,
) -> None:
    """Measure this machine: images/s, FLOPs of an image, FLOP/s against the device's own pace."""
    from pnp_batch.bench import bench_engine, bench_whole

    config = configured({"manifest": "-", "output": "-", **given})
    found = bench_engine(config, prompts=prompts, repeats=repeats, threads=threads)
    work = found.tflop_per_image
    saved = found.published_tflop_per_image / work if work else float("inf")
    lines = [
        f"{found.model} on {found.device} in {found.dtype}: {found.steps} steps, "
        f"{found.images} images with {found.prompts} prompts each in a batch, "
        f"medians of {found.repeats}",
        f"inversion: {found.inversions_per_second:.3g} images/s",
        f"generation: {found.generations_per_second:.3g} images/s",
        f"whole: {found.images_per_second:.3g} images/s",
        f"work of an image: {work:.4g} TFLOP "
        f"(the published defaults: {found.published_tflop_per_image:.4g}, {saved:.1f} times)",
        f"achieved: {found.tflops:.3g} TFLOP/s, {found.utilisation:.0%} of the "
        f"{found.ceiling_tflops:.3g} of large matrix products",
        f"latents: {found.latent_bytes_per_image / 1e3:.1f} kB for each guidance image",
    ]
    body = {**asdict(found), "utilisation": found.utilisation, "run": None}
    if rows:
        whole = bench_whole(config, rows=rows, prompts=prompts, workers=workers)
        share = whole.images_per_second / (workers * found.images_per_second)
        body["run"] = {**asdict(whole), "share_of_engine": share}
        lines += [
            f"a run of {whole.rows} rows on {whole.workers} workers: "
            f"{whole.images_per_second:.3g} images/s, {share:.0%} of the bare engine's; "
            f"workers busy {whole.busy:.0%}, the UNet {whole.unet_busy:.0%} of the time; "
            f"first rows after {whole.start_seconds:.0f} s",
        ]
        if whole.driver_mib and whole.worker_mib:
            lines.append(
                f"memory: driver {whole.driver_mib:.0f} MiB, {whole.worker_mib:.0f} a worker"
            )
    answer("\n".join(lines), body, as_json=as_json)
