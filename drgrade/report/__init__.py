"""Runs to tables, figures and pages: :func:`~drgrade.report.study.make_study` computes, the writers show."""
