"""Make the commit of a run a version, promote it if it is better than the champion, and publish it.

Machines that share versions settle their numbers at the git remote: whoever publishes a number first keeps it.  The
other one takes the next number, and its model is compared with the champion of that moment.
"""

from pathlib import Path

from prefect import get_run_logger

from flows.core import layout
from flows.core.documents import read_document
from flows.core.errors import Exit, NetworkError, UserError
from flows.orchestration import artifacts
from flows.orchestration.outcome import Release
from flows.orchestration.streaming import stream
from flows.orchestration.tasks import step_over_network
from flows.orchestration.workspace import Run, workspace
from flows.project.project import Project
from flows.registry import publishing
from flows.registry.costs import count_costs
from flows.registry.evidence import Evidence
from flows.registry.versions import add_version, open_registry
from flows.repository.repository import Repository
from flows.repository.stages import push_run_cache


@step_over_network("promote", hours=48)
def run_promote(version: str, folder: Path) -> Evidence:
    """Run `vdmctl promote VERSION` with the run's code; return the evidence.  Raises UserError."""
    file = folder / layout.EVIDENCE
    try:
        with count_costs(folder, "promote"):
            stream(["flows.cli", "promote", version, "--json"], folder, stdout=file)
    except UserError as error:
        if error.code is not Exit.NOT_PROMOTED:
            problem = f"{version} is registered, but `vdmctl promote` failed"
            raise type(error)(f"{problem}: {error}; the next run completes this", error.code) from error
    evidence = read_document(Evidence, file)
    artifacts.show_evidence(evidence)
    get_run_logger().info("%s: %s; the evidence: `vdmctl lineage %s`", evidence.decision, evidence.reason, version)
    return evidence


@step_over_network("publish")
def publish_versions(project: Project) -> bool:
    """Push what the remotes lack; return False if a version must be withdrawn first.  Raises UserError."""
    try:
        published = publishing.publish(project.repository)
        push_run_cache(project.repository)
    except publishing.Outrun:
        return False
    get_run_logger().info("published %s", ", ".join(published) or "nothing: the remotes have everything")
    return True


@step_over_network("fetch")
def fetch_published(project: Project) -> list[str]:
    """Fetch what other machines published; return the commits of withdrawn versions.  Raises UserError."""
    logger = get_run_logger()
    tags, withdrawn = publishing.fetch_versions(project.repository)
    logger.info("fetched %s", ", ".join(tags) or "no new versions")
    if withdrawn:
        commits = ", ".join(commit[:12] for commit in withdrawn)
        logger.warning("another machine published the same version numbers first; renumbering commits %s", commits)
    return withdrawn


def release(run: Run, made: str) -> Release:
    """Make a commit a version, and the champion if it is better."""
    repository = run.main.repository
    registry = open_registry(repository)
    known = [version for version in registry.versions if version.commit == made]
    version = known[-1] if known else add_version(repository, made, subject(repository, made))
    before = registry.champion
    evidence: Evidence = run_promote(version.name, run.folder)
    compared = [version, before] if before else [version]
    artifacts.show_metrics({each.name: each.metrics for each in compared}, evidence)
    return Release(version, layout.RUN_BRANCHES + repository.run_of(made), evidence)


def subject(repository: Repository, commit: str) -> str:
    """Return the first line of a commit's message."""
    return repository.git_text("log", "-1", "--format=%s", commit)


def publish_all(project: Project, ours: Release | None) -> Release | None:
    """Publish; return the decision about the run's model, which is a new one if its version was renumbered.

    Raises UserError, and NetworkError (exit 5) if other machines were first three times.
    """
    for _ in range(3):
        if publish_versions(project):
            return ours
        again = release_anew(project, fetch_published(project))
        ours = again.get(ours.version.commit, ours) if ours else None
    raise NetworkError("publish: other machines took the version's number three times; the next run publishes again")


def release_anew(project: Project, withdrawn: list[str]) -> dict[str, Release]:
    """Give the commits of withdrawn versions new numbers, and decide about them again; return that by commit."""
    for commit in withdrawn:  # before anything can fail: no later run would find a commit without a number
        add_version(project.repository, commit, subject(project.repository, commit))
    again = {}
    for commit in withdrawn:
        params = project.repository.git_text("show", f"{commit}:{layout.PARAMS}") + "\n"
        with workspace(project, params, commit) as run:
            again[commit] = release(run, commit)
        get_run_logger().info("%s", again[commit])
    return again
