"""Whether a run's images have drifted from those of the champion, before the run costs training time."""

import json
from pathlib import Path

import dvc.api
from dvc.exceptions import DvcException

from flows.registry import CHAMPION, champion_tag, resolve

REPORT = "reports/validation/validation.json"


def champion_report(root: Path, folder: Path) -> Path | None:
    """The validation report of the champion's images, to compare those in the run's `folder` with.

    None without a champion, or when its images are the same.  Raises UserError; ValueError when the report is gone.
    """
    if champion_tag(root) is None:
        return None
    champion = resolve(root, CHAMPION)
    try:
        text = dvc.api.read(REPORT, repo=str(folder), rev=champion.commit)
    except (DvcException, OSError) as error:
        raise ValueError(f"{champion.name}: {REPORT} cannot be had: {error}") from error
    if json.loads(text).get("data_sha256") == json.loads((folder / REPORT).read_bytes())["data_sha256"]:
        return None
    path = folder / ".vdm" / "champion.json"
    path.write_text(text)
    return path
