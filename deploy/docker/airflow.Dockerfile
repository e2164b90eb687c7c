# Airflow, and beside it the environment whose commands its DAGs run: docker compose build airflow
FROM python:3.11.14-slim-bookworm AS packages
# cpu, cu130 …: the build of torch (uv's --torch-backend)
ARG TORCH_BACKEND=cpu
RUN pip install --no-cache-dir uv==0.13.9
WORKDIR /build
COPY pyproject.toml requirements.lock ./
COPY dags/requirements.lock dags/
RUN uv venv /srv/nunchi/.venv \
 && uv pip install --no-cache --compile-bytecode --python /srv/nunchi/.venv --group export --group loadtest \
      --constraint requirements.lock --torch-backend "$TORCH_BACKEND" \
 && uv venv /srv/nunchi/.venv-airflow \
 && uv pip install --no-cache --compile-bytecode --python /srv/nunchi/.venv-airflow --no-deps \
      --requirement dags/requirements.lock

FROM python:3.11.14-slim-bookworm
# The browser of pages that need JavaScript; Debian keeps one version of it, the one without known holes.
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install --yes --no-install-recommends chromium \
 && rm -rf /var/lib/apt/lists/*
ENV HOME=/tmp PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
WORKDIR /srv/nunchi
RUN install -d -o 1000 -g 1000 var /models
COPY --from=packages /srv/nunchi/.venv .venv
COPY --from=packages /srv/nunchi/.venv-airflow .venv-airflow
COPY model_repository model_repository
COPY training training
COPY export export
COPY loadtest loadtest
# Only its leash, by which a command dies with its task.
COPY gateway/__init__.py gateway/leash.py gateway/
COPY dags dags
USER 1000:1000
EXPOSE 8081
CMD [".venv-airflow/bin/python", "-m", "dags"]
