# API and workers in one image; which of them runs is the command's choice (deploy/). A GPU needs torch for it:
# --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu128
FROM python:3.11-slim

ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
WORKDIR /srv/foundry
COPY pyproject.toml README.md LICENSE ./
COPY foundry ./foundry
# libgomp is what torch and llama.cpp compute with. Versions are bounded or pinned in pyproject.toml.
# hadolint ignore=DL3008,DL3013
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libgomp1 \
    && rm -rf /var/lib/apt/lists/* \
    && pip install --no-cache-dir --extra-index-url "$TORCH_INDEX" --editable '.[server,s3,engine,evaluate,export]' \
    && useradd --system --create-home --uid 10001 foundry \
    && install -d -o 10001 -g 10001 /var/lib/foundry /work
COPY api ./api
COPY workers ./workers
COPY migrations ./migrations

USER 10001
ENV FOUNDRY_HOME=/var/lib/foundry FOUNDRY_WORK=/work FOUNDRY_HOST=0.0.0.0 OMP_NUM_THREADS=1 PYTHONUNBUFFERED=1
EXPOSE 8321
CMD ["python", "-m", "gunicorn", "--config", "python:api.gunicorn_conf", "api.wsgi:app"]
