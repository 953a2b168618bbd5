# A variant as a microservice: mount its folder at /variant. No torch, no compiler, no root.
FROM python:3.11-slim

WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY foundry ./foundry
# libgomp is what llama.cpp computes with. Its version follows the base image; what pip installs is bounded or pinned in
# pyproject.toml.
# hadolint ignore=DL3008,DL3013
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libgomp1 \
    && rm -rf /var/lib/apt/lists/* \
    && pip install --no-cache-dir '.[export]' \
    && rm -rf /src/* \
    && useradd --system --create-home --uid 10001 foundry

USER 10001
WORKDIR /home/foundry
EXPOSE 8322
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8322/health', timeout=2)"]
# Exec form, so that SIGTERM reaches the service and requests in work end.
ENTRYPOINT ["foundry", "serve", "/variant", "--host", "0.0.0.0"]
