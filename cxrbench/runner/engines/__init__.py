"""Engines: thin adapters that start workers.

An attached engine (`base.Engine`) starts workers for a sweep that waits for them: `schedule.run_plan`. A detached one
takes the whole graph at once and goes on without the process that submitted it: `slurm.submit_plan`.
Both hand a chain of stages (`runner.chains`) to `worker job.json`.
"""
