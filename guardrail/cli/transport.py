"""`guardrail transport`: the same model in another residual basis."""

from __future__ import annotations

from guardrail.cli import options as o
from guardrail.cli.drift import (
    BatchSize,
    Data,
    NewModel,
    OldArtefact,
    OldModel,
    ReplaceData,
    WorkDir,
    check_data,
)
from guardrail.cli.drift_report import transport_rows
from guardrail.cli.output import progress, session, write_json, write_rows
from guardrail.cli.requests import read_artefact, ready_to_write


def transport(
    artefact: OldArtefact,
    model: NewModel,
    out: o.Out,
    old_model: OldModel = None,
    data: Data = None,
    replace_data: ReplaceData = False,
    batch_size: BatchSize = 16,
    work_dir: WorkDir = None,
    device: o.Device = None,
    dtype: o.Dtype = "auto",
    revision: o.Revision = None,
    trust_remote_code: o.TrustRemoteCode = False,
    as_json: o.AsJson = False,
    debug: o.Debug = False,
) -> None:
    """Carry ARTEFACT over to a model that differs by the order and signs of its channels only.

    Where the change is another one, nothing is written and the exit code is 2.
    """
    check_data(data, replace_data)
    loading = o.Loading(
        device=device, dtype=dtype, revision=revision, trust_remote_code=trust_remote_code
    )
    with session(debug=debug) as stdout:
        ready_to_write(out)
        fitted = read_artefact(artefact)

        from guardrail.drift.transport import transport as carry
        from guardrail.model.load import load_model

        loaded = load_model(model, **loading.keywords())
        before = None if old_model is None else load_model(old_model, **loading.of_another_model())
        with progress() as report:
            made, figures = carry(
                fitted,
                loaded,
                old_model=before,
                data=data,
                extend=not replace_data,
                batch_size=batch_size,
                work_dir=work_dir,
                progress=report,
            )
        made.save(out)
        if as_json:
            about = {
                "path": str(out),
                "artefact_id": made.artefact_id,
                "parent": made.header.parent,
            }
            write_json(stdout, about | {"transport": figures.model_dump(mode="json")})
        else:
            rows = [("written to", str(out)), ("artefact", made.artefact_id)]
            write_rows(stdout, rows + transport_rows(figures))
