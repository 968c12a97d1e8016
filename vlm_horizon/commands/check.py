"""The command `check`: the self-test of one model, as a table with a verdict."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from analyses.reports.text import Table
from vlm_horizon.commands.arguments import Loading, ModelName, with_groups

if TYPE_CHECKING:
    from probes.loading.check import ModelCheck


@with_groups
def check(
    model: ModelName,
    loading: Loading,
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> None:
    """Prove on one prompt that MODEL can be measured exactly, or say why not. Exit code 0: it can, 1: it cannot."""
    from probes.loading.check import check_model

    probed = loading.load(model, check=False)
    result = check_model(probed)
    if as_json:
        print(json.dumps(check_record(result), indent=2))
    else:
        print(f"{facts_table(result)}\n\n{properties_table(result)}\n\n{_verdict(result)}")
    raise typer.Exit(0 if result.passed else 1)


def facts_table(result: ModelCheck) -> Table:
    """Tabulate what the model is, and how its prompt is laid out."""
    model = result.model
    grids = ", ".join(f"{rows} x {columns}" for rows, columns in result.grids) or "none"
    additions = ", ".join(map(str, result.additions)) or "none"
    rows = [
        ("family", model.family.name),
        ("layers", str(model.n_layers)),
        ("heads, key heads, head width", f"{model.n_heads}, {model.n_key_value_heads}, {model.head_dim}"),
        ("hidden width, vocabulary", f"{model.hidden_size}, {model.vocab_size}"),
        ("dtype, attention, device", f"{str(model.dtype).removeprefix('torch.')}, {model.attn}, {model.device}"),
        ("quantized weights", model.quantization or "no"),
        ("tokens of the test prompt", f"{result.n_prompt}, {result.n_visual} of them visual"),
        ("grids (rows x columns)", grids),
        ("visual tokens without a place", str(result.n_placeless)),
        ("layers behind which the model adds", additions),
    ]
    return Table(f"{model.name}", ("what", "value"), rows)


def properties_table(result: ModelCheck) -> Table:
    """Tabulate each tested property: its error, the error that rounding explains, and the effect of the ablation."""
    rows = [
        (
            item.name,
            f"{item.error:.1e}",
            f"{item.tolerance:.0e}",
            "" if item.effect is None else f"{item.effect:.2g}",
            "holds" if item.passed else "FAILS",
        )
        for item in result.properties
    ]
    columns = ("property", "error", "rounding explains", "effect (nats)", "verdict")
    return Table("Self-test", columns, rows)


def check_record(result: ModelCheck) -> dict[str, Any]:
    """Return the contents of both tables as JSON holds them."""
    record = {name: getattr(result, name) for name in ("n_prompt", "n_visual", "n_placeless", "grids", "additions")}
    properties = [{**asdict(item), "passed": item.passed} for item in result.properties]
    return {
        "model": result.model.name,
        "family": result.model.family.name,
        "n_layers": result.model.n_layers,
        "quantization": result.model.quantization,
        **record,
        "properties": properties,
        "passed": result.passed,
        "refusal": result.refusal,
    }


def _verdict(result: ModelCheck) -> str:
    if not result.passed:
        return f"Verdict: refused. {result.refusal}"
    worst = max(item.error for item in result.properties if item.unit == "nats")
    return f"Verdict: supported, replays agree with the model to within {worst:.1g} nats."
