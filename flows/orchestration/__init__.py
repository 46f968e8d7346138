"""Run the pipeline under Prefect: server, worker, the folders of runs, what an operator sees.

serve        `vdmctl serve` and `vdmctl worker`: start server and worker, keep them alive, stop them in order
server       where the Prefect server is, and who may use it
files        prefect.yaml and automations.yaml, which people edit
setting_up   the pool, the deployments of prefect.yaml, and automations, where the server lacks them
runs         runs and their processes: closes dead runs, continues interrupted ones
answers      what `vdmctl status` and `vdmctl prune` answer
status       `vdmctl status`
silence      what no longer comes: the source, runs, pictures
pruning      `vdmctl prune`
plugin       the `prefect` command in the project's folder
ordering     events in the order in which they arrive, for automations
workspace    a run's own worktree, branch and parameters
due          what a run has to do, and why
arrivals     which images of a run are new
checking     how the images differ from the newest run's and the champion's
outcome      what came of a run
staging      the stages of a run, and what follows each
tasks        Prefect's tasks, called like their functions
streaming    runs commands with their output in the run's log
artifacts    progress, metrics and samples in Prefect's UI
metrics      the figures of the loop for Prometheus
releasing    the commit of a run becomes a version, is compared with the champion, and is published
"""
