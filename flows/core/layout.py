"""Where everything lies: each path in a project's folder, each file name and the prefix of the runs' branches, once.

Paths are relative to the project's folder.  Stages do not read this file: their paths are arguments.
"""

from pathlib import Path

PARAMS, PRESETS = Path("params.yaml"), Path("presets")
DVC_GRAPH, DVC_LOCK = Path("dvc.yaml"), Path("dvc.lock")
DEPLOYMENTS = Path("prefect.yaml")
REQUIREMENTS = Path("requirements.lock")

# What the stages make.
IMAGES = Path("data/images")
TRAINED = Path("models/trained")
REGISTERED = Path("models/vdm")
CARD = REGISTERED / "README.md"
REPORTS = Path("reports")
VALIDATION = REPORTS / "validation/validation.json"
DATA_DOCS = REPORTS / "validation/data_docs"
VALIDATION_PICTURE = REPORTS / "validation/validation.png"
CURVES = REPORTS / "training/curves.csv"
EVALUATION = REPORTS / "evaluation"
METRICS = EVALUATION / "metrics.json"
SAMPLES = REPORTS / "samples/samples.png"

# What a run of the Prefect flow leaves in its commit, and on which branch that is.
RUN_CARD = REPORTS / "card.md"
RUN_BRANCHES = "runs/"

# What belongs to this machine and is in no commit.
PRIVATE = Path(".vdm")
STATES = PRIVATE / "runs"
DOWNLOADS = PRIVATE / "downloads"
FETCHED = PRIVATE / "models"
WORKTREES = PRIVATE / "worktrees"
SHOWN = PRIVATE / "reports"
SERVE_LOCK = PRIVATE / "serve.lock"
REASON = PRIVATE / "reason.json"
EVIDENCE = PRIVATE / "evidence.json"
VERIFIED = PRIVATE / "verified.txt"
