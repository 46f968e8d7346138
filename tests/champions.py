"""Make versions the champion, and read which one was."""

from project import Project

from flows.registry.git import registry_lock
from flows.registry.versions import make_champion, resolve


def champion(project: Project) -> str:
    return resolve(project.folder, "champion").name


def history(project: Project) -> list[str]:
    """Return the versions that the champion's tags name, oldest first, without the code under test."""
    names = project.git("tag", "--list", "vdm#champion*", "--sort=version:refname").split()
    return [project.git("tag", "--list", "vdm@*", "--points-at", f"{name}^{{commit}}").strip() for name in names]


def crown(project: Project, *references: str) -> None:
    """Make the versions champion one after the other, without evidence."""
    for reference in references:
        with registry_lock(project.folder):
            make_champion(project.folder, resolve(project.folder, reference), "By hand")
