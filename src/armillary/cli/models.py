"""armillary models"""

from __future__ import annotations

from typing import Annotated

import typer

from armillary.cli.output import print_json, print_table


def command(
    families: Annotated[bool, typer.Option("--families", help="Only the families that can be read.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the models at hand and the families supported.

    At hand are the bundled model and what the local hub cache holds in full; nothing is downloaded.
    """
    from armillary.models.encoder_families import ENCODERS
    from armillary.models.families import FAMILIES
    from armillary.models.shelf import at_hand

    known = [
        {"model_type": family.model_type, "title": family.title, "gives": gives}
        for table, gives in ((FAMILIES, "text, vectors"), (ENCODERS, "vectors, scores"))
        for family in table.values()
    ]
    found = [] if families else at_hand()
    if json:
        print_json({"families": known} if families else {"models": found, "families": known})
        return
    from armillary.deployment import format_size

    if not families:
        print_table("Models at hand", ["name", "family", "kind", "parameters", "weights", "context", "usable"],
                    [(m.name, m.family, m.kind, f"{m.parameters / 1e6:,.1f} M" if m.parameters else "–",
                      format_size(m.weights), f"{m.context:,}" if m.context else "–", m.problem or "yes")
                     for m in found])  # fmt: skip
    rows = [(f["model_type"], f["title"], f["gives"]) for f in known]
    print_table("Families", ["model_type", "what it is", "gives"], rows)
