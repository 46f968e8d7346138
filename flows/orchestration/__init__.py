"""The Prefect side: server, deployments, the folders of runs, what an operator sees.

serve        `vdmctl serve`: the whole loop in one command
server       where the Prefect server is, and who may use it
deployments  the deployments of prefect.yaml, created once and then left to the operator
automations  what happens to runs that crashed
plugin       the prefect command in the project's folder
workspace    a run's own worktree, branch and parameters
streaming    the commands of a run: output to its log, failure with its reason
artifacts    progress, metrics and samples in Prefect's UI
"""
