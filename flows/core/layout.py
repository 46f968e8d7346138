"""Paths in a project's folder, and the prefix of the branches of the flow's runs.

Paths are relative to the project's folder.  Stages do not read this file: their paths are arguments.
"""

from pathlib import Path

PARAMS, PRESETS = Path("params.yaml"), Path("presets")
NETWORKS = Path("networks")
DVC_GRAPH, DVC_LOCK = Path("dvc.yaml"), Path("dvc.lock")
DEPLOYMENTS, AUTOMATIONS = Path("prefect.yaml"), Path("automations.yaml")
REQUIREMENTS = Path("requirements.lock")

# Outputs of the stages.
IMAGES = Path("data/images")
TRAINED = Path("models/trained")
REGISTERED = Path("models/vdm")
CARD = REGISTERED / "README.md"
REPORTS = Path("reports")
FINDINGS = REPORTS / "contract/findings.json"
DATA_DOCS = REPORTS / "contract/data_docs"
CURVES = REPORTS / "training/curves.csv"
EVALUATION = REPORTS / "evaluation"
METRICS = EVALUATION / "metrics.json"
PER_IMAGE = EVALUATION / "per_image.csv"
NOISE_LEVELS = EVALUATION / "noise_levels.csv"
CALIBRATION = EVALUATION / "calibration.json"
ERROR_CURVE = EVALUATION / "error_curve.json"
SAMPLES = REPORTS / "samples/samples.png"
SAMPLES_ARRAY = REPORTS / "samples/samples.npy"
SAMPLE_METRICS = REPORTS / "samples/metrics.json"
NEIGHBOURS = REPORTS / "samples/neighbours.csv"
DENOISING = REPORTS / "samples/denoising.png"
FEATURES = Path("models/features")
PAGE = REPORTS / "report.html"
PICTURES = REPORTS / "pictures"

# The card in the commit of a run of the Prefect flow, and the prefix of the run's branch.
RUN_CARD = REPORTS / "card.md"
RUN_BRANCHES = "runs/"

# Files of this machine, which are in no commit.
PRIVATE = Path(".vdm")
TRAININGS = PRIVATE / "trainings"
DOWNLOADS = PRIVATE / "downloads"
FETCHED = PRIVATE / "models"
WORKTREES = PRIVATE / "worktrees"
RUN_REPORTS = PRIVATE / "reports"
REASON = PRIVATE / "reason.json"
PROGRESS = PRIVATE / "progress.json"
DRIFT = PRIVATE / "drift.json"
NEW_IMAGES = PRIVATE / "new"
ODD, ODD_PAGE = PRIVATE / "odd.json", PRIVATE / "odd.html"
EVIDENCE = PRIVATE / "evidence.json"
COSTS, COSTS_OF_RUNS = PRIVATE / "costs.json", PRIVATE / "costs"
