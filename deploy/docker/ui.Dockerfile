# The page, without torch: docker compose build ui
FROM python:3.11.14-slim-bookworm AS packages
RUN pip install --no-cache-dir uv==0.13.9
WORKDIR /build
COPY pyproject.toml requirements.lock ./
RUN uv venv /opt/venv \
 && uv pip install --no-cache --compile-bytecode --python /opt/venv --group ui --constraint requirements.lock

FROM python:3.11.14-slim-bookworm
ENV PATH=/opt/venv/bin:$PATH HOME=/tmp PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
WORKDIR /srv/nunchi
RUN install -d -o 1000 -g 1000 var
COPY --from=packages /opt/venv /opt/venv
COPY ui ui
USER 1000:1000
EXPOSE 7860
CMD ["python", "-m", "ui"]
