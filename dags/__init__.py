"""Airflow DAGs: they run the project's commands and import nothing of the other rooms."""
