# The load generator: docker compose --profile loadtest build loadtest
FROM python:3.11.14-slim-bookworm AS packages
RUN pip install --no-cache-dir uv==0.13.9
WORKDIR /build
COPY pyproject.toml requirements.lock ./
RUN uv venv /opt/venv \
 && uv pip install --no-cache --compile-bytecode --python /opt/venv --group loadtest --constraint requirements.lock

FROM python:3.11.14-slim-bookworm
ENV PATH=/opt/venv/bin:$PATH HOME=/tmp PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
WORKDIR /srv/nunchi
COPY --from=packages /opt/venv /opt/venv
COPY loadtest loadtest
USER 1000:1000
CMD ["python", "-m", "loadtest.traffic", "--rate", "50", "--seconds", "30"]
