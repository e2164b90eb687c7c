# Training and export: docker compose --profile train build train
FROM python:3.11.14-slim-bookworm AS packages
# cpu, cu130 …: the build of torch (uv's --torch-backend)
ARG TORCH_BACKEND=cpu
RUN pip install --no-cache-dir uv==0.13.9
WORKDIR /build
COPY pyproject.toml requirements.lock ./
RUN uv venv /opt/venv \
 && uv pip install --no-cache --compile-bytecode --python /opt/venv --group export --constraint requirements.lock \
      --torch-backend "$TORCH_BACKEND"

FROM python:3.11.14-slim-bookworm
ENV PATH=/opt/venv/bin:$PATH HOME=/tmp PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
WORKDIR /srv/nunchi
RUN install -d -o 1000 -g 1000 var /models
COPY --from=packages /opt/venv /opt/venv
COPY model_repository model_repository
COPY training training
COPY export export
USER 1000:1000
CMD ["python", "-m", "training.tune"]
