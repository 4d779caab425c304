"""Generators: a codec (image <-> code) and a prior (codes given a condition) on one grid.

Verbs, and where they live:

- `families.train_generator`   prepared cohort -> folder with spec, weights and curves
- `families.load_generator`    that folder -> a `contract.Generator`
- `sample.write_samples`       a generator's samples -> volumes of a synthetic cohort
- `conditions.draw_conditions` what to ask for: the training persons' conditions, drawn again
- `foreign.import_weights`      another tool's checkpoint -> a network, checked to be the same
- `bundle.export_bundle`        a generator -> a MONAI bundle that samples without our code
- `advise.advise`               a cohort -> what to train on it, and what that takes
- `counterfactual.changed`      a real scan -> the same with another diagnosis
- `spec.GeneratorSpec`         the settings
"""
