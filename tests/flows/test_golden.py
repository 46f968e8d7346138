"""Today's code reads what version 1.0.0 left on a disk: docs/promises.md says that every version before 2.0 does."""

import hashlib
import json
import tarfile

import numpy as np
import pytest
from make_golden import ARCHIVE, BOUND, COMPRESSED, EXPECTED, TRAINING
from project import ROOT, Sandbox

from flows.api import decompress, evaluate
from flows.core import layout
from flows.core.model import open_model
from flows.core.params_file import WHOLE, read_preset
from flows.project.project import Project
from flows.repository.lock_file import lock_here
from flows.training import fitting

pytestmark = [pytest.mark.processes, pytest.mark.slow]
FIGURES = json.loads(EXPECTED.read_text())
VERSIONS = [*FIGURES["states"]]


@pytest.fixture(scope="module")
def golden(tmp_path_factory: pytest.TempPathFactory) -> Sandbox:
    """Return the project, checked out, with the images and what the contract found, but without a model."""
    folder = tmp_path_factory.mktemp("golden")
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    project = Sandbox.at(folder)
    project.git("restore", ".")
    parameters = folder / layout.PARAMS
    parameters.write_text(read_preset(WHOLE, ROOT / "presets", parameters.read_text()))  # and those that are newer
    outputs = set(lock_here(Project(folder).repository).outputs) - {
        str(layout.TRAINED),
        str(layout.CURVES),
        str(layout.METRICS),
    }
    project.dvc("checkout", *sorted(outputs - {str(layout.SAMPLE_METRICS)}))
    return project


def test_the_versions_are_listed_with_their_states_and_evidence(golden: Sandbox) -> None:
    registry = Project(golden.folder).registry
    assert {each.name: each.state for each in registry.versions} == FIGURES["states"]
    assert [each.problem for each in registry.versions] == [""] * len(VERSIONS)
    first, refused, champion = registry.versions
    (promotion,) = json.loads(golden.vdmctl("lineage", "champion", "--json").stdout)["promotions"]
    evidence, refusal = promotion["evidence"], registry.refusal(refused.commit)
    assert (evidence["decision"], evidence["challenger"], evidence["champion"]) == (
        "promote",
        champion.name,
        first.name,
    )
    assert refusal
    assert (refusal.decision, refusal.challenger) == ("refuse", refused.name)
    assert refusal.comparison


def test_a_version_verifies_and_has_a_report_and_a_lineage(golden: Sandbox) -> None:
    verified = golden.vdmctl("verify", "champion")
    assert verified.returncode == 0, verified.stderr
    for name in VERSIONS:
        written = golden.vdmctl("report", name, "--out", f"{name}.html")
        assert written.returncode == 0, written.stderr
    compared = golden.vdmctl("compare", *VERSIONS[-2:], "--json")
    assert compared.returncode == 0, compared.stderr
    assert json.loads(compared.stdout)["difference_bpd"] < 0


def test_models_have_their_figures_and_a_file_its_images(golden: Sandbox) -> None:
    project = Project(golden.folder)
    models = {name: project.model(name) for name in VERSIONS}
    images = project.images["test"][:16]
    found = {name: evaluate(model.vdm, images, **BOUND).bpd.mean() for name, model in models.items()}
    assert found == pytest.approx(FIGURES["bpd"], rel=1e-5)
    assert all(model.training and model.training.name == "digits" for model in models.values())
    pixels = decompress(models[VERSIONS[-1]].vdm, (golden.folder / COMPRESSED).read_bytes())
    assert hashlib.sha256(pixels.tobytes()).hexdigest() == FIGURES["pixels_sha256"]
    assert np.array_equal(pixels, images)


def test_the_parameters_are_those_of_the_lock(golden: Sandbox) -> None:
    project = Project(golden.folder)
    for section, values in lock_here(project.repository).parameters.items():
        known = project.params.model_dump()[section]
        assert {key: known[key] for key in values} == values


def test_a_training_goes_on_from_its_state_to_the_same_model(golden: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitting, "fingerprint", lambda **_: TRAINING)  # it covers the code, too
    trained = golden.vdmctl("train")
    assert trained.returncode == 0, trained.stderr
    assert "continuing from step 10 of 20" in trained.stderr
    model = open_model(golden.folder / layout.TRAINED).vdm
    images = Project(golden.folder).images["test"][:16]
    assert evaluate(model, images, **BOUND).bpd.mean() == pytest.approx(FIGURES["bpd"][VERSIONS[-1]], rel=1e-4)
