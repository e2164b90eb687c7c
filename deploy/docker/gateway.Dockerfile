# The gateway, without torch: docker compose build gateway
# It installs the group `gateway` of pyproject.toml at the versions of requirements.lock.
FROM python:3.11.14-slim-bookworm AS packages
RUN pip install --no-cache-dir uv==0.13.9
WORKDIR /build
COPY pyproject.toml requirements.lock ./
RUN uv venv /opt/venv \
 && uv pip install --no-cache --compile-bytecode --python /opt/venv --group gateway --constraint requirements.lock

FROM python:3.11.14-slim-bookworm
# Ray wants a home it can write to, and the root of the container is read-only.
ENV PATH=/opt/venv/bin:$PATH HOME=/tmp PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
# A new volume takes its owner from the folder it is mounted on.
RUN install -d -o 1000 -g 1000 /models
WORKDIR /srv/nunchi
COPY --from=packages /opt/venv /opt/venv
# The shipped Champion, for a volume that is still empty.
COPY model_repository model_repository
COPY gateway gateway
USER 1000:1000
EXPOSE 8080
CMD ["python", "-m", "gateway"]
