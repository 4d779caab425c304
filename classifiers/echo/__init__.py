"""Echocardiography: chambers in every frame, beats, volumes, ejection fractions.

`masks.load_segmenter`, `train.fit_segmenter`   the network that finds ventricle and atrium
`film.follow_film`, `draw.draw_film`            a clip's masks and curves, and how they look
`volumes.measure_chamber`, `beats.find_beats`   one mask, one curve
`measure.measure_film`, `measure.measure_study` a clip's and a study's figures
`results.write_results`, `rows.write_tables`    everybody's figures, as files and in a database
`tables.open_tables`, `questions.ask`           the database
"""
