# MLflow's server over PostgreSQL and an S3-compatible store: docker compose build mlflow
FROM python:3.11.14-slim-bookworm AS packages
RUN pip install --no-cache-dir uv==0.13.9
WORKDIR /build
COPY pyproject.toml requirements.lock ./
RUN uv venv /opt/venv \
 && uv pip install --no-cache --compile-bytecode --python /opt/venv --group tracking --constraint requirements.lock

FROM python:3.11.14-slim-bookworm
ENV PATH=/opt/venv/bin:$PATH HOME=/tmp PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
WORKDIR /srv/nunchi
COPY --from=packages /opt/venv /opt/venv
COPY deploy/docker/mlflow.sh ./
USER 1000:1000
EXPOSE 5050
CMD ["./mlflow.sh"]
