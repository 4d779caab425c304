"""Cohorts: the contracts that every room shares, where they lie on disk, who is in which part.

- `contracts`: `Grid`, `Condition`, `Scan`, `Cohort`, `FeatureSet`, `Score`, `Decision`, `Batch`
- `store.open_cohort`, `store.open_volumes`: read a cohort
- `store.write_cohort`, `store.create_volumes`: write one
- `partition.draw_partition`: train, validation and test persons, drawn once
"""
