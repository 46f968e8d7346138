"""Run the pipeline under Prefect: server, deployments, the folders of runs, what an operator sees.

serve        `vdmctl serve`: server, worker and deployments in one command
workers      `vdmctl worker`, on another machine
server       where the Prefect server is, and who may use it
deployments  the deployments of prefect.yaml, whose settings are left to the operator once they exist
automations  marks runs as crashed when their process is gone; notifications
engines      the processes of runs
status       `vdmctl status`, quickly
pruning      `vdmctl prune`
plugin       the `prefect` command in the project's folder
releasing    the commit of a run becomes a version, is compared with the champion, and is published
workspace    a run's own worktree, branch and parameters
streaming    runs commands with their output in the run's log
artifacts    progress, metrics and samples in Prefect's UI
announcing   the outcome of a run as an event and as a tag of the run
"""
