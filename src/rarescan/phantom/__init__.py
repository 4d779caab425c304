"""Invented persons with known anatomy and disease: a PACS export that harms nobody.

`export.write_export`       a hospital's DICOM export, with the truth beside it
`volumes.write_prepared`    the same persons as a prepared cohort, without the way there
`volumes.person_volumes`    any of them again, at any severity: twins and oracles
`persons.draw_person`       what is true of a person
"""
