"""armillary doctor"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from armillary.cli.output import console, print_json, print_table

if TYPE_CHECKING:
    from armillary.runtime.doctor import Ceiling, Diagnosis, EncoderCeiling


def command(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A folder, a hub id, or `isles`. Only its config.json is read.")
    ] = "isles",
    batch: Annotated[int, typer.Option(min=1, help="Sequences decoded together, for the second figure.")] = 16,
    context: Annotated[int, typer.Option(min=0, help="Tokens already in the cache of each sequence.")] = 512,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Measure this machine and say what a model will do on it.

    Takes about five seconds. The figures for the model are ceilings: what memory bandwidth and matrix peak allow.
    """
    from armillary.models.encoder_spec import EncoderSpec
    from armillary.models.locate import locate_config

    spec = locate_config(model)
    diagnosis = _measure()

    from armillary.runtime.doctor import ceilings, encoder_ceilings

    if isinstance(spec, EncoderSpec):
        _encoder(model, spec.num_parameters(), diagnosis, encoder_ceilings(spec, diagnosis), json)
        return
    found = ceilings(spec, diagnosis, batch, context)
    if json:
        print_json({"diagnosis": diagnosis, "model": model, "parameters": spec.num_parameters(), "ceilings": found})
        return
    _print_machine(diagnosis)
    _print_rates(diagnosis)
    _print_model(model, spec.num_parameters(), found)


def _encoder(model: str, parameters: int, diagnosis: Diagnosis, found: list[EncoderCeiling], json: bool) -> None:
    """The report on a model that gives vectors and scores."""
    from armillary.deployment import format_size

    if json:
        print_json({"diagnosis": diagnosis, "model": model, "parameters": parameters, "ceilings": found})
        return
    _print_machine(diagnosis)
    _print_rates(diagnosis)
    print_table(
        f"{model}, {parameters / 1e6:,.1f} million parameters, an encoder: at most",
        ["format", "weights", "fits", "many texts, tokens/s", f"texts of {found[0].text_tokens} tokens alone, 1/s"],
        [
            (c.dtype, format_size(c.weights), "yes" if c.fits else "no", f"{c.tokens:,.0f}", f"{c.alone:,.1f}")
            for c in found
        ],
        caption="Ceilings from the rates above; real speed lies below. It generates nothing.",
    )


def _measure() -> Diagnosis:
    with console(stderr=True).status("Looking at the machine") as status:
        import torch

        from armillary.runtime.doctor import Diagnosis, measure_bandwidth, measure_peaks
        from armillary.runtime.machine import read_machine
        from armillary.runtime.native_plan import read_kernels

        machine = read_machine()
        torch.set_num_threads(machine.threads)
        status.update("Measuring memory bandwidth")
        bandwidth = measure_bandwidth(machine)
        status.update("Measuring matrix products")
        kernels = read_kernels()
        return Diagnosis(machine, machine.threads, bandwidth, measure_peaks(), kernels.path or "torch", kernels.reason)


def _print_machine(diagnosis: Diagnosis) -> None:
    from armillary.deployment import format_size

    machine = diagnosis.machine
    bf16 = "native" if machine.native_bf16 else "emulated, slow"
    print_table(
        "This machine",
        ["", ""],
        [
            ("system", machine.system),
            ("processor", machine.cpu),
            ("features", " ".join(machine.features) or "none of those that matter here"),
            ("bfloat16 products", bf16),
            ("cores", f"{machine.physical_cores} physical, {machine.logical_cores} logical, "
                      f"{machine.usable_cores} usable by this process"),
            ("threads that compute", diagnosis.threads),
            ("kernels", f"{diagnosis.kernels}: {diagnosis.reason}"),
            ("memory", f"{format_size(machine.memory)}, {format_size(machine.available)} available"),
        ],
    )  # fmt: skip


def _print_rates(diagnosis: Diagnosis) -> None:
    rows = [("memory read", f"{diagnosis.bandwidth.best / 1e9:.1f}", f"{diagnosis.bandwidth.median / 1e9:.1f}", "GB/s")]
    rows += [
        (f"matrix product, {dtype}", f"{peak.best / 1e9:.1f}", f"{peak.median / 1e9:.1f}", "GFLOP/s")
        for dtype, peak in diagnosis.peaks.items()
    ]
    busy = any(rate.best > 1.5 * rate.median for rate in [diagnosis.bandwidth, *diagnosis.peaks.values()])
    note = (
        "Best and median are far apart: something else is running. Measure again when it has ended." if busy else None
    )
    print_table("Measured", ["", "best", "median", "unit"], rows, caption=note)


def _print_model(model: str, parameters: int, found: list[Ceiling]) -> None:
    from armillary.deployment import format_size

    print_table(
        f"{model}, {parameters / 1e6:,.1f} million parameters: at most",
        ["dtype", "weights", "fits", "1 sequence, tokens/s", f"{found[0].batch_size} sequences, tokens/s",
         "prompt, tokens/s", "formats"],
        [
            (c.dtype, format_size(c.weights), "yes" if c.fits else "no", f"{c.decode:,.0f}", f"{c.batch:,.0f}",
             f"{c.prompt:,.0f}", c.formats or c.dtype)
            for c in found
        ],
        caption=f"Ceilings from the rates above, with {found[0].context} tokens in each cache; real speed lies below.",
    )  # fmt: skip
