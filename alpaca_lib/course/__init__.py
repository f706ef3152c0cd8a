"""Supports the notebooks: runs, folders, tables, figures and widgets.

    from alpaca_lib.course import notebooks as course
    lesson = course.start("01_self_instruct", globals())    # runs/01_self_instruct/001/
    lesson.record("kept 20 tasks", kept=20)                 # writes result.json

``runner`` runs the notebooks headless, ``check`` reports what this machine can do, ``parameters``
keeps the notes of the notebooks' parameters equal to the descriptions of the options.
"""
