"""All that is compiled: rules, plan, walk, and which level runs. Knows nothing of groups or schedules."""
