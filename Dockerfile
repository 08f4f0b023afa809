# Two images of one source: `docker build --target gateway .` and `docker build --target worker .`
#
# A gateway has no torch. A worker has PyPI's torch for CUDA 13; for an older driver, or for none:
#   docker build --target worker --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu126 .
#   docker build --target worker --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cpu .
# Both run as user 10001 and write only to what is mounted and /tmp, so the root file system may be read-only.
ARG PYTHON_IMAGE=python:3.11-slim-bookworm

FROM ${PYTHON_IMAGE} AS source
WORKDIR /source
COPY pyproject.toml requirements.lock README.md LICENSE ./
COPY deploy/images deploy/images
COPY service service
COPY worker worker
COPY model model

FROM source AS gateway-installed
RUN PYTHON=python3 deploy/images/install.sh gateway /app

FROM source AS worker-installed
ARG TORCH=
ARG TORCH_INDEX=
RUN PYTHON=python3 TORCH="${TORCH}" TORCH_INDEX="${TORCH_INDEX}" deploy/images/install.sh worker /app

FROM ${PYTHON_IMAGE} AS base
# tini passes signals on while Python still imports, and reaps what a killed child leaves; pip is not needed any more.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends tini \
    && rm -rf /var/lib/apt/lists/* \
    && python3 -m pip uninstall --yes --root-user-action=ignore setuptools wheel pip \
    && useradd --uid 10001 --user-group --no-create-home --home-dir /tmp --shell /usr/sbin/nologin slidereason
ENV PATH=/app/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HF_HUB_OFFLINE=1 \
    OMP_NUM_THREADS=1 \
    HOME=/tmp
WORKDIR /tmp
ENTRYPOINT ["tini", "--"]
LABEL org.opencontainers.image.title="SlideReason" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.description="Whole-slide reasoning segmentation. Research use only."

FROM base AS gateway
COPY --from=gateway-installed /app /app
# The address is every interface's, which the gateway refuses until SLIDEREASON_BEHIND_PROXY says who stands in front.
ENV SLIDEREASON_HOST=0.0.0.0 \
    SLIDEREASON_LOG_FORMAT=json
USER 10001:10001
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 \
    CMD ["python3", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8000/healthz', timeout=4)"]
CMD ["uvicorn", "--factory", "service.app:create_app", "--host", "0.0.0.0", "--port", "8000", \
     "--no-access-log", "--no-server-header", "--timeout-keep-alive", "75", "--timeout-graceful-shutdown", "20"]

FROM base AS worker
COPY --from=worker-installed /app /app
ENV SLIDEREASON_HEALTH_HOST=0.0.0.0 \
    SLIDEREASON_HEALTH_PORT=9464 \
    SLIDEREASON_LOG_FORMAT=json \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 10001:10001
EXPOSE 9464
HEALTHCHECK --interval=10s --timeout=5s --start-period=300s --retries=3 \
    CMD ["python3", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:9464/healthz', timeout=4)"]
CMD ["slidereason", "worker"]
