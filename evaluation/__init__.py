"""Evaluation: is a generator good enough, does it copy persons, does its batch help.

- `evaluate.write_scores`: features, distances, gates of every candidate -> `scores.json`
- `decide.read_scores`, `decide.decide`: gates and ranking -> `Decision`
- `gain.summarise`: predictions of the arms -> the gain with its interval and a verdict
- `metrics`: distances between two sets of feature vectors, each with its interval
- `report.write_report`: one page that says it all
"""
