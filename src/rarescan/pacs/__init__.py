"""What goes over the hospital's network: series in from a PACS, synthetic series out.

- `pull.pull_series`: a PACS (DICOMweb or DIMSE) -> a folder that `imaging.ingest` reads
- `push.push_batch`: a DICOM folder of synthetic scans -> a research archive of the settings
"""
