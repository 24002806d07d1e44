"""Workloads, the load client, statistics and reports.

`workload` is the one description of load, read by the load client here and by the simulator; `client` sends
it to any OpenAI-compatible server; `summary` and `statistics` turn what happened into figures; `report`,
`table` and `page` show them. `bench.run_bench` is the whole path in one call.
"""
