"""Classifiers, and whether synthetic persons help them.

`domain.train_network`, `domain.open_network`   the network that judges generators
`arms.run_arms`                                 the same classifier, trained in several ways
`train.fit`                                     the one training loop
`network.load_network`                          open a trained network
`baseline.fit_linear`                           the field's linear model
"""
