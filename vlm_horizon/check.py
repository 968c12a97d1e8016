"""The command `check`: the self-test of one model, as a table with a verdict."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from analyses.reports.text import Table
from vlm_horizon.arguments import Loading, ModelName, with_groups

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
    found = check_model(probed)
    if as_json:
        print(json.dumps(check_record(found), indent=2))
    else:
        print(f"{facts_table(found)}\n\n{properties_table(found)}\n\n{_verdict(found)}")
    raise typer.Exit(0 if found.passed else 1)


def facts_table(found: ModelCheck) -> Table:
    """What the model is, and how its prompt is laid out."""
    model = found.model
    grids = ", ".join(f"{rows} x {columns}" for rows, columns in found.grids) or "none"
    behind = ", ".join(map(str, found.additions)) or "none"
    rows = [
        ("family", model.family.name),
        ("layers", str(model.n_layers)),
        ("heads, key heads, head width", f"{model.n_heads}, {model.n_key_value_heads}, {model.head_dim}"),
        ("hidden width, vocabulary", f"{model.hidden_size}, {model.vocab_size}"),
        ("dtype, attention, device", f"{str(model.dtype).removeprefix('torch.')}, {model.attn}, {model.device}"),
        ("quantized weights", model.quantization or "no"),
        ("tokens of the test prompt", f"{found.n_prompt}, {found.n_visual} of them visual"),
        ("grids (rows x columns)", grids),
        ("visual tokens without a place", str(found.n_placeless)),
        ("layers behind which the model adds", behind),
    ]
    return Table(f"{model.name}", ("what", "value"), rows)


def properties_table(found: ModelCheck) -> Table:
    """What was tested: the error beside what rounding explains, and what the ablation moved."""
    rows = [
        (
            tested.name,
            f"{tested.error:.1e}",
            f"{tested.tolerance:.0e}",
            "" if tested.effect is None else f"{tested.effect:.2g}",
            "holds" if tested.passed else "FAILS",
        )
        for tested in found.properties
    ]
    columns = ("property", "error", "rounding explains", "effect (nats)", "verdict")
    return Table("Self-test", columns, rows)


def check_record(found: ModelCheck) -> dict[str, Any]:
    """The same as plain JSON."""
    record = {name: getattr(found, name) for name in ("n_prompt", "n_visual", "n_placeless", "grids", "additions")}
    properties = [{**asdict(tested), "passed": tested.passed} for tested in found.properties]
    return {
        "model": found.model.name,
        "family": found.model.family.name,
        "n_layers": found.model.n_layers,
        "quantization": found.model.quantization,
        **record,
        "properties": properties,
        "passed": found.passed,
        "refusal": found.refusal,
    }


def _verdict(found: ModelCheck) -> str:
    if not found.passed:
        return f"Verdict: refused. {found.refusal}"
    worst = max(tested.error for tested in found.properties if tested.unit == "nats")
    return f"Verdict: supported, replays agree with the model to within {worst:.1g} nats."
