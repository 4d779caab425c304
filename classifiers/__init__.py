"""Classifiers, and whether synthetic persons help them.

`folds.run_folds`                               a classifier's honest estimate, baselines beside it
`arms.run_arms`                                 the same classifier, trained in several ways
`domain.train_network`, `domain.open_network`   the network that judges generators
`train.fit`                                     the one training loop
`package.open_package`, `network.load_network`  open a trained network
`modalities.find_modality`                      what is looked at: MRI, ultrasound, films, yours
`baseline.fit_linear`                           the field's linear model
"""
