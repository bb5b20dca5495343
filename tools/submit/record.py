"""What a check of an image found, as data: ``submission.json``."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from tools.profile.container import Container
from tools.profile.harness import Harness
from tools.profile.measuring import Sampling
from tools.profile.results import CaseResult, mean_row
from tools.submit.archive import Archive
from tools.submit.image_checks import Image
from tools.submit.rules import RULES, Check

SUBMISSION_SCHEMA_VERSION = 1


def submission_record(
    image: Image, container: Container, protocol: str, sampling: Sampling, checks: Sequence[Check], run: Harness | None
) -> dict[str, Any]:
    """All that was found, without the archive; checks in the order of ``RULES``.

    Args:
        image: that was checked.
        container: how FLARE starts it.
        protocol: name of the challenge's.
        sampling: of the measured run.
        checks: one for each rule.
        run: the measured one; None if the image cannot run.
    """
    by_rule = {check.rule: check for check in checks}
    return {
        "schema_version": SUBMISSION_SCHEMA_VERSION,
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
        "image": asdict(image),
        "team": container.team,
        "protocol": protocol,
        "organisers_command": _organisers_command(container),
        "passed": all(check.status == "passed" for check in checks),
        "counts": Counter(check.status for check in checks),
        "checks": [{"rule": name, **asdict(rule), **_outcome(by_rule[name])} for name, rule in RULES.items()],
        "measured": None if run is None else _measured(container, sampling, run.results),
        "archive": None,
    }


def with_archive(record: dict[str, Any], archive: Archive) -> dict[str, Any]:
    """The record after the archive was written."""
    return record | {"archive": asdict(archive)}


def _organisers_command(container: Container) -> str:
    """As they type it; theirs has no file for the container's id."""
    words = ["docker container run", *(['--gpus="device=1"'] if container.protocol.gpu else [])]
    words += [f"{name} {value}" for name, value in container.all_limits().items()]
    words += [f"--name {container.team} --rm -v $PWD/inputs/:/workspace/inputs/ -v $PWD/outputs/:/workspace/outputs/"]
    return " ".join([*words, f'{container.image} /bin/bash -c "sh predict.sh"'])


def _outcome(check: Check) -> dict[str, str]:
    return {"status": check.status, "found": check.found}


def _measured(container: Container, sampling: Sampling, results: Sequence[CaseResult]) -> dict[str, Any]:
    columns = container.protocol.columns
    first = results[0].profile["recording"]
    return {
        "command": first["command"],
        "machine": first["machine"],
        "cores": first["cores"],
        "gpu": first["gpu"],
        "no_gpu": sampling.no_gpu,
        "columns": columns,
        "means": dict(zip(columns[1:], mean_row(results), strict=True)),
        "cases": [_case(result, columns) for result in results],
    }


def _case(result: CaseResult, columns: Sequence[str]) -> dict[str, Any]:
    """The organisers' row, penalties included, and what the container itself took."""
    own, gpu, scored = result.profile["own"], result.profile["gpu"], result.scored()
    return {
        "stem": result.stem,
        "status": result.status,
        "row": dict(zip(columns, scored.row(result.name), strict=True)) if scored else None,
        "container_peak_mib": own["memory"]["peak_mib"] if own["memory"] else None,
        "container_area_mib_s": own["memory"]["area_trapezoid"] if own["memory"] else None,
        "container_cpu_core_s": own["cpu"]["core_s"],
        "gpu_area_above_2048_mib_s": gpu["area_sum_above_2048"] if gpu else None,
    }
