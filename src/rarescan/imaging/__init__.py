"""From an export to a prepared cohort: ingest, adopt, prepare, and BIDS in and out.

- `ingest.ingest_export`: a PACS export (folder or archive) -> pseudonymous BIDS cohort
- `adopt.adopt_table`, `adopt.adopt_bids`: NIfTI with a table, or a BIDS dataset -> the same
- `pictures.adopt_pictures`, `planes.prepare_planes`: pictures and clips -> cohort -> one grid
- `frames.open_clip`: the frames of any file, streamed
- `prepare.prepare_cohort`: native scans -> one template grid, stripped, scaled once
- `bids.write_derivative`: synthetic scans -> a BIDS derivative
- `dicom_out.write_dicom`: a synthetic batch -> DICOM series
- `review.write_forms`: what a human must confirm
- `identity.new_key`: the key that pseudonyms depend on
"""
